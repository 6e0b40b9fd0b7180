"""Blocking work on a worker thread, from asyncio or trio: cancelling it interrupts the work, and waits for its end.

What either has for threads waits for a thread whatever is cancelled, or abandons it. Guest code can be stopped, so here a
cancellation stops it and then waits for the thread, which ends within moments. Nothing continues to run after the task.

A limiter's token is taken before the work begins and released after its end. So it bounds the number of threads, and no
barrier depends on a token: a barrier waits only for threads that are inside guest code, and those hold one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

T = TypeVar("T")

__all__ = ["run_interruptibly"]


async def run_interruptibly(
    work: Callable[[], T],
    interrupt: Callable[[], BaseException],
    *,
    limiter: anyio.CapacityLimiter | None = None,
) -> T:
    """Run blocking work in a worker thread.

    Args:
        work: runs in the thread.
        interrupt: makes `work` raise soon; called in the loop's thread when the task is cancelled, possibly before `work` has
            begun or after it has ended. Returns the exception that `work` raises if this reaches it.
        limiter: bounds how many run at a time; None for no bound.

    Returns:
        What `work` returns.

    Raises:
        asyncio.CancelledError: the task was cancelled; with trio, `trio.Cancelled`. Also if that was too late to stop `work`:
            its result is lost, and an error of its own is the cause.
        BaseException: what `work` raises.
    """
    async with AsyncExitStack() as stack:
        if limiter is not None:
            await stack.enter_async_context(limiter)
        await anyio.lowlevel.checkpoint_if_cancelled()
        ended = anyio.Event()
        results: list[T] = []
        errors: list[BaseException] = []

        def body() -> None:
            try:
                results.append(work())
            except BaseException as error:  # noqa: BLE001  carried to the task that asked for the work
                errors.append(error)

        async def thread() -> None:
            with anyio.CancelScope(shield=True):
                try:
                    # A limiter of its own: the common one would make the 41st thread wait for threads that may wait for it.
                    await anyio.to_thread.run_sync(body, limiter=anyio.CapacityLimiter(1))
                finally:
                    ended.set()

        reason: BaseException | None = None
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(thread)
                try:
                    await ended.wait()
                except anyio.get_cancelled_exc_class():
                    reason = interrupt()
                    with anyio.CancelScope(shield=True):
                        await ended.wait()
                    # In any case: asyncio delivers a cancellation once, so a task that got the result in its place would go on.
                    raise
        except anyio.get_cancelled_exc_class() as cancelled:
            if errors and errors[0] is not reason:
                raise cancelled from errors[0]
            raise
        if errors:
            raise errors[0]
        return results[0]
