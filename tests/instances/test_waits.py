"""Atomic waits of instances: every wait ends, and holds up nothing."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import dl
from tests.support.engines import need
from tests.support.modules import SHARED_MEMORY, library, module, returns

WAITS = (
    '(func (export "wait32") (param i32 i32 i64) (result i32)'
    " (memory.atomic.wait32 offset=4 (local.get 0) (local.get 1) (local.get 2)))",
    '(func (export "wait64") (param i32 i64 i64) (result i32)'
    " (memory.atomic.wait64 (local.get 0) (local.get 1) (local.get 2)))",
    '(func (export "notify") (param i32 i32) (result i32)'
    " (memory.atomic.notify offset=4 (local.get 0) (local.get 1)))",
)  # fmt: skip
ON_PROGRAMS = module('(import "env" "memory" (memory 1 65536 shared))', *WAITS)
ON_HOSTS = module('(import "host" "memory" (memory 1 4 shared))', *WAITS, "(table 1 funcref)")
PROGRAMS, HOSTS = "the program's memory", "a memory of the host's"


@pytest.fixture(name="linker")
def _linker() -> Iterator[dl.Linker]:
    with dl.Linker(None, cache=False, memory=dl.MemoryType(1, 512, shared=True)) as linker:
        yield linker


def made(linker: dl.Linker, which: str) -> dl.Instance:
    if which == PROGRAMS:
        return linker.instantiate(ON_PROGRAMS)
    return linker.instantiate(ON_HOSTS, [linker.new_memory(1, 4, shared=True)])


def eventually(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def waiting(linker: dl.Linker) -> int:
    return sum(what.startswith("futex") for _, what in linker.parts.program.waits.waiting())


@pytest.mark.parametrize("which", [PROGRAMS, HOSTS])
class TestEnds:
    """A wait without a limit in an instance's function."""

    def test_notified(self, linker: dl.Linker, which: str) -> None:
        """It is woken by a notify at its address in another thread, which counts it, and by none at another address."""
        instance = made(linker, which)
        thread = linker.spawn(lambda _group: instance["wait32"](4, 0, -1))
        eventually(lambda: waiting(linker) == 1)
        assert [instance["notify"](8, 9), instance["notify"](4, 9), instance["notify"](4, 9)] == [0, 1, 0]
        assert thread.join(20) == 0

    def test_a_load_meanwhile(self, linker: dl.Linker, which: str) -> None:
        """Another thread instantiates and opens while it waits, and the thread that waited has what was made."""
        instance = made(linker, which)

        def work(_group: dl.InstanceGroup) -> int:
            assert instance["wait64"](8, 0, -1) == 0
            return int(new["f"]())

        thread = linker.spawn(work)
        eventually(lambda: waiting(linker) == 1)
        new = linker.instantiate(module(returns("f", 7)))
        assert linker.spawn(lambda _group: new["f"]()).join(20) == 7
        assert waiting(linker) == 1
        assert instance["notify"](4, 1) == 1
        assert thread.join(20) == 7

    def test_closed(self, which: str) -> None:
        """The linker's close ends it."""
        errors: list[BaseException] = []
        with dl.Linker(None, cache=False, memory=dl.MemoryType(1, 512, shared=True)) as linker:
            instance = made(linker, which)

            def work(_group: dl.InstanceGroup) -> None:
                try:
                    instance["wait32"](4, 0, -1)
                except BaseException as error:
                    errors.append(error)
                    raise

            linker.spawn(work)
            eventually(lambda: waiting(linker) == 1)
            began = time.monotonic()
        assert time.monotonic() - began < 10
        assert isinstance(errors[0], dl.LinkerClosedError)

    def test_nobody_is_left_to_wake_it(self, linker: dl.Linker, which: str) -> None:
        """In the only thread it is a deadlock, which is said."""
        instance = made(linker, which)
        with pytest.raises(dl.ProgramDeadlockedError, match="futex 0x8"):
            instance["wait32"](4, 0, -1)

    def test_results_and_traps(self, linker: dl.Linker, which: str) -> None:
        """Unequal is 1, a limit that is over 2, and addresses that are not aligned or out of bounds trap."""
        instance = made(linker, which)
        assert instance["wait32"](4, 1, -1) == 1
        assert instance["wait64"](8, 1, -1) == 1
        assert instance["wait32"](4, 0, 1000) == 2
        assert instance["wait64"](8, 0, 0) == 2
        for address in (5, -4):
            for call in (
                lambda a=address: instance["wait32"](a, 0, 0),
                lambda a=address: instance["notify"](a, 0),
            ):
                with pytest.raises(dl.TrapError):
                    call()

    def test_cancelled(self, which: str) -> None:
        """A task's cancellation ends the call that waits, and the linker goes on."""

        async def main() -> None:
            async with dl.open_linker(None, memory=dl.MemoryType(1, 512, shared=True), cache=False) as linker:
                instance = await linker.call(lambda group: made(group.linker, which))
                task = asyncio.create_task(linker.call(lambda _group: instance["wait32"](4, 0, -1)))
                await asyncio.sleep(0.1)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await linker.call(lambda _group: instance["wait32"](4, 1, -1)) == 1

        began = time.monotonic()
        asyncio.run(main())
        assert time.monotonic() - began < 20


