"""The linker for asyncio and trio: guest code on worker threads, stopped when its task is cancelled."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from dl.checks import shortened
from dl.errors import LinkerUsageError
from dl.group import InstanceGroup
from dl.groups.entry import Group
from dl.groups.host_threads import StartedThread
from dl.linker import Linker
from dl.options import ModuleSource
from memory import Uncopied
from threads import Interrupted
from threads.async_host import run_interruptibly

T = TypeVar("T")


class AsyncLinker(Uncopied):
    """A linker whose guest code runs on worker threads of asyncio or trio.

    Attributes:
        linker: the linker; what does not enter the guest (`memory`, `modules`, `statistics`) may be used from any task.
    """

    def __init__(self, linker: Linker, limiter: anyio.CapacityLimiter | None) -> None:
        self.linker = linker
        self._limiter = limiter

    async def call(self, function: Callable[..., T], *args: Any, name: str | None = None) -> T:
        """Run `function(group, *args)` on a worker thread with an instance group of its own.

        Cancelling the task, or the scope it is in, stops the guest code it runs, also where it waits. What ends only after that
        counts as cancelled: a result is lost, and an error is the cause of the cancellation.

        Args:
            function: gets the group; runs outside the event loop.
            args: further arguments.
            name: the thread's name in messages.

        Raises:
            asyncio.CancelledError: the task was cancelled; with trio, `trio.Cancelled`.
            BaseException: what the function raises.
        """
        reason = Interrupted("the task was cancelled")
        started: list[StartedThread] = []
        cancelled = False

        def work() -> T:
            # Not earlier: a call that is cancelled while it waits for its turn must leave no thread that never comes.
            thread = self.linker.parts.host_threads.prepare(name)
            started.append(thread)
            if cancelled:
                thread.cancel(reason)
            thread.run(self.linker.own.viewing(function), args)
            result: T = thread.join()
            return result

        def interrupt() -> BaseException:
            nonlocal cancelled
            cancelled = True
            for thread in started:
                thread.cancel(reason)
            return reason

        return await run_interruptibly(work, interrupt, limiter=self._limiter)

    async def run(self) -> int:
        """Run the program in its main group on a worker thread; return its exit code.

        Cancelling the task stops it, and all threads that it has started.

        Raises:
            asyncio.CancelledError: the task was cancelled; with trio, `trio.Cancelled`.
            DlError: as `InstanceGroup.run`.
        """
        return await self.main_call(InstanceGroup.run)

    async def main_call(self, function: Callable[[InstanceGroup], T]) -> T:
        """Run `function(group)` with the main group on a worker thread; for programs whose memory is not shared."""
        group = self.linker.main_group
        groups, own = self.linker.parts.groups, group.own
        stop = _Stop(own, Interrupted("the task was cancelled"))

        def work() -> T:
            groups.take(own)
            try:
                with stop:
                    return function(group)
            finally:
                groups.park(own)

        return await run_interruptibly(work, stop.order, limiter=self._limiter)

    def __repr__(self) -> str:
        return f"<AsyncLinker of {self.linker!r}>"


class _Stop:
    """An order to stop one call, which reaches the call's group only while the `with` around the call lasts.

    `_lock` guards whether it lasts, and whether the order was given; a leaf. A group that threads use in turns may be another
    task's as soon as the call has ended, which the loop's thread learns later.

    Args:
        group: the group that the call uses.
        reason: what the call is stopped with.
    """

    def __init__(self, group: Group, reason: BaseException) -> None:
        self._replica = group.replica
        self._reason = reason
        self._lock = threading.Lock()
        self._lasts = self._ordered = False

    def __enter__(self) -> None:
        with self._lock:
            self._lasts = True
            if self._ordered:
                self._replica.interrupt_with(self._reason)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._lasts = False
        self._replica.withdraw(self._reason)

    def order(self) -> BaseException:
        """Give the order; returns what the call is stopped with."""
        with self._lock:
            self._ordered = True
            if self._lasts:
                self._replica.interrupt_with(self._reason)
        return self._reason


TrioLinker = AsyncLinker
"""The name that `AsyncLinker` had when it was for trio only."""


@asynccontextmanager
async def open_linker(
    main: ModuleSource | Callable[[], Linker] | None,
    *,
    limiter: anyio.CapacityLimiter | None = None,
    **options: Any,
) -> AsyncIterator[AsyncLinker]:
    """Make a linker for asyncio or trio, whichever runs, and close it at the end of the `async with`.

    Args:
        main: the main module, as for `Linker`; or a function that makes the linker, such as
            `lambda: dl.Linker("app.wasm", interrupts=True)`, so that tools know its options.
        limiter: bounds how many worker threads run guest code at a time; None for no bound. A guest whose threads wait for
            each other needs as many as it has threads.
        options: as for `Linker`; `interrupts` is on.

    Raises:
        DlError: the program could not be linked.
        LinkerUsageError: the function returned something else than a linker.
    """

    def make() -> Linker:
        linker: object = main() if callable(main) else Linker(main, **{"interrupts": True, **options})
        if not isinstance(linker, Linker):
            raise LinkerUsageError(f"main: the function must return a dl.Linker, not {shortened(linker)}")
        linker.parts.groups.park(linker.main_group.own)
        return linker

    linker = await anyio.to_thread.run_sync(make)
    try:
        yield AsyncLinker(linker, limiter)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(linker.close)
