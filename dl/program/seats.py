"""Seats: the small numbers by which generated code names modules."""

from __future__ import annotations

import heapq
import threading
from collections import OrderedDict

from dl.dlfcn import MAIN_HANDLE
from threads import found_in

MAIN_SEAT = int(MAIN_HANDLE)


class Seats:
    """Numbers of modules, given back and used again, the lowest first. From any thread; `_lock` guards the rest, a leaf.

    A handle is never used again, so code that named modules by handles would be new each time a library is loaded: each load
    that fails would be compiled anew, and every group's store would keep names for modules that are gone. By its seat a library
    that comes again is what it was before, and so is its code. Generated code names the modules of others too, so each content
    gets the seats that it has had: else libraries that come and go in many threads would meet in ever new combinations.

    Args:
        most_free: how many seats may wait for the content that had them; every group's store keeps names for each.
    """

    def __init__(self, most_free: int = 256) -> None:
        self._most_free = most_free
        self._lock = threading.Lock()
        self._next = MAIN_SEAT + 1
        self._taken: dict[int, bytes] = {}
        # Which of them was given back first is used first, if a content has none of its own.
        self._free: OrderedDict[int, bytes] = OrderedDict()
        self._former: dict[bytes, list[int]] = {}

    def take(self, content: bytes) -> int:
        """Return a seat that no module has.

        Args:
            content: digest of the module's bytes.
        """
        with self._lock:
            own = found_in(self._former, content)
            if own:
                seat = heapq.heappop(own)
            elif len(self._free) > self._most_free:
                seat = next(iter(self._free))
                self._former[self._free[seat]].remove(seat)
                heapq.heapify(self._former[self._free[seat]])
            else:
                seat = self._next
                self._next += 1
            former = self._free.pop(seat, None)
            if former is not None and not self._former[former]:
                del self._former[former]
            self._taken[seat] = content
            return seat

    def give_back(self, seat: int) -> None:
        """Take a seat back: every group has forgotten its module, or none has had it."""
        if seat == MAIN_SEAT:
            return  # there is one main module
        with self._lock:
            content = self._free[seat] = self._taken.pop(seat)
            heapq.heappush(self._former.setdefault(content, []), seat)
