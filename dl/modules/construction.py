"""Which thread loads and constructs a module, and which threads wait for it.

From the plan of its load to the end of its constructors a module is there but not ready. The thread that runs the
constructors may open the module again and gets it as it is; any other thread waits. Two threads whose constructors open
each other's modules would wait for ever: the one that would close the circle gets the module as it is, like the
constructing thread.
"""

from __future__ import annotations

import threading
from threading import get_ident

from threads import Event, Waiter, Waits


class Constructions:
    """The constructions of one program, for whoever may have to wait for another's.

    `lock` guards every field of the program's `Construction`s, and `waiting`. A leaf: nothing is called while holding it.

    Attributes:
        waiting: what a thread waits for, by its identity.
    """

    __slots__ = ("lock", "waiting")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.waiting: dict[int, Construction] = {}


class Construction:
    """The state of one module from the start of its load until it is ready.

    Attributes:
        thread: identity of the thread that loads it and runs the constructors; None when they have run.
        failure: why they failed.
    """

    __slots__ = ("_ended", "_program", "failure", "thread")

    def __init__(self, program: Constructions) -> None:
        self._program = program
        self.thread: int | None = get_ident()
        self.failure: BaseException | None = None
        self._ended: Event | None = None

    def finished(self, failure: BaseException | None = None) -> None:
        """The constructors have run, or the load failed; wake the threads that wait."""
        with self._program.lock:
            self.thread = None
            self.failure = failure
            ended = self._ended
        if ended is not None:
            ended.set()

    def wait(self, waits: Waits, waiter: Waiter, name: str) -> bool:
        """Wait until the constructors have run; return False, immediately, where waiting would never end.

        Args:
            waits: the program's, so that a deadlock in which constructors have a part is noticed.
            waiter: the calling thread's.
            name: the module's, for that report.

        Raises:
            BaseException: what the thread was interrupted with.
        """
        me = get_ident()
        with self._program.lock:
            if self.thread is None:
                return True
            if self._leads_to(me):
                return False
            if self._ended is None:
                self._ended = Event(waits, f"the constructors of {name}")
            ended = self._ended
            self._program.waiting[me] = self
        try:
            ended.wait(waiter)
            return True
        finally:
            with self._program.lock:
                del self._program.waiting[me]

    def _leads_to(self, thread: int) -> bool:
        """Whether the constructing thread is a thread, or waits for it, directly or through others. Under the lock."""
        construction: Construction | None = self
        while construction is not None and construction.thread is not None:
            if construction.thread == thread:
                return True
            construction = self._program.waiting.get(construction.thread)
        return False
