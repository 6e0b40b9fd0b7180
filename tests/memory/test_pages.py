"""Pages that are asked for at once: their content stays, and writing to them faults no more."""

from __future__ import annotations

import ctypes
import mmap
import platform
import sys

import pytest

from memory.pages import populate

PAGES = 256


def version() -> tuple[int, ...]:
    """The kernel's, major and minor."""
    return tuple(int(part) for part in platform.release().split(".")[:2] if part.isdigit())


def test_content_stays_and_bytes_beside_it_too() -> None:
    """What lies in the pages, and in those that the range begins and ends in, is as before."""
    with mmap.mmap(-1, PAGES * mmap.PAGESIZE) as pages:
        content = bytes(range(256)) * (len(pages) // 256)
        pages[:] = content
        first = ctypes.c_char.from_buffer(pages)
        populate(ctypes.addressof(first) + 100, len(pages) - 200)
        del first
        assert pages[:] == content


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or version() < (5, 14), reason="the kernel has no such call"
)
def test_writing_afterwards_faults_no_more() -> None:
    """Pages that were populated are there: writing all of them takes a tenth of the faults at most."""
    import resource

    def faults(*, populated: bool) -> int:
        with mmap.mmap(-1, PAGES * mmap.PAGESIZE) as pages:
            if hasattr(mmap, "MADV_NOHUGEPAGE"):
                pages.madvise(mmap.MADV_NOHUGEPAGE)
            first = ctypes.c_char.from_buffer(pages)
            if populated:
                populate(ctypes.addressof(first), len(pages))
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
            ctypes.memset(ctypes.addressof(first), 1, len(pages))
            after = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
            del first
        return after - before

    assert faults(populated=False) >= PAGES // 2
    assert faults(populated=True) <= PAGES // 10
