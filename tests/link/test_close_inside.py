"""Closing libraries while threads are inside guest code: memory rests for those alone who are inside the library's own code."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import dl
from tests.support.groups import SECONDS, until
from tests.support.modules import SHARED_MEMORY, data, library

SIZE = 4096
MEMORY = dl.MemoryType(minimum=8, maximum=512, shared=True)

PLUGIN = library(
    SHARED_MEMORY,
    '(import "env" "__memory_base" (global $mb i32))',
    '(import "env" "pause" (func $pause))',
    """(func (export "work") (result i32) (i32.store (global.get $mb) (i32.const 99)) (call $pause)
        (i32.load (global.get $mb)))""",
    memory_size=SIZE,
)
OTHER = library(SHARED_MEMORY, data("x", 0), memory_size=SIZE)
# Code of the program, which threads need not leave.
STAYS = library(
    SHARED_MEMORY,
    '(import "env" "pause" (func $pause))',
    '(func (export "call_host") (call $pause))',
    '(func (export "spin") (param i32) (loop (i32.atomic.store (local.get 0) (i32.const 1)) (br 0)))',
)


class World:
    """A program in which the guest calls `pause`, which a test decides about."""

    def __init__(self) -> None:
        self.pause: Callable[[], object] = lambda: None
        self.linker = dl.Linker(
            None,
            memory=MEMORY,
            libraries={"plugin.so": PLUGIN, "other.so": OTHER},
            imports={"env": {"pause": lambda: self.pause() and None}},
        )
        self.group = self.linker.main_group
        self.stays = self.group.dlopen(STAYS, name="stays.so")
        if not self.linker.engine.capabilities.stack_inspection:
            self.linker.close()
            pytest.skip("the engine does not show a thread's stack")
        self.side_bytes = lambda: self.linker.statistics().side_bytes

    def inside(self, work: Callable[[], Any]) -> Any:
        """Do something in a host function that the program's own code calls; returns what it returns."""
        box: list[Any] = []
        self.pause = lambda: box.append(work())
        self.group.dlsym(self.stays, "call_host")()
        return box[0]


@pytest.fixture(name="world")
def _world() -> Iterator[World]:
    world = World()
    yield world
    world.linker.close()


def test_a_thread_that_never_leaves_guest_code_gives_memory_back(world: World) -> None:
    """What a program opens and closes in its own loop leaves nothing behind, though its code is on the stack all the time."""

    def cycles() -> list[int]:
        sizes = []
        for _ in range(20):
            handle = world.group.dlopen("plugin.so")
            world.group.dlclose(handle)
            sizes.append(world.side_bytes())
        return sizes

    assert world.inside(cycles) == [0] * 20


def test_a_thread_that_has_returned_from_a_closed_library_gives_its_memory_back(world: World) -> None:
    """Libraries that close themselves, one after the other, in a loop of the program."""

    def cycles() -> list[int]:
        sizes = []
        for _ in range(20):
            handle = world.group.dlopen("plugin.so")
            work = world.group.dlsym(handle, "work")
            world.pause = lambda handle=handle: world.group.dlclose(handle)  # type: ignore[misc]
            assert work() == 99
            sizes.append(world.side_bytes())
        return sizes

    assert max(world.inside(cycles)) <= SIZE


def test_a_thread_inside_the_library_keeps_its_memory(world: World) -> None:
    """A library that is closed below its own function keeps its data until that has returned, whoever else comes."""
    handle = world.group.dlopen("plugin.so")
    work = world.group.dlsym(handle, "work")
    seen: list[int] = []

    def close() -> None:
        world.group.dlclose(handle)
        for _ in range(3):
            other = world.group.dlopen("other.so")
            world.linker.memory.write(world.group.dlsym(other, "x").address, b"\1\2\3\4")
            seen.append(world.side_bytes())
            world.group.dlclose(other)

    world.pause = close
    assert work() == 99
    assert seen == [2 * SIZE] * 3
    assert world.side_bytes() == 0


def test_another_thread_that_computes_elsewhere_holds_nothing_up(world: World) -> None:
    """A thread that computes for ever in other code finds that it is not inside, at its safe point."""
    word = world.group.dlopen("other.so")
    at = world.group.dlsym(word, "x").address
    thread = world.linker.spawn(lambda own: own.dlsym(world.stays, "spin")(at), name="spins")
    until(lambda: world.linker.memory.read_u32(at))

    before = world.side_bytes()
    handle = world.group.dlopen("plugin.so")
    assert world.side_bytes() == before + SIZE
    world.group.dlclose(handle)
    until(lambda: world.side_bytes() == before)

    thread.cancel(InterruptedError())
    with pytest.raises(InterruptedError):
        thread.join(SECONDS)


def test_another_thread_inside_the_library_keeps_its_memory(world: World) -> None:
    """A library whose function another thread runs keeps its data until that thread has returned from it."""
    inside, go = threading.Event(), threading.Event()

    def wait() -> None:
        inside.set()
        assert go.wait(SECONDS)

    world.pause = wait
    handle = world.group.dlopen("plugin.so")
    thread = world.linker.spawn(lambda own: own.dlsym(handle, "work")(), name="works")
    assert inside.wait(SECONDS)
    before = world.side_bytes()
    world.group.dlclose(handle)
    other = world.group.dlopen("other.so")
    world.linker.memory.write(world.group.dlsym(other, "x").address, b"\1\2\3\4")
    assert world.side_bytes() == before + SIZE

    go.set()
    assert thread.join(SECONDS) == 99
    assert world.side_bytes() == SIZE


def test_a_library_below_other_calls_keeps_its_memory(world: World) -> None:
    """The library's function is found on the stack also below host functions that have called the guest again."""
    handle = world.group.dlopen("plugin.so")
    work, call_host = world.group.dlsym(handle, "work"), world.group.dlsym(world.stays, "call_host")
    seen: list[int] = []

    def close() -> None:
        world.group.dlclose(handle)
        other = world.group.dlopen("other.so")
        world.linker.memory.write(world.group.dlsym(other, "x").address, b"\1\2\3\4")
        seen.append(world.side_bytes())

    def call_again() -> None:
        world.pause = close
        call_host()

    world.pause = call_again
    assert work() == 99
    assert seen == [2 * SIZE]
    assert world.side_bytes() == SIZE
