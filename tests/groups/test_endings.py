"""Every way to end a program, or a thread of it, against everything a thread can be doing: each ends in bounded time.

A *state* is a function that brings the calling thread somewhere it never leaves by itself.
An *ending* has a thread of the right kind go there, and ends it.

| ending | whose thread is in the state |
| --- | --- |
| main returns from `_start` | the guest's |
| `proc_exit` in another thread | the guest's |
| `linker.close()` | the host's, and the guest's |
| `HostThread.cancel` | the host's |
| a trio scope is cancelled | trio's |
| Ctrl-C | the main thread itself |
| Ctrl-C while `_start` runs | the guest's, with the main thread in a wait |

Combinations that make no sense are skipped, with the reason.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio

import dl
from tests.support.groups import until
from tests.support.modules import (
    SHARED_MEMORY,
    constructor,
    data,
    imports,
    pie,
)
from tests.support.modules import library as wat_library

pytestmark = pytest.mark.timeout(40)

DEADLINE_SECONDS = 10
"""What no ending takes. Nearly all are over in milliseconds; host functions that do not return have five seconds."""

STACKS, STACK_BYTES, MALLOC_STOPS, HEAP = 1024, 1024, 512, 65536

MAIN = pie(
    imports("main_body", "", "env"),
    imports("thread_body", "(param i32)", "env"),
    imports("spawn", "(param i32) (result i32)", "env").replace('"env" "spawn"', '"wasi" "thread-spawn"'),
    '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))',
    '(import "wasix_32v1" "futex_wait" (func $futex_wait (param i32 i32 i32 i32) (result i32)))',
    data("words", 0),
    '(func (export "_start") call $main_body)',
    """(func (export "wasi_thread_start") (param i32 i32)
        (global.set $sp (i32.load (local.get 1)))
        (call $thread_body (local.get 1)))""",
    '(func (export "start") (param i32) (result i32) (call $spawn (local.get 0)))',
    '(func (export "exit") (param i32) (call $exit (local.get 0)))',
    '(func (export "spin") (param i32) (i32.atomic.store (local.get 0) (i32.const 1)) (loop (br 0)))',
    '(func (export "futex") (param i32) (drop (call $futex_wait (local.get 0) (i32.const 0) (i32.const 0) (local.get 0))))',
    """(func (export "wait") (param i32)
        (drop (memory.atomic.wait32 (local.get 0) (i32.const 0) (i64.const -1))))""",
    # An allocator that never frees, and computes for ever when it is told to.
    f"(global $heap (mut i32) (i32.const {1 << 20}))",
    f"""(func (export "malloc") (param i32) (result i32) (local $at i32)
        (if (i32.load (i32.add (global.get $memory_base) (i32.const {MALLOC_STOPS})))
          (then (i32.atomic.store (i32.add (global.get $memory_base) (i32.const {MALLOC_STOPS + 4})) (i32.const 1))
                (loop (br 0))))
        (local.set $at (i32.atomic.rmw.add (i32.add (global.get $memory_base) (i32.const {MALLOC_STOPS + 8}))
                         (i32.and (i32.add (local.get 0) (i32.const 31)) (i32.const -16))))
        (i32.add (i32.const {1 << 20}) (local.get $at)))""",
    '(func (export "free") (param i32))',
    shared=True,
    memory_size=STACKS + 32 * STACK_BYTES,
    memory_align=4,
)  # fmt: skip

# Its start function asks the host whether it is to end.
STARTS = wat_library(
    SHARED_MEMORY,
    imports("goes_on", "(result i32)"),
    "(func $start (if (call $goes_on) (then (loop (br 0)))))",
    "(start $start)",
    '(func (export "x") (result i32) i32.const 5)',
    memory_size=16,
)
CONSTRUCTS = wat_library(
    SHARED_MEMORY,
    imports("goes_on", "(result i32)"),
    constructor("(if (call $goes_on) (then (loop (br 0))))"),
)
PLAIN = wat_library(SHARED_MEMORY, data("x", 0), memory_size=16)


class Stop(Exception):
    """What threads are cancelled with."""


class World:
    """A program whose threads do what a test says.

    Attributes:
        linker: it.
        enter: what threads in the state do; gets the thread's group.
        body: what the main module's `_start` does.
        endless: names of groups in which start functions and constructors do not end; None for all.
        inside: set when such a function was reached.
        errors: what `enter` raised in threads of the guest.
    """

    def __init__(self, state: State, **options: Any) -> None:
        self.enter: Callable[[dl.InstanceGroup], object] = lambda group: state.enter(self, group)
        self.body: Callable[[dl.InstanceGroup], object] = lambda _group: None
        self.endless: Callable[[str], bool] = lambda _name: True
        self.inside = threading.Event()
        self.entered = threading.Event()
        self.errors: list[BaseException] = []
        self.records = 0
        self.bodies: dict[int, Callable[[dl.InstanceGroup], object]] = {}
        if state.allocator:
            options["side_memory"] = "allocator"
        self.linker = dl.Linker(
            MAIN,
            name="main.wasm",
            memory=dl.MemoryType(minimum=64, maximum=65536, shared=True),
            imports={
                "env": {
                    "main_body": lambda: self.body(self.here()) and None,
                    "thread_body": self.run_thread,
                    "goes_on": self.goes_on,
                }
            },
            **options,
        )
        # The test itself is somebody who may still act: no wait is a deadlock.
        self._promise = contextlib.ExitStack()
        self._promise.enter_context(self.linker.program.waits.outsider())
        self.words = self.linker.main_group.dlsym(dl.MAIN_HANDLE, "words").address

    def here(self) -> dl.InstanceGroup:
        return self.linker.own.view(self.linker.parts.groups.current())

    def goes_on(self) -> int:
        if not self.endless(self.here().name):
            return 0
        self.inside.set()
        return 1

    def run_thread(self, record: int) -> None:
        try:
            self.bodies[record](self.here())
        except BaseException as error:
            self.errors.append(error)
            raise

    def start(self, group: dl.InstanceGroup, body: Callable[[dl.InstanceGroup], object]) -> int:
        """Have the guest start a thread that runs `body(group)`; returns its number, or minus an errno."""
        self.records += 1
        record = self.words + STACKS + STACK_BYTES * self.records
        self.linker.memory.write_u32(record, record)
        self.bodies[record] = body
        return int(self.call(group, "start", record))

    def call(self, group: dl.InstanceGroup, name: str, *arguments: int) -> Any:
        return group.dlsym(dl.MAIN_HANDLE, name)(*arguments)

    def until_waiting(self, what: str) -> None:
        until(lambda: any(what in wait for _, wait in self.linker.program.waits.waiting()))

    def until_word(self, offset: int) -> None:
        until(lambda: self.linker.memory.read_u32(self.words + offset))


class State:
    """Something a thread is doing; the base class computes.

    Attributes:
        allocator: whether side modules' memory comes from the program's `malloc`.
        begun: called in the thread in the state.
    """

    allocator = False
    bystanders: tuple[str, ...] = ()

    def enter(self, world: World, group: dl.InstanceGroup) -> None:
        """Get into the state, in the calling thread."""
        world.call(group, "spin", world.words)

    def entered(self, world: World) -> None:
        """Wait, in another thread, until that thread is in the state."""
        world.until_word(0)


class Futex(State):
    def enter(self, world: World, group: dl.InstanceGroup) -> None:
        world.call(group, "futex", world.words + 16)

    def entered(self, world: World) -> None:
        world.until_waiting("futex")


class AtomicWait(Futex):
    def enter(self, world: World, group: dl.InstanceGroup) -> None:
        world.call(group, "wait", world.words + 16)


class StartFunction(State):
    def enter(self, world: World, group: dl.InstanceGroup) -> None:
        group.dlopen(STARTS, name="starts.so")

    def entered(self, world: World) -> None:
        assert world.inside.wait(DEADLINE_SECONDS)


class Constructor(StartFunction):
    def enter(self, world: World, group: dl.InstanceGroup) -> None:
        group.dlopen(CONSTRUCTS, name="constructs.so")


class Replay(StartFunction):
    """The library is loaded by a third thread, in which its start function ends."""

    def enter(self, world: World, group: dl.InstanceGroup) -> None:
        world.endless = lambda name: name == group.name
        world.call(group, "free", 0)  # up to date, and known
        with_group = world.linker.spawn(lambda g: g.dlopen(STARTS, name="starts.so"), name="loads")
        with_group.own.thread_done.wait(DEADLINE_SECONDS)
        world.call(group, "free", 0)


class Malloc(State):
    allocator = True

    def enter(self, world: World, group: dl.InstanceGroup) -> None:
        world.linker.memory.write_u32(world.words + MALLOC_STOPS, 1)
        group.dlopen(PLAIN, name="plain.so")

    def entered(self, world: World) -> None:
        world.until_word(MALLOC_STOPS + 4)


class StartingThread(StartFunction):
    """The new thread's group cannot be made: the start function of a library does not end there."""

    def enter(self, world: World, group: dl.InstanceGroup) -> None:
        world.endless = lambda name: name.startswith("thread ") and name != group.name
        group.dlopen(STARTS, name="starts.so")
        world.start(group, lambda _group: None)


