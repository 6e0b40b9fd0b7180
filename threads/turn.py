"""The link lock: one thread at a time changes the linker's state, in order of arrival."""

from __future__ import annotations

from collections import deque

from threads.platform import LockLike, Platform
from threads.waiter import Waiter

__all__ = ["Turn"]


class Turn:
    """A fair lock whose wait can be interrupted, and ended for good.

    It is handed over, not freed: the thread that releases it names the next holder, so a thread that takes and releases
    it in a loop cannot starve the others.

    Invariant: threads wait only while another one holds it.

    Attributes:
      holder: the waiter that holds it, None if it is free. Only the holder can rely on what it reads here.
    """

    __slots__ = ("_ended", "_lock", "_platform", "_queue", "_thread", "holder")

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        # Guards the fields below. Innermost: held for a few steps, nothing is waited for or called under it.
        self._lock: LockLike = platform.lock()
        self.holder: Waiter | None = None  # guarded by: _lock
        self._thread = 0  # the holder's thread; written by the holder alone, so it can ask "is it me?"
        self._queue: deque[Waiter] = deque()  # guarded by: _lock
        self._ended: BaseException | None = None  # guarded by: _lock

    def held_by_caller(self) -> bool:
        """Return whether the calling thread holds it."""
        return self.holder is not None and self._thread == self._platform.get_ident()

    def acquire(self, waiter: Waiter) -> None:
        """Wait for the turn and take it; the calling thread does not hold it.

        Raises:
          BaseException: what the waiter was interrupted or ended with; the turn is not taken.
        """
        try:
            with self._lock:
                if self._ended is not None:
                    waiter.end(self._ended)
                elif self.holder is None:
                    self.holder = waiter
                else:
                    self._queue.append(waiter)
            while True:
                with self._lock:
                    if self.holder is waiter:
                        break
                waiter.raise_if_interrupted()
                waiter.park()
            waiter.raise_if_interrupted()
            self._thread = self._platform.get_ident()
        except BaseException:
            self.release(waiter)
            raise

    def release(self, waiter: Waiter) -> None:
        """Hand the turn to the waiter that has waited longest; or, from a waiter without it, leave the queue."""
        with self._lock:
            if self.holder is waiter:
                self._thread = 0
                self.holder = self._queue.popleft() if self._queue else None
                successor = self.holder
            else:
                successor = None
                if waiter in self._queue:
                    self._queue.remove(waiter)
        if successor is not None:
            successor.unpark()

    def end(self, exception: BaseException) -> None:
        """Raise `exception` in the threads that hold it or wait for it, at their next wait, and in all that ask later."""
        with self._lock:
            if self._ended is None:
                self._ended = exception
            concerned = [*self._queue]
            if self.holder is not None:
                concerned.append(self.holder)
        for waiter in concerned:
            waiter.end(exception)
