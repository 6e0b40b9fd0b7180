"""Waits of the guest's threads: exact results, no hold-up of loads, cancellation, deadlocks that are told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import dl
from tests.support.groups import SECONDS, Program, library, until
from tests.support.modules import SHARED_MEMORY
from tests.support.modules import library as wat_library

FOR_EVER = -1
LONG_NS = 3_600 * 10**9

ATOMICS = wat_library(
    SHARED_MEMORY,
    """(func (export "wait32") (param i32 i32 i64) (result i32)
        local.get 0 local.get 1 local.get 2 memory.atomic.wait32)""",
    """(func (export "wait64") (param i32 i64 i64) (result i32)
        local.get 0 local.get 1 local.get 2 memory.atomic.wait64)""",
    """(func (export "wait32_at_8") (param i32 i32 i64) (result i32)
        local.get 0 local.get 1 local.get 2 memory.atomic.wait32 offset=8)""",
    """(func (export "notify") (param i32 i32) (result i32)
        local.get 0 local.get 1 memory.atomic.notify)""",
)

WASIX = wat_library(
    '(import "wasix_32v1" "futex_wait" (func $wait (param i32 i32 i32 i32) (result i32)))',
    '(import "wasix_32v1" "futex_wake" (func $wake (param i32 i32) (result i32)))',
    '(import "wasix_32v1" "futex_wake_all" (func $wake_all (param i32 i32) (result i32)))',
    '(import "wasix_32v1" "thread_sleep" (func $sleep (param i64) (result i32)))',
    '(import "wasix_32v1" "thread_join" (func $join (param i32) (result i32)))',
    '(import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))',
    """(func (export "wait") (param i32 i32 i32 i32) (result i32)
        local.get 0 local.get 1 local.get 2 local.get 3 call $wait)""",
    '(func (export "wake") (param i32 i32) (result i32) local.get 0 local.get 1 call $wake)',
    '(func (export "wake_all") (param i32 i32) (result i32) local.get 0 local.get 1 call $wake_all)',
    '(func (export "sleep") (param i64) (result i32) local.get 0 call $sleep)',
    '(func (export "join") (param i32) (result i32) local.get 0 call $join)',
    """(func (export "poll") (param i32 i32 i32 i32) (result i32)
        local.get 0 local.get 1 local.get 2 local.get 3 call $poll)""",
)


class Stop(Exception):
    """What the tests cancel threads with."""


class Waiting(Program):
    """The program with the two libraries that wait, and the number of a thread to join."""

    def __init__(self) -> None:
        super().__init__(libraries={"atomics.so": ATOMICS, "wasix.so": WASIX})
        self.atomics = self.main.dlopen("atomics.so")
        self.wasix = self.main.dlopen("wasix.so")
        self.joined = 0


@pytest.fixture(name="p")
def _program() -> Iterator[Waiting]:
    made = Waiting()
    with made.linker:
        yield made


def atomic(p: Waiting, group: dl.InstanceGroup, name: str, *arguments: int) -> Any:
    return group.dlsym(p.atomics, name)(*arguments)


def wasix(p: Waiting, group: dl.InstanceGroup, name: str, *arguments: int) -> Any:
    return group.dlsym(p.wasix, name)(*arguments)


def clock_subscription(p: Waiting, address: int, nanoseconds: int) -> tuple[int, ...]:
    """Write a subscription of `poll_oneoff` to the monotonic clock."""
    p.memory.write(address, bytes(48))
    p.memory.write_u32(address + 16, 1)
    p.memory.write_u64(address + 24, nanoseconds)
    return (address, address + 64, 1, address + 128)


WAITS = {
    "wait32": lambda p, g: atomic(p, g, "wait32", p.word(0), 0, FOR_EVER),
    "wait64": lambda p, g: atomic(p, g, "wait64", p.word(0), 0, FOR_EVER),
    "wait32, long": lambda p, g: atomic(p, g, "wait32", p.word(0), 0, LONG_NS),
    "futex_wait": lambda p, g: wasix(p, g, "wait", p.word(0), 0, 0, p.word(1)),
    "sleep": lambda p, g: wasix(p, g, "sleep", LONG_NS),
    "poll": lambda p, g: wasix(p, g, "poll", *clock_subscription(p, p.word(20), LONG_NS)),
    "join": lambda p, g: wasix(p, g, "join", p.joined),
}


@pytest.fixture(name="waiting", params=WAITS)
def _waiting(p: Waiting, request: pytest.FixtureRequest) -> Iterator[list[dl.HostThread]]:
    """Three threads that wait for ever, or nearly, in one way."""
    leave = threading.Event()
    p.on_thread = lambda _number, _record: leave.wait(SECONDS)
    p.joined = p.start()
    threads = [p.linker.spawn(lambda g: (WAITS[request.param](p, g), g.table())) for _ in range(3)]
    until(lambda: sum(bool(what) for _, what in p.linker.program.waits.waiting()) >= 3)
    yield threads
    leave.set()


class TestEveryWait:
    def test_holds_up_no_load(self, p: Waiting, waiting: list[dl.HostThread]) -> None:
        """A thread that waits, in whatever way, holds up no load."""
        loading = p.linker.spawn(lambda g: g.dlopen(library(1), name="lib.so"))

        assert loading.join(SECONDS)
        assert all(thread.is_alive() for thread in waiting)

    def test_can_be_cancelled(self, p: Waiting, waiting: list[dl.HostThread]) -> None:
        """A thread that waits, in whatever way, can be cancelled, and the others wait on."""
        for thread in waiting:
            thread.cancel(Stop())
            with pytest.raises(Stop):
                thread.join(SECONDS)
        assert p.call(p.main, "count", p.word(9)) == 0


class TestCatchingUp:
    def test_woken_thread_has_what_was_loaded(self, p: Waiting) -> None:
        """A thread that waited through loads can call what was loaded through a pointer right after its wait."""
        thread = p.linker.spawn(
            lambda g: (
                p.call(g, "wait", p.word(0), 0, FOR_EVER),
                p.call(g, "call", p.memory.read_u32(p.word(0)), 1),
            )
        )
        p.until_waiting("futex")
        for number in range(20):
            handle = p.main.dlopen(library(1000 + number), name=f"l{number}.so")
        p.publish(p.word(0), p.main.dlsym(handle, "value").address)

        assert thread.join(SECONDS) == (0, 1020)

    def test_wait_and_call_without_the_host(self, p: Waiting) -> None:
        """So can guest code that calls through the table in the very instructions that follow the wait."""
        wait_and_call = wat_library(
            SHARED_MEMORY,
            '(import "env" "__indirect_function_table" (table 0 funcref))',
            """(func (export "wait_and_call") (param i32) (result i32)
                local.get 0 i32.const 0 i64.const -1 memory.atomic.wait32 drop
                i32.const 1 local.get 0 i32.atomic.load call_indirect (param i32) (result i32))""",
        )
        both = p.main.dlopen(wait_and_call, name="both.so")
        threads = [p.linker.spawn(lambda g: g.dlsym(both, "wait_and_call")(p.word(0))) for _ in range(8)]
        p.until_waiting("futex", 8)
        handle = p.main.dlopen(library(70), name="new.so")
        p.publish(p.word(0), p.main.dlsym(handle, "value").address)

        assert [thread.join(SECONDS) for thread in threads] == [71] * 8


class TestExactResults:
    def test_not_equal_and_timed_out(self, p: Waiting) -> None:
        """1 where the value differs, 2 where the time is over, for both widths; the whole value counts."""
        p.memory.write_u64(p.word(0), 1 << 32)

        assert atomic(p, p.main, "wait32", p.word(0), 5, FOR_EVER) == 1
        assert atomic(p, p.main, "wait64", p.word(0), 0, FOR_EVER) == 1
        assert atomic(p, p.main, "wait32", p.word(0), 0, 1_000_000) == 2
        assert atomic(p, p.main, "wait64", p.word(0), 1 << 32, 0) == 2
        assert atomic(p, p.main, "wait32_at_8", p.word(0) - 8, 0, 0) == 2

    def test_values_are_compared_unsigned(self, p: Waiting) -> None:
        """A value with its highest bit set is itself."""
        p.memory.write_u64(p.word(0), 0xFFFFFFFFFFFFFFFF)

        assert atomic(p, p.main, "wait32", p.word(0), -1, 0) == 2
        assert atomic(p, p.main, "wait64", p.word(0), -1, 0) == 2
        assert atomic(p, p.main, "wait64", p.word(0), 0xFFFFFFFF, 0) == 1

    def test_notify_counts(self, p: Waiting) -> None:
        """`notify` wakes at most as many as it says, the oldest first, and returns how many."""
        order = []
        threads = []
        for number in range(5):
            threads.append(
                p.linker.spawn(
                    lambda g, n=number: (atomic(p, g, "wait32", p.word(0), 0, FOR_EVER), order.append(n))[0]
                )
            )
            p.until_waiting("futex", number + 1)

        assert atomic(p, p.main, "notify", p.word(0), 0) == 0
        assert atomic(p, p.main, "notify", p.word(1), -1) == 0
        assert atomic(p, p.main, "notify", p.word(0), 2) == 2
        assert [thread.join(SECONDS) for thread in threads[:2]] == [0, 0]
        assert sorted(order) == [0, 1]
        assert atomic(p, p.main, "notify", p.word(0), -1) == 3
        assert [thread.join(SECONDS) for thread in threads[2:]] == [0, 0, 0]

    def test_width_does_not_matter_to_notify(self, p: Waiting) -> None:
        """`notify` and the WASIX calls wake waits of both widths at the same address, whoever uses which."""
        for wake in ("notify", "wake", "wake_all"):
            waits = ("wait32", "wait64")
            threads = [p.linker.spawn(lambda g, w=w: atomic(p, g, w, p.word(0), 0, FOR_EVER)) for w in waits]
            p.until_waiting("futex", 2)
            for _ in waits:
                if wake == "notify":
                    atomic(p, p.main, "notify", p.word(0), 1)
                else:
                    wasix(p, p.main, wake, p.word(0), p.word(1))
            assert [thread.join(SECONDS) for thread in threads] == [0, 0]

    @pytest.mark.parametrize(("name", "off"), [("wait32", 2), ("wait64", 4)])
    def test_unaligned_address_traps(self, p: Waiting, name: str, off: int) -> None:
        """An address that is no multiple of the width traps, as the instruction says."""
        with pytest.raises(dl.TrapError, match="unaligned"):
            atomic(p, p.main, name, p.word(0) + off, 0, 0)

    @pytest.mark.parametrize("name", ["wait32", "wait64", "wait32_at_8", "notify"])
    def test_address_beyond_memory_traps(self, p: Waiting, name: str) -> None:
        """An address beyond memory traps, and so does one that only the offset takes there."""
        end = p.memory.size
        address = end - 4 if name == "wait32_at_8" else end
        with pytest.raises(dl.TrapError, match="out of bounds"):
            atomic(p, p.main, name, address, *((0,) if name == "notify" else (0, 0)))

    def test_futex_wait_of_wasix(self, p: Waiting) -> None:
        """`futex_wait` tells woken, time-out and a value that differs through its flag, as the ABI says."""
        timeout, woken = p.word(10), p.word(12)
        p.memory.write(timeout, bytes([1]) + bytes(7) + (1_000_000).to_bytes(8, "little"))

        assert wasix(p, p.main, "wait", p.word(0), 0, timeout, woken) == 0
        assert p.memory.read_u8(woken) == 0
        assert wasix(p, p.main, "wait", p.word(0), 1, timeout, woken) == 0
        assert p.memory.read_u8(woken) == 1
        thread = p.linker.spawn(lambda g: wasix(p, g, "wait", p.word(0), 0, 0, woken))
        p.until_waiting("futex")
        p.memory.write_u8(woken, 0)
        wasix(p, p.main, "wake", p.word(0), p.word(13))
        assert thread.join(SECONDS) == 0
        assert p.memory.read_u8(woken) == 1

    def test_sleep_and_poll_last(self, p: Waiting) -> None:
        """A short sleep and a poll of the clock end by themselves."""
        assert wasix(p, p.main, "sleep", 2_000_000) == 0
        assert wasix(p, p.main, "poll", *clock_subscription(p, p.word(20), 2_000_000)) == 0


class TestDeadlock:
    def test_told_with_names_and_waits(self, p: Waiting) -> None:
        """When every thread waits and nothing is left to wake one, each gets an error that names all and their waits."""
        threads = [
            p.linker.spawn(lambda g, n=n: p.call(g, "wait", p.word(n), 0, FOR_EVER), name=f"worker {n}")
            for n in range(3)
        ]
        p.until_waiting("futex", 3)
        with pytest.raises(dl.ProgramDeadlockedError) as raised:
            p.call(p.main, "wait", p.word(7), 0, FOR_EVER)
        told = dict(raised.value.threads)

        assert set(told) == {"main", "worker 0", "worker 1", "worker 2"}
        assert told["worker 1"] == f"futex {p.word(1):#x}"
        assert "'worker 2' waits for futex" in str(raised.value) or "worker 2 waits for futex" in str(
            raised.value
        )
        for thread in threads:
            with pytest.raises(dl.ProgramDeadlockedError):
                thread.join(SECONDS)
        assert p.call(p.main, "count", p.word(9)) == 0

    def test_join_of_a_thread_that_waits_for_ever(self, p: Waiting) -> None:
        """Joining a thread that nothing can wake is a deadlock too, for both."""
        thread = p.linker.spawn(lambda g: p.call(g, "wait", p.word(0), 0, FOR_EVER), name="worker")
        with pytest.raises(dl.ProgramDeadlockedError, match="thread 'worker' to end"):
            thread.join()

    def test_guest_threads_end_the_program(self, p: Waiting) -> None:
        """A deadlock with threads of the guest ends the program, whichever of them notices."""
        p.on_thread = lambda _n, _r: p.call(p.here(), "wait", p.word(0), 0, FOR_EVER)
        p.start()
        p.until_waiting("futex")
        with pytest.raises(dl.ProgramDeadlockedError):
            p.call(p.main, "wait", p.word(1), 0, FOR_EVER)

    def test_timed_wait_is_no_deadlock(self, p: Waiting) -> None:
        """A wait that ends by itself is none, and neither is one beside a thread that computes."""
        thread = p.linker.spawn(lambda g: p.call(g, "wait", p.word(0), 0, 20_000_000))

        assert p.call(p.main, "wait", p.word(0), 0, 40_000_000) == 2
        assert thread.join(SECONDS) == 2

    def test_thread_of_the_host_may_come(self, p: Waiting) -> None:
        """A thread that attached itself shows that the host has threads of its own: one of them may wake the others."""
        woke = threading.Event()

        def helper() -> None:
            with p.linker.attach() as group:
                p.call(group, "count", p.word(9))
            p.until_waiting("futex")
            with p.linker.attach() as group:
                p.call(group, "notify", p.word(0), -1)
            woke.set()

        plain = threading.Thread(target=helper)
        plain.start()
        until(lambda: p.memory.read_u32(p.word(9)))
        assert p.call(p.main, "wait", p.word(0), 0, FOR_EVER) == 0
        assert woke.wait(SECONDS)
        plain.join(SECONDS)
