"""System interfaces for the guest: WASI preview 1 and WASIX."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dl.host import ATOMICS
from dl.wasix import closures, dynamic_calls, dynlink, preview1, threading

if TYPE_CHECKING:
    from dl.host import HostSymbols
    from dl.linker import Linker


def system_interface(linker: Linker, host: HostSymbols) -> None:
    """Add every system function that works on the linker; WASI's own are there already."""
    wasix = host.system.setdefault(dynlink.NAMESPACE, {})
    wasix.update(dynlink.dynlink_functions(linker))
    wasix.update(threading.wasix_functions(linker))
    wasix.update(closures.closure_functions(linker))
    wasix.update(dynamic_calls.dynamic_call_functions(linker))
    host.system.setdefault("wasi", {}).update(threading.wasi_functions(linker))
    host.system[preview1.NAMESPACE].update(threading.preview1_functions(linker))
    host.system[ATOMICS] = threading.atomic_functions(linker)
