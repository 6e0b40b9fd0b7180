"""Pages that the kernel has yet to give: asked for all at once, where each would be a fault of its own."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from functools import cache

POPULATE_WRITE = 23
"""`MADV_POPULATE_WRITE` of Linux 5.14 and later, where it is the same on all processors."""

_LEAST_PAGES = 64
"""For fewer it brings little, and costs where they are resident already, as stacks of threads that come and go are."""

_PAGE = mmap.PAGESIZE


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """Return the system call; None where there is none of this kind."""
    if not sys.platform.startswith("linux"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    function.restype = ctypes.c_int
    return function


def populate(address: int, length: int) -> None:
    """Make pages resident that are about to be written, as writing would; their content stays. What fails is left to writing.

    Args:
        address: host address of the first byte.
        length: bytes, all of them mapped and writable.
    """
    first, end = -(-address // _PAGE) * _PAGE, (address + length) // _PAGE * _PAGE
    if end - first < _LEAST_PAGES * _PAGE:
        return
    madvise = _madvise()
    if madvise is not None:
        madvise(first, end - first, POPULATE_WRITE)
