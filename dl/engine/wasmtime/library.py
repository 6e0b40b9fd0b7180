"""The native library that the `wasmtime` package ships, found and loaded without importing the package.

Importing it takes longer than all that the linker does for a small program: it declares 700 functions of the library, and
classes over them, none of which the adapter uses. Where the package lies otherwise than in version 50, it is imported, and says
itself where its library is.
"""

from __future__ import annotations

import ctypes
import os
import sys
from importlib.util import find_spec
from typing import cast

PACKAGE = "wasmtime"
_FILES = {"linux": "_libwasmtime.so", "darwin": "_libwasmtime.dylib", "win32": "_wasmtime.dll"}
_MACHINES = {"AMD64": "x86_64", "x86_64": "x86_64", "arm64": "aarch64", "aarch64": "aarch64"}


def native_library() -> ctypes.CDLL:
    """Return the library.

    Raises:
        ImportError: the package is not installed.
        OSError: its library cannot be loaded.
    """
    place = _library_path()
    if place is not None and PACKAGE not in sys.modules:
        return ctypes.CDLL(place)
    from wasmtime._ffi import dll  # noqa: PLC0415  what this file is there to avoid

    return cast("ctypes.CDLL", dll)


def library_version() -> str:
    """Return the version of the package that is installed.

    Raises:
        importlib.metadata.PackageNotFoundError: nothing says it.
    """
    package = _package()
    if package is not None:
        # What `importlib.metadata` does, without the 30 files that it imports for it.
        first, last = f"{PACKAGE}-", ".dist-info"
        found = [
            entry[len(first) : -len(last)]
            for entry in os.listdir(os.path.dirname(package))
            if entry.startswith(first) and entry.endswith(last)
        ]
        if len(found) == 1 and found[0][:1].isdigit() and "-" not in found[0]:
            return found[0]
    from importlib.metadata import version  # noqa: PLC0415

    return version(PACKAGE)


def _package() -> str | None:
    """Return the directory of the package, if it is one."""
    spec = find_spec(PACKAGE)
    return None if spec is None or not spec.origin else os.path.dirname(spec.origin)


def _library_path() -> str | None:
    """Return where version 50 has the library; None if it is not there."""
    package, file = _package(), _FILES.get(sys.platform)
    machine = _MACHINES.get(os.uname().machine) if hasattr(os, "uname") else None
    if package is None or file is None or machine is None:
        return None
    place = os.path.join(package, f"{sys.platform}-{machine}", file)
    return place if os.path.isfile(place) else None
