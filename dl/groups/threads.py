"""Threads of a program, as those who started them hold them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dl.groups.errors import raises_dl_errors
from threads import Event

if TYPE_CHECKING:
    from dl.group import InstanceGroup
    from dl.groups.registry import ThreadGroups

NO_THREAD = -1
"""Owner of a group that no thread has now; no thread's identity is negative."""


class HostThread:
    """A thread that `Linker.spawn` started.

    Attributes:
        name: its name.
        ended: set at its end, for threads of the program.
        gone: the same, for threads that are none.
    """

    def __init__(self, groups: ThreadGroups, name: str) -> None:
        self.name = name
        self._groups = groups
        self.ended = Event(groups.waits, f"thread {name!r} to end")
        self.gone = threading.Event()
        self._result: Any = None
        self._error: BaseException | None = None
        self._group: InstanceGroup | None = None
        self._cancelled: BaseException | None = None
        # Until the thread counts as one of the program's, it counts as somebody who may still act: a thread that
        # waits for it is not deadlocked.
        self._coming = contextlib.ExitStack()
        self._coming.enter_context(groups.waits.outsider())

    @raises_dl_errors
    def join(self, timeout: float | None = None) -> Any:
        """Wait for the thread's end and return what its function returned.

        Args:
            timeout: seconds; None for no limit.

        Raises:
            BaseException: what its function raised.
            TimeoutError: it still runs.
            ProgramDeadlockedError: it waits, and so does every other thread of the program.
        """
        caller = self._groups.find()
        if caller is None:
            ended = self.gone.wait(timeout)
        else:
            ended = self.ended.wait(caller.replica.waiter, None if timeout is None else int(timeout * 1e9))
        if not ended:
            raise TimeoutError(f"thread {self.name!r} still runs")
        self.gone.wait()  # from its end to here it runs nothing that could wait
        if self._error is not None:
            raise self._error
        return self._result

    def is_alive(self) -> bool:
        """Whether it still runs."""
        return not self.gone.is_set()

    def cancel(self, exception: BaseException) -> None:
        """Have the thread raise an exception at its next safe point, wait, or entry into guest code; from any thread."""
        self._cancelled = exception
        group = self._group
        if group is not None:
            group.replica.interrupt_with(exception)

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """The thread's body; called once, in it."""
        try:
            with self._groups.attach(self.name, known=True) as group:
                self._coming.close()
                self._group = group
                try:
                    if self._cancelled is not None:
                        group.replica.withdraw(self._cancelled)
                        raise self._cancelled
                    self._result = function(group, *arguments)
                finally:
                    self._group = None
                    # While this thread still counts: who waits for it must not be taken for deadlocked.
                    self.ended.set()
        except BaseException as error:  # noqa: BLE001  given to whoever joins
            self._error = error
        finally:
            self.gone.set()
            self.ended.set()
            self._groups.ended(self)

    def not_started(self) -> None:
        """Let the thread count no more: it never comes, or has come and gone."""
        self._coming.close()


class GuestThread:
    """A thread that the guest started.

    Attributes:
        id: its number, from 2; the main thread is 1.
        name: its name in messages.
        started: set when its group exists, or cannot.
        ended: set at its end, for threads of the program.
        gone: the same, for threads that are none.
        group: its group while it runs.
        failure: why its group could not be made.
    """

    def __init__(self, groups: ThreadGroups, number: int) -> None:
        self.id = number
        self.name = f"thread {number}"
        self.ended = Event(groups.waits, f"{self.name} to end")
        self.started = Event(groups.waits, f"{self.name} to start")
        self.gone = threading.Event()
        self.group: InstanceGroup | None = None
        self.failure: BaseException | None = None