def test_a_library_wakes_an_instance_on_the_same_memory(linker: dl.Linker) -> None:
    """Rewritten libraries and instances wait in one table: each wakes the other."""
    instance = linker.instantiate(ON_PROGRAMS)
    handle = linker.main_group.dlopen(library(SHARED_MEMORY, *WAITS))
    at = 4096
    thread = linker.spawn(lambda _group: instance["wait32"](at, 0, -1))
    eventually(lambda: waiting(linker) == 1)
    assert linker.main_group.dlsym(handle, "notify")(at, 1) == 1
    assert thread.join(20) == 0
    thread = linker.spawn(lambda group: group.dlsym(handle, "wait32")(at, 0, -1))
    eventually(lambda: waiting(linker) == 1)
    assert instance["notify"](at, 1) == 1
    assert thread.join(20) == 0


def test_programs_wake_each_other_on_one_memory(linker: dl.Linker) -> None:
    """Threads of two linkers wait on one memory of the host's; a notify in either counts and wakes those of both."""
    memory = linker.new_memory(1, 4, shared=True)
    first = linker.instantiate(ON_HOSTS, [memory])
    with dl.Linker(None, cache=False, memory=dl.MemoryType(1, 512, shared=True)) as other:
        second = other.instantiate(ON_HOSTS, [memory])
        threads = [
            linker.spawn(lambda _group: first["wait32"](4, 0, -1)),
            other.spawn(lambda _group: second["wait32"](4, 0, -1)),
        ]
        eventually(lambda: waiting(linker) == 1 == waiting(other))
        assert second["notify"](4, 9) == 2
        assert [thread.join(20) for thread in threads] == [0, 0]

        def wake(_group: dl.InstanceGroup) -> int:
            eventually(lambda: waiting(linker) == 1)
            return int(second["notify"](4, 1))

        waker = other.spawn(wake)
        # Alone in its program it is no deadlock, since the other may wake it.
        assert first["wait32"](4, 0, -1) == 0
        assert waker.join(20) == 1
    with pytest.raises(dl.ProgramDeadlockedError):
        first["wait32"](4, 0, -1)


def test_a_start_function_waits_as_others(linker: dl.Linker) -> None:
    """A start function runs once for each thread, with its waits in place, and its trap is a failed instantiation."""
    memory = linker.new_memory(1, 4, shared=True)
    wait = "(memory.atomic.wait32 (i32.const 0) (i32.const 0) (i64.const 1000))"
    count = "(drop (i32.atomic.rmw.add (i32.const 8) (i32.const 1)))"
    fields = '(import "host" "memory" (memory 1 4 shared))', returns("f", 1)
    instance = linker.instantiate(
        module(*fields, f"(func $s {count} (if (i32.ne {wait} (i32.const 2)) (then unreachable)))", "(start $s)"), [memory]
    )  # fmt: skip
    assert linker.spawn(lambda _group: instance["f"]()).join(20) == 1
    assert memory.data.read_u32(8) == 2
    assert sorted(instance.exports) == ["f"]
    with pytest.raises(dl.InitializationError, match="unreachable"):
        linker.instantiate(module(*fields, f"(func $s (drop {wait}) unreachable)", "(start $s)"), [memory])
    forever = "(memory.atomic.wait32 (i32.const 0) (i32.const 0) (i64.const -1))"
    with pytest.raises(dl.DlError, match="futex"):
        linker.instantiate(module(*fields, f"(func $s (drop {forever}))", "(start $s)"), [memory])
    assert instance["f"]() == 1


def test_memories_of_64_bits_and_of_its_own() -> None:
    """In a program of one thread: a module's own shared memory, one with 64-bit addresses, and each by its index."""
    need("memory64")
    with dl.Linker(None, cache=False) as linker:
        far = linker.new_memory(1, 4, shared=True, is64=True)
        far.data.write_u32(16, 5)
        instance = linker.instantiate(
            module(
                '(import "host" "far" (memory i64 1 4 shared))', "(memory $own 1 1 shared)",
                '(func (export "far") (param i32 i64) (result i32)'
                " (memory.atomic.wait32 0 offset=8 (i64.const 8) (local.get 0) (local.get 1)))",
                '(func (export "own") (param i64 i64) (result i32)'
                " (memory.atomic.wait64 $own (i32.const 8) (local.get 0) (local.get 1)))",
            ), [far],
        )  # fmt: skip
        assert [instance["far"](4, -1), instance["far"](5, 10)] == [1, 2]
        assert [instance["own"](4, -1), instance["own"](0, 10)] == [1, 2]
        for name, expected in (("far", 5), ("own", 0)):
            with pytest.raises(dl.ProgramDeadlockedError):
                instance[name](expected, -1)


def test_ctrl_c_ends_a_wait_of_the_main_thread(linker: dl.Linker) -> None:
    """SIGINT while an instance's function waits raises KeyboardInterrupt, and the instance can be used as before."""
    instance = linker.instantiate(ON_PROGRAMS)
    go = threading.Event()

    def interrupt(_group: dl.InstanceGroup) -> None:
        eventually(lambda: waiting(linker) == 1)
        signal.raise_signal(signal.SIGINT)
        assert go.wait(20)

    thread = linker.spawn(interrupt)
    with pytest.raises(KeyboardInterrupt):
        instance["wait32"](4, 0, -1)
    go.set()
    thread.join(20)
    assert instance["wait32"](4, 1, -1) == 1
