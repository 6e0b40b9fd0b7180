"""Futexes: wait at an address until another thread wakes it; the base of a guest's mutexes and condition variables.

Serves `futex_wait`/`futex_wake`, and `memory.atomic.wait32`/`wait64`/`notify` of rewritten modules: these share
one table, because a program may wait with one and wake with the other. A key is an address in the shared memory, in
bytes; the caller reads what is stored there.
"""

from __future__ import annotations

from collections.abc import Callable

from threads.waiter import Waiter
from threads.waits import WaitQueue, WaitResult, Waits, unpark_all

__all__ = ["FutexTable", "WaitResult"]


class FutexTable:
    """The waits at addresses of one shared memory. A key exists only while a thread waits at it.

    Args:
      waits: the program's waits; its lock guards the table. None: own ones.
    """

    def __init__(self, waits: Waits | None = None) -> None:
        self.waits = Waits() if waits is None else waits
        self._queues: dict[int, WaitQueue] = {}  # guarded by: Waits.lock

    def wait(
        self,
        key: int,
        still_expected: Callable[[], bool],
        timeout_ns: int | None,
        waiter: Waiter,
    ) -> WaitResult:
        """Wait at an address if it still holds what the caller saw there.

        No wake is lost: the check and the enqueueing are one step with respect to every `wake`, so a thread that
        writes the address and then wakes either is seen by the check or wakes this wait.

        Args:
          key: address in bytes.
          still_expected: reads the memory and compares. Called once, under the table's lock: it must not wait, call
            guest code, or come back here.
          timeout_ns: relative, nanoseconds; None is no limit. A negative one is over immediately, so a caller with
            the Wasm instruction's rule (negative is for ever) passes None.
          waiter: the calling thread's.

        Returns:
          WOKEN, NOT_EQUAL or TIMED_OUT.

        Raises:
          BaseException: what the thread was interrupted with; DeadlockError if nothing can wake it any longer.
            What `still_expected` raises.
        """

        def admit() -> WaitQueue | None:
            return self._queues.setdefault(key, {}) if still_expected() else None

        try:
            return self.waits.wait(waiter, f"futex {key:#x}", admit, timeout_ns)
        finally:
            with self.waits.lock:
                self._forget_if_empty_locked(key)

    def wake(self, key: int, count: int) -> int:
        """Wake the threads that have waited longest at an address; returns how many, at most `count`. Any thread."""
        with self.waits.lock:
            queue = self._queues.get(key)
            woken = [] if queue is None else self.waits.wake_locked(queue, count)
            self._forget_if_empty_locked(key)
        unpark_all(woken)
        return len(woken)

    def waiting(self, key: int) -> int:
        """Return how many threads are waiting at an address."""
        with self.waits.lock:
            return len(self._queues.get(key, ()))

    def __len__(self) -> int:
        """Return at how many addresses threads are waiting."""
        with self.waits.lock:
            return len(self._queues)

    def _forget_if_empty_locked(self, key: int) -> None:
        if key in self._queues and not self._queues[key]:
            del self._queues[key]
