"""The few things this package needs of the machine: a lock, a wake, a fence, a clock, a thread.

Named in one place so that `threads.testing` can put others there, which let a test decide at every step
which thread runs next. Everything else in the package is built from these.
"""

from __future__ import annotations

import _thread
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from threads.fences import FREE_THREADED, Fence, Fences, fences_of_this_interpreter
from threads.switching import SWITCH_INTERVAL

__all__ = ["SYSTEM", "LockLike", "Platform", "System", "Wake"]


class LockLike(Protocol):
    """A lock: the thread that has taken it releases it, and does not take it twice."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; `timeout` in seconds, -1 waits for ever. Returns whether it was taken."""
        ...

    def release(self) -> None:
        """Give the lock back.

        Raises:
          RuntimeError: nobody holds it.
        """
        ...

    def __enter__(self) -> bool: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...


class Wake(Protocol):
    """What one thread waits for, and any thread gives: a lock that is held.

    Each method is one step that an exception of a signal handler leaves whole, and takes no lock that a handler may find held.
    """

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the wake that is stored, or the next one, within `timeout` seconds; returns whether there was one."""
        ...

    def release(self) -> None:
        """Store a wake.

        Raises:
          RuntimeError: one is stored already.
        """
        ...


class Platform(Protocol):
    """Where locks, fences, threads and the time come from.

    Attributes:
      light_is_free: see `threads.fences.Fences`.
    """

    light_is_free: bool

    def lock(self) -> LockLike:
        """Return a new lock that nobody holds."""
        ...

    def wake(self) -> Wake:
        """Return a new wake; none is stored."""
        ...

    def fence(self) -> Fence:
        """Return what orders stores before later loads; see `threads.fences`."""
        ...

    def get_ident(self) -> int:
        """Return the calling thread's number."""
        ...

    def monotonic_ns(self) -> int:
        """Return nanoseconds of a clock that never goes back."""
        ...

    def start_daemon(self, run: Callable[[], None], name: str) -> None:
        """Run `run` on a new thread that does not keep the process alive. For signal handlers too.

        `name` is for reports; a platform may have no use for it.
        """
        ...

    def hurry(self, asker: object) -> None:
        """Let threads of Python take turns sooner until `relax`: `asker` waits for many of them."""
        ...

    def relax(self, asker: object) -> None:
        """Undo `hurry`; nothing for who has not asked."""
        ...


class System:
    """The machine, with the fences that it is given."""

    def __init__(self, fences: Fences) -> None:
        self.fence = fences.fence
        self.light_is_free = fences.light_is_free
        self.hurry = SWITCH_INTERVAL.hurry
        self.relax = SWITCH_INTERVAL.relax
        # Both sleep at once where they have to wait; without a GIL a plain lock does not, see `threads.queue_wake`.
        self.lock: Callable[[], LockLike] = _thread.RLock if FREE_THREADED else _thread.allocate_lock

    def wake(self) -> Wake:
        """Return a new wake; none is stored."""
        if FREE_THREADED:
            from threads.queue_wake import QueueWake  # noqa: PLC0415  a library to load, for nothing elsewhere

            return QueueWake()
        lock = _thread.allocate_lock()
        lock.acquire()
        return lock

    def get_ident(self) -> int:
        """Return the calling thread's number."""
        return _thread.get_ident()

    def monotonic_ns(self) -> int:
        """Return nanoseconds of a clock that never goes back."""
        return time.monotonic_ns()

    def start_daemon(self, run: Callable[[], None], name: str) -> None:  # noqa: ARG002
        """Run `run` on a new thread that does not keep the process alive."""
        # Not `threading.Thread`: its start takes a lock that a signal handler may have interrupted the holder of. Nor is
        # it named: before CPython 3.13, naming such a thread leaves an entry in `threading` behind.
        _thread.start_new_thread(run, ())


SYSTEM: Platform = System(fences_of_this_interpreter())
