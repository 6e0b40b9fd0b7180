"""Futexes: wait at an address until another thread wakes it; the base of a guest's mutexes and condition variables.

Serves `futex_wait`/`futex_wake`, and `memory.atomic.wait32`/`wait64`/`notify` of rewritten modules: these share
one table, because a program may wait with one and wake with the other. A key is an address in the shared memory, in
bytes; the caller reads what is stored there.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from threads.uninterrupted import uninterrupted
from threads.waiter import Waiter
from threads.waits import WaitQueue, WaitResult, Waits, unpark_all

__all__ = ["FutexTable", "SharedFutexes", "WaitResult"]


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


class SharedFutexes:
    """The waits at addresses of a memory that threads of several programs have: one table for each program.

    A wake looks into one table after the other. None is lost: who wakes has written before, so a wait either is in its table by
    then or sees what was written.

    While several programs have the memory, each counts on the others to wake its threads, so that it finds no deadlock where
    there is none. `_lock` guards the other fields; a leaf.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tables: tuple[FutexTable, ...] = ()
        self._promises: set[contextlib.ExitStack] = set()

    def add(self, waits: Waits) -> FutexTable:
        """Add a table for a program that has the memory, and return it."""
        made = FutexTable(waits)
        with self._lock:
            self._tables += (made,)
        return made

    def remove(self, table: FutexTable) -> None:
        """Take out the table of a program that ends. What only that one could have woken is found to be a deadlock."""
        with self._lock:
            self._tables = tuple(one for one in self._tables if one is not table)
            void = list(self._promises) if len(self._tables) < 2 else []
        for promise in void:
            self._take_back(promise)

    @contextlib.contextmanager
    def awaiting_others(self, table: FutexTable) -> Iterator[None]:
        """Count on the other programs, if there are any, to wake a thread while the `with` lasts."""
        if len(self._tables) < 2:
            yield
            return
        promise = contextlib.ExitStack()
        try:
            with uninterrupted():
                promise.enter_context(table.waits.outsider())
                with self._lock:
                    self._promises.add(promise)
            if len(self._tables) < 2:  # `remove` came before the promise was there to be taken back
                self._take_back(promise)
            yield
        finally:
            self._take_back(promise)

    def _take_back(self, promise: contextlib.ExitStack) -> None:
        """End a promise, once."""
        with self._lock:
            mine = promise in self._promises
            self._promises.discard(promise)
        if mine:
            promise.close()

    def wake(self, key: int, count: int) -> int:
        """Wake threads of any of the programs at an address; returns how many, at most `count`. Any thread."""
        woken = 0
        for table in self._tables:
            if woken < count:
                woken += table.wake(key, count - woken)
        return woken
