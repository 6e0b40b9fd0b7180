"""Waiting without a GIL: a queue, since a lock of Python's spins there.

Where there is no GIL, a thread that waits for a lock gives the processor up forty times (`sched_yield`) before it sleeps.
Beside threads that compute, each time lets others have a time slice: 60 ms until a barrier notices that all threads have
come, and no time limit is kept meanwhile. Who reads a queue sleeps at once.
"""

from __future__ import annotations

from _queue import Empty, SimpleQueue

__all__ = ["QueueWake"]


class QueueWake:
    """A `threads.platform.Wake`: a queue with one entry while a wake is stored."""

    __slots__ = ("_queue",)

    def __init__(self) -> None:
        self._queue: SimpleQueue[None] = SimpleQueue()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the wake that is stored, or the next one, within `timeout` seconds; returns whether there was one."""
        try:
            self._queue.get(blocking, timeout if timeout >= 0 else None)
        except Empty:
            return False
        return True

    def release(self) -> None:
        """Store a wake.

        Raises:
          RuntimeError: one is stored already.
        """
        # Two threads may both store one, which wakes once too often.
        if not self._queue.empty():
            raise RuntimeError("a wake is stored already")
        self._queue.put(None)
