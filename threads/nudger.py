"""Repeats an interrupt of the engine until every thread that must hear it has heard it.

Why once is not enough. A store's callback ends by returning "one more epoch from now", and the engine reads *now*
after the callback has let go of the GIL. A thread that has just passed its safe point, and is on its way out of its
callback, makes a bump that comes in between invisible: its new deadline lies one beyond it, and it would compute on
until somebody else bumps. No check before the return can close that gap, so whoever needs a thread asks again, at
growing intervals, while it still runs unaware. No thread asks when nobody is asked for: these are no ticks.

A barrier repeats by itself, in the thread that waits at it. This is for requests that nobody waits for
(`Replica.interrupt_with`, `Rendezvous.shutdown`): a thread that exists only while such a request is unheard.
"""

from __future__ import annotations

from collections.abc import Callable

from threads.platform import Platform
from threads.waiter import Waiter

__all__ = ["FIRST_REPEAT_NS", "LAST_REPEAT_NS", "Nudger"]

FIRST_REPEAT_NS = (
    2_000_000  # a bump is heard within microseconds; 64 threads that share a GIL take about this long
)
LAST_REPEAT_NS = 50_000_000  # intervals double up to this


class Nudger:
    """Calls `interrupt` now, and again while `unheard` says so.

    Concurrency:
      `nudge` is for any thread, also for a signal handler: it waits for nothing.
    """

    def __init__(
        self, platform: Platform, interrupt: Callable[[], None], unheard: Callable[[], bool]
    ) -> None:
        self._platform = platform
        self._interrupt = interrupt
        self._unheard = unheard
        # Held = a thread repeats. Only ever tried, never waited for: who fails to take it knows that the thread
        # holding it looks at `unheard` once more after releasing it.
        self._repeating = platform.lock()

    def nudge(self) -> None:
        """Interrupt the engine. Whatever makes `unheard` true must have been written before."""
        self._interrupt()
        if self._unheard() and self._repeating.acquire(blocking=False):
            try:
                self._platform.start_daemon(self._repeat, "rendezvous nudger")
            except BaseException:
                self._repeating.release()
                raise

    def _repeat(self) -> None:
        waiter = Waiter("rendezvous nudger", self._platform)
        while True:
            try:
                pause = FIRST_REPEAT_NS
                while self._unheard():
                    waiter.park(pause)
                    pause = min(2 * pause, LAST_REPEAT_NS)
                    if self._unheard():
                        self._interrupt()
            finally:
                self._repeating.release()
            if not (self._unheard() and self._repeating.acquire(blocking=False)):
                return
