"""What is taken out of the program while guest code may still use it: it rests until every thread that might has left.

A library can be closed while one of its functions is on the stack of a thread: the closing thread's own, or another's. Its code
stays, because an engine frees no instance before its store; but its data and thread-local blocks must not be given to another
library under its feet. So they rest until each thread that was inside guest code at that moment has been outside it once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol


class Visitor(Protocol):
    """A thread's presence in guest code.

    Attributes:
        visits: how many times it has entered guest code from outside; written by its own thread alone.
    """

    visits: int

    @property
    def is_outside_guest(self) -> bool:
        """Whether its thread runs no guest code, nor a host call of it."""


@dataclass
class _Resting:
    visitors: list[tuple[Visitor, int]]
    release: Callable[[], object]


class Limbo:
    """Releases that wait for threads to leave guest code.

    `_lock` guards `_resting`; a leaf: releases run without it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._resting: deque[_Resting] = deque()

    def __len__(self) -> int:
        return len(self._resting)

    def hold(self, visitors: Iterable[Visitor], release: Callable[[], object]) -> None:
        """Call `release` when each of some threads that is inside guest code now has been outside; perhaps immediately.

        Args:
            visitors: threads, whether inside guest code or not.
            release: gives something back; called once, by whichever thread finds out, which may hold the link lock.
        """
        inside = [(visitor, visitor.visits) for visitor in visitors if not visitor.is_outside_guest]
        if not inside:
            release()
            return
        with self._lock:
            self._resting.append(_Resting(inside, release))

    def drain(self) -> None:
        """Release what nobody uses any longer. Called where threads come by: at loads and closes, and when a group ends."""
        if not self._resting:
            return
        free: list[_Resting] = []
        with self._lock:
            for entry in self._resting:
                entry.visitors = [
                    (visitor, visits)
                    for visitor, visits in entry.visitors
                    if not visitor.is_outside_guest and visitor.visits == visits
                ]
                if not entry.visitors:
                    free.append(entry)
            for entry in free:
                self._resting.remove(entry)
        for entry in free:
            entry.release()