class HostJoins(State):
    """A host function waits for a thread that computes."""

    def enter(self, world: World, group: dl.InstanceGroup) -> None:
        other = world.linker.spawn(lambda g: world.call(g, "spin", world.words), name="spins")
        other.join()


class HostSwallows(State):
    """A host function swallows what ends its thread, once, and the guest computes on."""

    def enter(self, world: World, group: dl.InstanceGroup) -> None:
        try:
            world.call(group, "spin", world.words)
        except (dl.DlError, Stop, KeyboardInterrupt):
            world.call(group, "spin", world.words + 4)


class OtherConstructs(StartFunction):
    """Another thread runs the constructors of the library, for ever."""

    load = CONSTRUCTS
    waits_for = "constructors"

    def enter(self, world: World, group: dl.InstanceGroup) -> None:
        world.endless = lambda name: name == "loads"
        world.linker.spawn(lambda g: g.dlopen(self.load, name="other.so"), name="loads")
        assert world.inside.wait(DEADLINE_SECONDS)
        group.dlopen(self.load, name="other.so")

    def entered(self, world: World) -> None:
        super().entered(world)
        world.until_waiting(self.waits_for)


class OtherArrives(OtherConstructs):
    """Another thread is in the start function of the library, which arrives for ever."""

    load = STARTS


