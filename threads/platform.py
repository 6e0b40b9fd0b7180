"""The few things this package needs of the machine: a lock, a clock, a thread.

Named in one place so that `threads.testing` can put others there, which let a test decide at every step
which thread runs next. Everything else in the package is built from these.
"""

from __future__ import annotations

import _thread
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from threads.switching import SWITCH_INTERVAL

__all__ = ["SYSTEM", "LockLike", "Platform"]


class LockLike(Protocol):
    """A `threading.Lock`: not re-entrant, and any thread may release it."""

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


class Platform(Protocol):
    """Where locks, threads and the time come from."""

    def lock(self) -> LockLike:
        """Return a new lock that nobody holds."""
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


class _System:
    def __init__(self) -> None:
        self.hurry = SWITCH_INTERVAL.hurry
        self.relax = SWITCH_INTERVAL.relax

    def lock(self) -> LockLike:
        return _thread.allocate_lock()

    def get_ident(self) -> int:
        return _thread.get_ident()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def start_daemon(self, run: Callable[[], None], name: str) -> None:  # noqa: ARG002
        # Not `threading.Thread`: its start takes a lock that a signal handler may have interrupted the holder of. Nor is
        # it named: before CPython 3.13, naming such a thread leaves an entry in `threading` behind.
        _thread.start_new_thread(run, ())


SYSTEM: Platform = _System()
