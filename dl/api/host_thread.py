"""Threads that `Linker.spawn` has started, as users hold them."""

from __future__ import annotations

from typing import Any

from dl.checks import duration, instance, optional, taken
from dl.groups.host_threads import StartedThread
from memory import Uncopied


class HostThread(Uncopied):
    """A thread that `Linker.spawn` started.

    Attributes:
        own: what the linker's other parts call.
    """

    __slots__ = ("own",)

    def __init__(self, own: StartedThread) -> None:
        self.own = own

    @property
    def name(self) -> str:
        """Its name in messages."""
        return self.own.name

    def join(self, timeout: float | None = None) -> Any:
        """Wait for the thread's end and return what its function returned.

        Args:
            timeout: seconds; None for no limit.

        Raises:
            BaseException: what its function raised.
            TimeoutError: it still runs.
            ProgramDeadlockedError: it waits, and so does every other thread of the program.
            LinkerUsageError: the time-out is no number.
        """
        return self.own.join(taken(optional(duration), timeout, "timeout"))

    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self.own.is_alive()

    def cancel(self, exception: BaseException) -> None:
        """Make the thread raise an exception at its next safe point, wait, or entry into guest code; from any thread.

        Raises:
            LinkerUsageError: it is no exception.
        """
        taken(instance(BaseException), exception, "exception")
        self.own.cancel(exception)

    def __repr__(self) -> str:
        return repr(self.own)
