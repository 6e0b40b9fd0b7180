"""Repeats an interrupt of the engine until every thread that must notice it has noticed.

Why once is not enough. A store's callback ends by returning "one more epoch from now", and the engine reads *now*
after the callback has released the GIL. A thread that has just passed its safe point, and is on its way out of its
callback, makes a bump that comes in between invisible: its new deadline lies one beyond it, and it would continue to
compute until another thread bumps. No check before the return can close that gap, so a thread that needs another one
interrupts again, at growing intervals, while the other still runs unaware. These are no ticks: nobody interrupts when
nobody has to notice anything.

A barrier repeats by itself, in the thread that waits at it. The nudger is for requests that nobody waits for
(`Replica.interrupt_with`, `Rendezvous.shutdown`, a signal): its thread exists only while such a request is unnoticed.
There is one for each engine; each kind of request registers a predicate.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Final

from threads.platform import Platform
from threads.waiter import Waiter

__all__ = ["FIRST_REPEAT_NS", "LAST_REPEAT_NS", "Nudger"]

FIRST_REPEAT_NS = (
    2_000_000  # a bump is heard within microseconds; 64 threads that share a GIL take about this long
)
_MOST_REPEATS_HERE: Final = 10  # by a thread that can start no other for it; about a third of a second
LAST_REPEAT_NS = 50_000_000  # intervals double up to this


class Nudger:
    """Interrupts the engine, and again while one of several predicates says that somebody has not noticed.

    Args:
      platform: where locks and threads come from.
      interrupt: interrupts every thread in guest code.
      unheard: the first predicate, as for `add`; None for none.

    Concurrency:
      all methods are for any thread, also for a signal handler: they wait for nothing but what a predicate waits for.
    """

    def __init__(
        self,
        platform: Platform,
        interrupt: Callable[[], None],
        unheard: Callable[[], bool] | None = None,
    ) -> None:
        self._platform = platform
        self._interrupt = interrupt
        self._fence = platform.fence()
        self._predicates: list[Callable[[], bool]] = [] if unheard is None else [unheard]
        # Taken = a thread repeats. Only ever tried, never waited for: a thread that fails to take it knows that the thread
        # holding it asks the predicates once more after releasing it.
        self._repeating = platform.wake()  # since it is given back by another thread than has taken it
        self._repeating.release()

    def add(self, predicate: Callable[[], bool]) -> None:
        """Register a predicate: whether a thread that has to notice something may be in guest code, unaware of it.

        It is called from any thread, also in a signal handler that calls `nudge`, and should take no lock there.
        """
        self._predicates.append(predicate)

    def remove(self, predicate: Callable[[], bool]) -> None:
        """Undo `add`. Idempotent; a call of the predicate that is under way in another thread is not waited for."""
        with contextlib.suppress(ValueError):
            self._predicates.remove(predicate)

    def _unheard(self) -> bool:
        # A call, not a generator: see `Rendezvous._close_gate`. The copy is atomic, without a GIL too.
        return any(map(_ask, self._predicates.copy()))

    def nudge(self) -> None:
        """Interrupt the engine.

        Whatever makes a predicate true must have been written before, and the heavy side of the fence passed of each
        thread that has to notice it.
        """
        self._interrupt()
        # A thread that repeats releases `_repeating` and asks then; this one has written what it will be asked for.
        self._fence.heavy()
        if self._unheard() and self._repeating.acquire(blocking=False):
            try:
                self._platform.start_daemon(self._repeat, "rendezvous nudger")
            except Exception:  # noqa: BLE001 - the host has no thread or no memory for one
                try:
                    self._repeat_until_heard(_MOST_REPEATS_HERE)
                finally:
                    self._repeating.release()
            except BaseException:
                self._repeating.release()
                raise

    def _repeat_until_heard(self, most: float) -> None:
        waiter = Waiter("rendezvous nudger", self._platform)
        pause = FIRST_REPEAT_NS
        while most > 0 and self._unheard():
            most -= 1
            waiter.park(pause)
            pause = min(2 * pause, LAST_REPEAT_NS)
            if self._unheard():
                self._interrupt()

    def _repeat(self) -> None:
        while True:
            try:
                self._repeat_until_heard(math.inf)
            finally:
                self._repeating.release()
            self._fence.light()
            if not (self._unheard() and self._repeating.acquire(blocking=False)):
                return


def _ask(predicate: Callable[[], bool]) -> bool:
    return predicate()
