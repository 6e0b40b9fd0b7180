"""What of this machine compiled code may depend on."""

from __future__ import annotations

import os
import sys
from functools import cache

from dl.digests import sha256

_CPU_INFO = "/proc/cpuinfo"
_FEATURES = ("flags", "Features", "isa")
"""Names of the line that lists a processor's features: x86, ARM, RISC-V."""


@cache
def machine_fingerprint() -> str:
    """Return a text that differs between machines that cannot run each other's native code."""
    features = " ".join(sorted(_cpu_features().split()))
    return f"{sys.platform} {_machine()} {sha256(features.encode()).hex()[:16]}"


def _cpu_features() -> str:
    """Return the features of the first processor; where the system does not list them, its description."""
    try:
        with open(_CPU_INFO, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() in _FEATURES:
                    return value
    except OSError:
        pass
    import platform  # noqa: PLC0415  as in `_machine`

    return platform.processor()


def _machine() -> str:
    """Return the machine's kind, as `platform.machine` does, which is slow to import."""
    if hasattr(os, "uname"):
        return os.uname().machine
    import platform  # noqa: PLC0415

    return platform.machine()
