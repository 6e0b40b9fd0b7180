"""trio tasks run guest code on worker threads, and cancelling a scope stops it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio

import dl

wasmtime = pytest.importorskip("wasmtime")

FIXTURES = Path(__file__).parent.parent / "fixtures"
SPIN = """
(module
  (import "env" "memory" (memory 1 65536 shared))
  (func (export "spin") (loop (i32.atomic.store (i32.const 4096) (i32.const 1)) (br 0)))
  (func (export "wait") (drop (memory.atomic.wait32 (i32.const 4100) (i32.const 0) (i64.const -1))))
  (func (export "wake") (result i32) (memory.atomic.notify (i32.const 4100) (i32.const 1)))
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))
"""


def library(text: str) -> bytes:
    """Return a side module from text: a module with a dylink.0 section that asks for nothing."""
    wasm = bytes(wasmtime.wat2wasm(text))
    section = b"\x08dylink.0\x01\x04\0\0\0\0"
    return wasm[:8] + b"\0" + bytes([len(section)]) + section + wasm[8:]


def call(name: str, *arguments: int) -> Callable[..., Any]:
    """Return what opens the library in a group and calls one of its functions."""

    def run(group: dl.InstanceGroup) -> Any:
        handle = group.dlopen(library(SPIN), name="spin")
        return group.dlsym(handle, name)(*arguments)

    return run


def open_libraries_only() -> AbstractAsyncContextManager[dl.TrioLinker]:
    return dl.open_linker(None, memory=dl.MemoryType(shared=True))


@pytest.mark.parametrize("name", ["spin", "wait"])
def test_cancelling_a_scope_stops_guest_code_that_runs_or_waits(name: str) -> None:
    """A cancelled scope ends although the guest would compute, or wait, for ever; the linker stays usable."""

    async def main() -> None:
        async with open_libraries_only() as linker:
            with trio.move_on_after(0.05) as scope:
                await linker.call(call(name))

            assert scope.cancelled_caught
            assert await linker.call(call("add", 2, 3)) == 5

    trio.run(main)


def test_a_full_limiter_starves_no_barrier() -> None:
    """With one token, which a spinning guest holds, another group's load still commits."""

    async def main() -> None:
        limiter = anyio.CapacityLimiter(1)
        async with (
            dl.open_linker(None, memory=dl.MemoryType(shared=True), limiter=limiter) as linker,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(linker.call, call("spin"))
            while not await trio.to_thread.run_sync(lambda: linker.linker.memory.read_u32(4096)):
                await trio.lowlevel.checkpoint()

            def load() -> None:
                with linker.linker.attach() as group:
                    group.dlopen(library(SPIN), name="again")

            await trio.to_thread.run_sync(load)
            assert len(linker.linker.modules) == 2
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_tasks_of_a_nursery_run_guest_code_side_by_side() -> None:
    """Twelve tasks wait in the guest at once, more than would fit a small pool, until others wake them."""

    async def main() -> None:
        async with open_libraries_only() as linker:
            ended = []

            async def wait() -> None:
                await linker.call(call("wait"))
                ended.append(1)

            async with trio.open_nursery() as nursery:
                for _ in range(12):
                    nursery.start_soon(wait)
                while len(ended) < 12:
                    await linker.call(call("wake"))

    trio.run(main)


def test_what_a_function_raises_reaches_its_task() -> None:
    """An exception of the function is raised, the same object, by the call that ran it."""
    error = KeyError("mine")

    async def main() -> None:
        async with open_libraries_only() as linker:

            def fail(_group: dl.InstanceGroup) -> None:
                raise error

            with pytest.raises(KeyError) as caught:
                await linker.call(fail)
            assert caught.value is error

    trio.run(main)


def test_a_program_runs_and_its_threads_end_with_it() -> None:
    """A threaded program runs under trio to its exit code."""
    out: list[bytes] = []
    shared = FIXTURES / "threads" / "shared"

    async def main() -> int:
        async with dl.open_linker(shared / "basics.wasm", stdout=out.append, library_path=[shared]) as linker:
            return await linker.run()

    assert trio.run(main) == 0
    assert b"".join(out)


def test_calls_that_are_cancelled_before_their_turn_leave_nothing_to_wait_for() -> None:
    """The linker closes although calls were cancelled while they waited for the limiter."""

    async def main() -> None:
        limiter = anyio.CapacityLimiter(1)
        memory = dl.MemoryType(shared=True)
        async with dl.open_linker(None, memory=memory, limiter=limiter) as linker:
            with trio.move_on_after(0.1):
                async with trio.open_nursery() as nursery:
                    for _ in range(4):
                        nursery.start_soon(linker.call, call("spin"))

            assert await linker.call(call("add", 2, 3)) == 5

    trio.run(main)


def test_the_main_group_serves_programs_whose_memory_is_not_shared() -> None:
    """With one group only, calls run in it on a worker thread, one after the other."""
    wat = '(module (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))'

    def add(group: dl.InstanceGroup) -> int:
        return group.dlsym(group.dlopen(library(wat), name="adder"), "add")(2, 3)

    async def main() -> None:
        async with dl.open_linker(None) as linker:
            assert [await linker.main_call(add) for _ in range(3)] == [5, 5, 5]

    trio.run(main)