STATES: dict[str, State] = {
    "computing": State(),
    "futex": Futex(),
    "atomic wait": AtomicWait(),
    "start function": StartFunction(),
    "constructor": Constructor(),
    "replay": Replay(),
    "malloc": Malloc(),
    "starting a thread": StartingThread(),
    "host function that joins": HostJoins(),
    "host function that swallows": HostSwallows(),
    "waits for constructors": OtherConstructs(),
    "waits for an arriving load": OtherArrives(),
}


@pytest.fixture(name="state", params=STATES)
def _state(request: pytest.FixtureRequest) -> State:
    return STATES[request.param]


@pytest.fixture(name="world")
def _world(state: State) -> Iterator[World]:
    world = World(state)
    yield world
    within_deadline(world.linker.close)


def within_deadline(end: Callable[[], Any]) -> Any:
    """Call something that must not take long."""
    started = time.monotonic()
    try:
        return end()
    finally:
        taken = time.monotonic() - started
        assert taken < DEADLINE_SECONDS, f"it took {taken:.1f} s"


def interrupted_when(world: World, state: State) -> threading.Thread:
    """Start a thread that sends SIGINT once the state is reached.

    The kernel is made to deliver it to that thread, as it may: the main thread's system call is not cut short then.
    """

    def watch() -> None:
        state.entered(world)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


