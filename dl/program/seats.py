"""Seats: the small numbers by which generated code names modules."""

from __future__ import annotations

import heapq
import threading

from dl.dlfcn import MAIN_HANDLE

MAIN_SEAT = int(MAIN_HANDLE)


class Seats:
    """Numbers of modules, given back and used again, the lowest first. From any thread; `_lock` guards the rest, a leaf.

    A handle is never used again, so code that named modules by handles would be new each time a library is loaded: each load
    that fails would be compiled anew, and every group's store would keep names for modules that are gone. By its seat a library
    that comes again is what it was before, and so is its code.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[int] = []
        self._next = MAIN_SEAT + 1

    def take(self) -> int:
        """Return the lowest seat that no module has."""
        with self._lock:
            if self._free:
                return heapq.heappop(self._free)
            self._next += 1
            return self._next - 1

    def give_back(self, seat: int) -> None:
        """Take a seat back: every group has forgotten its module, or none has had it."""
        with self._lock:
            heapq.heappush(self._free, seat)
