"""Blocking work on a worker thread, from trio: cancelling the scope interrupts the work, and waits for its end.

`trio.to_thread.run_sync` either waits for a thread whatever happens to the scope, or abandons it. Guest code can be
stopped, so here a cancelled scope stops it and then waits for the thread, which ends within moments. Nothing continues to
run after the nursery has ended.

A limiter's token is taken before the work begins and released after its end. So it bounds the number of threads, and no
barrier depends on a token: a barrier waits only for threads that are inside guest code, and those hold one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TypeVar

import trio

T = TypeVar("T")

__all__ = ["run_interruptibly"]

_UNLIMITED = trio.CapacityLimiter(math.inf)
"""trio's own default of 40 threads would make the 41st wait for threads that may be waiting for it."""


async def run_interruptibly(
    work: Callable[[], T],
    interrupt: Callable[[], BaseException],
    *,
    limiter: trio.CapacityLimiter | None = None,
) -> T:
    """Run blocking work in a worker thread.

    Args:
        work: runs in the thread.
        interrupt: makes `work` raise soon; called in trio's thread when the scope is cancelled, possibly before `work` has
            begun or after it has ended. Returns the exception that `work` raises if this reaches it.
        limiter: bounds how many run at a time; None for no bound.

    Returns:
        What `work` returns, also if the scope was cancelled too late to stop it.

    Raises:
        trio.Cancelled: the scope was cancelled, and `work` was stopped by it.
        BaseException: what `work` raises.
    """
    async with AsyncExitStack() as stack:
        if limiter is not None:
            await stack.enter_async_context(limiter)
        await trio.lowlevel.checkpoint_if_cancelled()
        ended = trio.Event()
        results: list[T] = []
        errors: list[BaseException] = []

        def body() -> None:
            try:
                results.append(work())
            except BaseException as error:  # noqa: BLE001  carried to the task that asked for the work
                errors.append(error)

        async def thread() -> None:
            with trio.CancelScope(shield=True):
                try:
                    await trio.to_thread.run_sync(body, limiter=_UNLIMITED)
                finally:
                    ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(thread)
            try:
                await ended.wait()
            except trio.Cancelled:
                reason = interrupt()
                with trio.CancelScope(shield=True):
                    await ended.wait()
                if errors and errors[0] is reason:
                    raise
        if errors:
            raise errors[0]
        return results[0]
