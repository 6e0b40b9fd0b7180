"""`dl.open_linker` under asyncio and trio: what is cancelled stops, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
import pytest

import dl
from dl.groups.entry import NO_THREAD
from tests.support.groups import SECONDS, until
from tests.support.modules import SHARED_MEMORY, library, pie
from tests.support.paths import ROOT

pytestmark = pytest.mark.timeout(60)

SHARED = dl.MemoryType(1, 1000, shared=True)
LIB = library(
    SHARED_MEMORY,
    '(func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))',
    '(func (export "spin") (loop $again (br $again)))',
    '(func (export "wait") (drop (memory.atomic.wait32 (i32.const 4100) (i32.const 0) (i64.const -1))))',
)
ONE = pie('(func (export "_start"))', '(func (export "one") (result i32) (i32.const 1))')
ENDLESS = pie('(func (export "_start") (loop $again (br $again)))')


def calls(name: str, *arguments: int) -> Callable[[dl.InstanceGroup], Any]:
    return lambda group: group.library(LIB, name="l.so")[name](*arguments)


def until_interrupted(group: dl.InstanceGroup) -> None:
    """A function of the host that nothing stops; it returns when an interrupt waits for its thread."""
    until(lambda: group.own.replica.waiter.interrupted)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("name", ["spin", "wait"])
def test_a_scope_that_times_out_stops_the_guest(backend: str, name: str) -> None:
    """It ends although the guest would compute, or wait, for ever; the linker stays usable."""

    async def main() -> None:
        async with dl.open_linker(None, memory=SHARED) as linker:
            with anyio.move_on_after(0.05) as scope:
                await linker.call(calls(name))
            assert scope.cancelled_caught
            assert await linker.call(calls("add", 2, 3)) == 5

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_program_that_is_cancelled_ends(backend: str) -> None:
    """Also one whose memory is not shared; the linker is made by a function, whose options tools know."""

    async def main() -> None:
        make = lambda: dl.Linker(ENDLESS, interrupts=True)  # noqa: E731
        async with dl.open_linker(make) as linker:
            with anyio.move_on_after(0.05) as scope:
                await linker.run()
            assert scope.cancelled_caught

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_cancellation_that_comes_too_late_stops_nobody_else(backend: str) -> None:
    """Who has the main group next is not stopped in place of a call that has ended, though its task did not know that yet."""
    results: list[object] = []

    async def main() -> None:
        async with dl.open_linker(ONE) as linker:
            group = linker.linker.main_group
            own, groups = group.own, linker.linker.parts.groups
            begun, has_it, go_on = threading.Event(), threading.Event(), threading.Event()

            def next_user() -> None:
                groups.take(own)
                try:
                    one = group.dlsym(dl.MAIN_HANDLE, "one")
                    has_it.set()
                    while not go_on.is_set():
                        one()
                    results.append(one())
                except dl.DlError as error:
                    results.append(error)
                finally:
                    groups.park(own)

            thread = threading.Thread(target=next_user)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(linker.main_call, lambda _group: begun.set())
                while not begun.is_set():
                    await anyio.sleep(0)
                # From here on the loop learns nothing: it is held up while the worker ends and the group goes to somebody else.
                until(lambda: own.owner == NO_THREAD)
                thread.start()
                assert has_it.wait(SECONDS)
                tasks.cancel_scope.cancel()
            go_on.set()
            await anyio.to_thread.run_sync(thread.join, SECONDS)

    anyio.run(main, backend=backend)
    assert results == [1]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_what_the_function_raises_is_raised(backend: str) -> None:
    """As it is, in no group of exceptions."""

    def fail(_group: dl.InstanceGroup) -> None:
        raise KeyError("mine")

    async def main() -> None:
        async with dl.open_linker(None, memory=SHARED) as linker:
            with pytest.raises(KeyError, match="mine"):
                await linker.call(fail)

    anyio.run(main, backend=backend)


def test_asyncio_cancels_by_its_own_means() -> None:
    """`wait_for`, `task.cancel()` and a task group that fails end the guest code that a task waits for."""

    async def main() -> None:
        async with dl.open_linker(None, memory=SHARED) as linker:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(linker.call(calls("spin")), 0.05)
            task = asyncio.create_task(linker.call(calls("wait")))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            results = await asyncio.gather(*(linker.call(calls("add", n, n)) for n in range(8)))
            assert results == [2 * n for n in range(8)]

    started = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - started < 30


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_ends_asyncio_and_the_guest() -> None:
    """One SIGINT ends a loop whose task computes in the guest, with KeyboardInterrupt and no warning."""
    code = f"""
