"""What is taken out of the program while guest code may still use it: it rests until every thread that might has left.

A library can be closed while one of its functions is on the stack of a thread: the closing thread's own, or another's. Its code
stays, because an engine frees no instance before its store; but its data and thread-local blocks must not be given to another
library under its feet. So they rest until each thread that was inside guest code at that moment has been outside it once, or
has found none of the library's code on its stack when it forgot it: a program's first thread may never leave guest code.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol, TypeAlias

from dl.records import dataclass

Subject: TypeAlias = tuple[int, ...]
"""What is taken out together: handles of modules."""


class Visitor(Protocol):
    """A thread's presence in guest code.

    Attributes:
        visits: how many times it has entered guest code from outside; written by its own thread alone.
    """

    visits: int

    @property
    def is_outside_guest(self) -> bool:
        """Whether its thread runs no guest code, nor a host call of it."""

    def may_run(self, subject: Subject) -> bool:
        """Whether code of some modules may be on its thread's stack: it has not forgotten them yet, or saw them there then."""


@dataclass
class _Resting:
    visitors: list[tuple[Visitor, int]]
    release: Callable[[], object]
    subject: Subject | None

    def is_over(self) -> bool:
        """Whether nobody is inside any longer; those who are not are dropped."""
        self.visitors = [
            (visitor, visits)
            for visitor, visits in self.visitors
            if not visitor.is_outside_guest
            and visitor.visits == visits
            and (self.subject is None or visitor.may_run(self.subject))
        ]
        return not self.visitors


class Limbo:
    """Releases that wait for threads to leave guest code.

    `_lock` guards `_resting`; a leaf: releases run without it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._resting: deque[_Resting] = deque()

    def __len__(self) -> int:
        return len(self._resting)

    def hold(
        self, visitors: Iterable[Visitor], release: Callable[[], object], subject: Subject | None = None
    ) -> None:
        """Call `release` when each of some threads that is inside guest code now has been outside; perhaps immediately.

        Args:
            visitors: threads, whether inside guest code or not.
            release: gives something back; called once, by whichever thread finds out, which may hold the link lock.
            subject: the modules whose it was, if a thread that cannot run their code need not be waited for. They are gone from
                the program, and no thread is in the middle of loading them.
        """
        entry = _Resting([(visitor, visitor.visits) for visitor in visitors], release, subject)
        if entry.is_over():
            release()
            return
        with self._lock:
            self._resting.append(entry)

    def drain(self) -> None:
        """Release what nobody uses any longer. Called where threads come by: at loads and closes, and when a group ends."""
        if not self._resting:
            return
        free: list[_Resting] = []
        with self._lock:
            free += [entry for entry in self._resting if entry.is_over()]
            for entry in free:
                self._resting.remove(entry)
        for entry in free:
            entry.release()