class TestMatrix:
    def test_main_returns(self, world: World, state: State) -> None:
        """When `_start` returns, `run` returns 0, whatever threads of the guest are doing."""

        def body(group: dl.InstanceGroup) -> None:
            assert world.start(group, world.enter) > 0
            state.entered(world)

        world.body = body
        assert within_deadline(world.linker.main_group.run) == 0
        assert [type(error) for error in world.errors if not isinstance(error, dl.DlError)] == []

    def test_proc_exit(self, world: World, state: State) -> None:
        """`proc_exit` in one thread ends the program with its code, whatever the others are doing."""

        ready = threading.Event()

        def exits(group: dl.InstanceGroup) -> None:
            ready.set()
            state.entered(world)
            world.call(group, "exit", 7)

        def body(group: dl.InstanceGroup) -> None:
            # It has its group before: in some states no new one can be made.
            world.linker.spawn(exits, name="exits")
            assert ready.wait(DEADLINE_SECONDS)
            assert world.start(group, world.enter) > 0
            world.call(group, "wait", world.words + 32)

        world.body = body
        assert within_deadline(world.linker.main_group.run) == 7

    def test_close(self, world: World, state: State) -> None:
        """`close` ends threads of the host, whatever they are doing, with an error that says so."""
        thread = world.linker.spawn(world.enter, name="thread 1000")
        state.entered(world)

        within_deadline(world.linker.close)
        with pytest.raises(dl.DlError, match="closed"):
            thread.join(0)

    def test_close_with_threads_of_the_guest(self, world: World, state: State) -> None:
        """`close` ends threads of the guest, whatever they are doing."""
        assert world.start(world.linker.main_group, world.enter) > 0
        state.entered(world)

        within_deadline(world.linker.close)
        assert [type(error) for error in world.errors] == [dl.LinkerClosedError]

    def test_cancel(self, world: World, state: State) -> None:
        """A thread of the host can be cancelled, whatever it is doing, and raises what it was cancelled with."""
        thread = world.linker.spawn(world.enter, name="thread 1000")
        state.entered(world)
        thread.cancel(Stop())
        if isinstance(state, HostSwallows):
            until(lambda: world.linker.memory.read_u32(world.words + 4))
            thread.cancel(Stop())

        with pytest.raises(Stop):
            within_deadline(lambda: thread.join(DEADLINE_SECONDS))

    def test_trio(self, state: State) -> None:
        """A cancelled trio scope ends, whatever the guest is doing on its worker thread, and so does the linker."""

        def make() -> World:
            world = World(state)
            world.linker.parts.groups.park(world.linker.main_group.own)
            return world

        async def main() -> None:
            world = await trio.to_thread.run_sync(make)
            linker = dl.TrioLinker(world.linker, None)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: linker.call(world.enter, name="thread 1000"))
                await trio.to_thread.run_sync(state.entered, world)
                nursery.cancel_scope.cancel()
            assert nursery.cancel_scope.cancelled_caught
            await trio.to_thread.run_sync(world.linker.close)

        if isinstance(state, HostSwallows):
            pytest.skip("an order to stop is given once, so a function that swallows it is not stopped")
        within_deadline(lambda: trio.run(main))

    def test_ctrl_c(self, world: World, state: State) -> None:
        """Ctrl-C ends what the main thread is doing with KeyboardInterrupt."""
        if isinstance(state, HostSwallows):
            pytest.skip("who swallows a KeyboardInterrupt has it")
        watcher = interrupted_when(world, state)
        with pytest.raises(KeyboardInterrupt):
            within_deadline(lambda: world.enter(world.linker.main_group))
        watcher.join(DEADLINE_SECONDS)

    def test_ctrl_c_with_threads_of_the_guest(self, world: World, state: State) -> None:
        """Ctrl-C while the main thread waits ends `run`, whatever threads of the guest are doing."""

        def body(group: dl.InstanceGroup) -> None:
            assert world.start(group, world.enter) > 0
            world.call(group, "wait", world.words + 32)

        world.body = body
        watcher = interrupted_when(world, state)
        with pytest.raises(KeyboardInterrupt):
            within_deadline(world.linker.main_group.run)
        watcher.join(DEADLINE_SECONDS)
