"""What the threads of a program answer of WASI without leaving WebAssembly."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import dl
from dl.dlfcn import MAIN_HANDLE
from dl.program.guest_wasi import Scratch
from tests.support.engines import fresh_engine
from tests.support.modules import pie
from tests.support.wasi import BUFFER, RESULT, calls

TIMEOUT_SECONDS = 60
TIMES = """
  (import "wasi_snapshot_preview1" "clock_time_get" (func $time (param i32 i64 i32) (result i32)))
  (func (export "times") (param $n i32) (param $at i32) (result i32) (local $before i64)
    (loop $again
      (local.set $before (i64.atomic.load (i32.const 256)))
      (if (call $time (i32.const 1) (i64.const 0) (local.get $at)) (then unreachable))
      (if (i64.lt_u (i64.load (local.get $at)) (local.get $before)) (then (return (i32.const 1))))
      (i64.atomic.store (i32.const 256) (i64.load (local.get $at)))
      (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
    (i32.const 0))
"""


def answers(linker: dl.Linker) -> bool:
    """Whether the program's threads answer anything by themselves."""
    return linker.parts.program.guest_wasi is not None


@contextmanager
def python_calls() -> Iterator[list[str]]:
    """List the Python functions that the calling thread runs in a block."""
    names: list[str] = []
    sys.setprofile(
        lambda frame, event, _argument: names.append(frame.f_code.co_name) if event == "call" else None
    )
    try:
        yield names
    finally:
        sys.setprofile(None)


CALLS = {
    "clock_time_get": (1, 0, RESULT),
    "clock_res_get": (0, RESULT),
    "random_get": (BUFFER, 700),
    "args_sizes_get": (RESULT, RESULT + 4),
    "environ_sizes_get": (RESULT, RESULT + 4),
    "sched_yield": (),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_thread_answers_without_python(name: str) -> None:
    """After a thread's first call, a call of the functions that concern no file runs no Python function of the host's."""
    with calls({}, shared=True) as wasi:
        if not answers(wasi.linker):
            pytest.skip("the engine calls WASI through the host")
        function = getattr(wasi, name)
        with python_calls() as first:
            function(*CALLS[name])
        with python_calls() as again:
            function(*CALLS[name])

    assert "called" in first  # the callback that the engine calls
    assert "called" not in again


def test_answers_are_those_of_the_host() -> None:
    """Sizes, resolutions, times and errnos are the same whether the host answers, at the first call, or the thread itself."""
    with calls({}, shared=True) as wasi:
        for name, arguments in CALLS.items():
            answered = []
            for _ in range(3):
                wasi.memory.write(RESULT, bytes(16))
                error = getattr(wasi, name)(*arguments)
                told = wasi.memory.read(RESULT, 8) if name not in ("clock_time_get", "random_get") else b""
                answered.append((error, told))
            assert answered == [answered[0]] * 3
            assert answered[0][0] == 0


@pytest.mark.parametrize("name", [name for name in CALLS if name != "sched_yield"])
def test_what_lies_outside_memory_is_an_errno(name: str) -> None:
    """An address outside memory, also one whose end wraps around, is an errno at each call, and nothing is written."""
    with calls({}, shared=True) as wasi:
        end = wasi.memory.size
        arguments = CALLS[name]
        place = next(position for position, value in enumerate(arguments) if value in (RESULT, BUFFER))
        for _ in range(2):
            assert getattr(wasi, name)(*arguments) == 0
            for bad in (end, end - 1, 0xFFFFFFFC, 0xFFFFFFFF):
                moved = (*arguments[:place], bad, *arguments[place + 1 :])
                assert getattr(wasi, name)(*moved) in (28, 78)


def test_monotonic_time_goes_back_in_no_thread() -> None:
    """No thread is told a time before one that another was told and wrote into memory, though their clocks differ by 3 ms."""
    wasm = pie(TIMES, shared=True, memory_size=65536, memory_align=4)
    with dl.Linker(wasm) as linker:

        def read(group: dl.InstanceGroup, number: int) -> object:
            times, place = group.dlsym(MAIN_HANDLE, "times"), 512 + 16 * number
            own = linker.parts.groups.current().instances.wasi
            if times(1, place) == 0 and own is not None:
                own.set_clock(own.offset + 3_000_000 * (number % 2))
            return times(20_000, place)

        threads = [linker.spawn(read, number) for number in range(4)]
        assert [thread.join(TIMEOUT_SECONDS) for thread in threads] == [0, 0, 0, 0]


def test_time_is_the_hosts_within_microseconds() -> None:
    """A thread's real and monotonic time lie between what the host's clocks say before and after, within a millisecond."""
    with calls({}, shared=True) as wasi:
        began = wasi.linker.parts.program.clock_began
        for clock, read, origin in ((0, time.time_ns, 0), (1, time.monotonic_ns, began)):
            for _ in range(3):
                before = read() - origin
                assert wasi.clock_time_get(clock, 0, RESULT) == 0
                after = read() - origin
                assert before <= wasi.memory.read_u64(RESULT) <= after + 1_000_000


def test_random_bytes_fill_exactly_what_was_asked_for() -> None:
    """Random bytes of any number go where they were asked for, differ each time, and change nothing around."""
    with calls({}, shared=True) as wasi:
        for size in (0, 1, 255, 256, 257, 512, 4096, 4097, 20_000):
            seen = set()
            for _ in range(3):
                wasi.memory.write(BUFFER, b"\xee" * (size + 16))
                assert wasi.random_get(BUFFER + 8, size) == 0
                around = wasi.memory.read(BUFFER, 8) + wasi.memory.read(BUFFER + 8 + size, 8)
                assert around == b"\xee" * 16
                seen.add(wasi.memory.read(BUFFER + 8, size))
            assert len(seen) == (3 if size > 8 else len(seen))
            assert size < 64 or all(len(set(part)) > 16 for part in seen)


def test_a_thread_that_ends_gives_its_part_of_the_scratch_memory_back() -> None:
    """Three hundred threads, one after the other, that ask for random bytes need no more scratch memory than one does."""
    with calls({}, shared=True) as wasi:
        linker = wasi.linker
        own = linker.parts.program.guest_wasi
        if own is None:
            pytest.skip("the engine calls WASI through the host")

        def ask(group: dl.InstanceGroup) -> None:
            function = group.dlsym(linker.main, "call_random_get")
            assert function(BUFFER, 8) == function(BUFFER, 8) == 0

        linker.spawn(ask).join(TIMEOUT_SECONDS)
        before = own.scratch.parts
        for _ in range(300):
            linker.spawn(ask).join(TIMEOUT_SECONDS)

        assert own.scratch.parts <= before + 1


def test_without_scratch_memory_the_host_answers() -> None:
    """A store that gets no part of the scratch memory, because all are taken, has the host answer every call."""
    with calls({}, shared=True) as wasi:
        own = wasi.linker.parts.program.guest_wasi
        if own is None:
            pytest.skip("the engine calls WASI through the host")
        scratch = own.scratch = Scratch(wasi.linker.parts.program.engine)
        while scratch.take() is not None:
            pass
        for name, arguments in CALLS.items():
            for _ in range(2):
                assert getattr(wasi, name)(*arguments) == 0


def test_an_engine_without_it_answers_in_the_host() -> None:
    """Threads of an engine that cannot call WASI without Python get the same answers from the host."""
    wasm = pie(TIMES, shared=True, memory_size=65536, memory_align=4)
    with dl.Linker(wasm, engine=fresh_engine("guest_wasi")) as linker:
        assert not answers(linker)
        assert linker.main_group.dlsym(MAIN_HANDLE, "times")(10, 512) == 0