import asyncio, dl
wasm = bytes.fromhex({LIB.hex()!r})
async def main():
    async with dl.open_linker(None, memory=dl.MemoryType(1, 1000, shared=True)) as linker:
        def spin(group):
            lib = group.library(wasm, name="l.so")
            print("spins", flush=True)
            lib.spin()
        await linker.call(spin)
asyncio.run(main())
"""
    process = subprocess.Popen(
        [sys.executable, "-X", "dev", "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "spins\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=40)

    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert "Warning" not in errors
    assert "never" not in errors


def test_asyncio_loses_no_cancellation() -> None:
    """A task that only makes short calls ends when it is cancelled, whenever that comes, and when its time is over."""

    async def main() -> None:
        async with dl.open_linker(None, memory=SHARED) as linker:

            async def for_ever() -> None:
                while True:
                    await linker.call(calls("add", 1, 2))

            for turn in range(20):
                task = asyncio.create_task(for_ever())
                await asyncio.sleep(turn / 1000)
                task.cancel()
                ended, _ = await asyncio.wait([task], timeout=10)
                assert ended
                assert task.cancelled()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(for_ever(), 0.015)

    asyncio.run(main())


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("fails", [False, True])
def test_what_ends_after_its_cancellation_is_cancelled(backend: str, fails: bool) -> None:
    """A function of the host that cannot be stopped is waited for; then its result is lost, and its error is the cause."""
    begun = threading.Event()
    ended = []

    def work(group: dl.InstanceGroup) -> str:
        begun.set()
        until_interrupted(group)
        ended.append(True)
        if fails:
            raise KeyError("mine")
        return "a result"

    async def main() -> None:
        async with dl.open_linker(None, memory=SHARED) as linker:
            result, cause = None, None

            async def cancel() -> None:
                assert await anyio.to_thread.run_sync(begun.wait, SECONDS)
                scope.cancel()

            async with anyio.create_task_group() as tasks:
                with anyio.CancelScope() as scope:
                    tasks.start_soon(cancel)
                    try:
                        result = await linker.call(work)
                    except anyio.get_cancelled_exc_class() as cancelled:
                        cause = cancelled.__cause__
                        raise
            assert scope.cancelled_caught
            assert ended == [True]
            assert result is None
            assert isinstance(cause, KeyError) is fails
            assert await linker.call(calls("add", 2, 3)) == 5

    anyio.run(main, backend=backend)


def test_wait_for_reports_its_time_though_the_function_returned() -> None:
    """`asyncio.wait_for` raises for what returned too late."""

    async def main() -> None:
        async with dl.open_linker(None, memory=SHARED) as linker:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(linker.call(until_interrupted), 0.02)

    asyncio.run(main())


def test_a_cancellation_that_comes_too_late_does_not_concern_the_next_call() -> None:
    """The main group's work has ended, but the loop has not noticed, when the task is cancelled: the next call runs."""

    async def main() -> None:
        make = lambda: dl.Linker(ONE, interrupts=True)  # noqa: E731
        async with dl.open_linker(make) as linker:
            begun = threading.Event()
            task = asyncio.create_task(linker.main_call(lambda _group: begun.set()))
            while not begun.is_set():
                await asyncio.sleep(0)
            until(lambda: linker.linker.main_group.own.owner == NO_THREAD)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await linker.main_call(lambda group: group.dlsym(dl.MAIN_HANDLE, "one")()) == 1

    asyncio.run(main())
