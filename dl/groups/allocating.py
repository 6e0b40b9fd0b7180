"""A group in which threads without one can call the program's allocator.

A thread that attaches itself needs a stack and thread-local blocks before its group can exist. Where these come from the main
module's own `malloc`, somebody has to call it: this group, which threads borrow one after the other. What it needs itself is
allocated when the allocator begins to work, by the main thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from dl.errors import LinkerUsageError
from dl.groups.entry import Group
from memory import Block

if TYPE_CHECKING:
    from dl.groups.registry import Groups

_GLANCE_SECONDS = 0.05
"""Time after which a thread that waits for its turn looks whether the program has ended, or it has been cancelled."""


class Stoppable(Protocol):
    """A thread that somebody may order to stop."""

    def runs_in(self, group: Group | None) -> None:
        """Note the group that the thread runs guest code in from now on; None for none."""

    def raise_if_cancelled(self) -> None:
        """Raise what the thread was ordered to stop with, if it was."""


class NotStoppable:
    """A thread that the linker has not started: nobody stops it, but its own signal handlers."""

    def runs_in(self, group: Group | None) -> None:
        """Nobody asks."""

    def raise_if_cancelled(self) -> None:
        """Nobody cancels it."""


@contextmanager
def turn(
    lock: threading.Lock, ended: Callable[[], BaseException | None], thread: Stoppable
) -> Iterator[None]:
    """Hold a lock whose holders run guest code, which may never end.

    Raises:
        BaseException: what the program ended with, or the thread was cancelled with, while it waited.
    """
    while not lock.acquire(timeout=_GLANCE_SECONDS):
        _check(ended)
        thread.raise_if_cancelled()
    try:
        _check(ended)
        yield
    finally:
        lock.release()


def _check(ended: Callable[[], BaseException | None]) -> None:
    reason = ended()
    if reason is not None:
        raise reason.with_traceback(None)


class AllocatingGroup:
    """The group that threads borrow.

    `_lock` lets one thread at a time use it. It is held over the guest's `malloc`, which waits for locks of the C library only;
    a thread that holds one of those has a group of its own, so it never comes here. The fields are guarded by it.
    """

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._lock = threading.Lock()
        self._stack: Block | None = None
        self._group: Group | None = None

    def prepare(self, stack: Block) -> None:
        """Set its stack; its blocks are in the reserve. Called once, in the main thread."""
        self._stack = stack

    @contextmanager
    def lent(self, thread: Stoppable) -> Iterator[None]:
        """Let the calling thread call the program's allocator, whether it has a group or not."""
        groups = self._groups
        side_memory = groups.program.side_memory
        if side_memory is None or not side_memory.calls_guest or groups.find() is not None:
            yield
            return
        with turn(self._lock, lambda: groups.program.ended, thread):
            try:
                with groups.lend(self._made()):
                    thread.runs_in(self._group)
                    yield
            finally:
                thread.runs_in(None)

    def _made(self) -> Group:
        groups = self._groups
        if self._group is not None and self._group.replica.closed is not None:
            self._group.close()  # it could not follow a load
            self._group = None
        if self._group is None:
            if self._stack is None:
                raise LinkerUsageError("the program's allocator does not work yet, so no thread can be made")
            group = Group(
                groups.program,
                "allocating",
                groups.signals,
                stack_pointer=self._stack.address + self._stack.size,
            )
            groups.program.rendezvous.join(group.replica)
            groups.park(group)
            self._group = group
        return self._group

    def close(self, seconds: float) -> None:
        """Free the group; the program has ended. A thread that stays in it keeps it."""
        if self._lock.acquire(timeout=seconds):
            try:
                if self._group is not None:
                    self._group.close()
                self._group = None
            finally:
                self._lock.release()
