"""The guest's clocks."""

from __future__ import annotations

import struct
import time

import pytest

from tests.support.wasi import BUFFER, RESULT, calls

REALTIME, MONOTONIC, PROCESS_CPU_TIME, THREAD_CPU_TIME = range(4)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("clock", range(4))
def test_every_clock_has_a_time_and_a_resolution(clock: int, shared: bool) -> None:
    """Each of the four clocks answers 0, does not run backwards, and has a resolution of at least 1 ns."""
    with calls({}, shared=shared) as wasi:
        times = []
        for _ in range(3):
            assert wasi.clock_time_get(clock, 1, RESULT) == 0
            times.append(wasi.memory.read_u64(RESULT))
        assert wasi.clock_res_get(clock, RESULT) == 0
        resolution = wasi.memory.read_u64(RESULT)

    assert times == sorted(times)
    assert 1 <= resolution <= 1_000_000_000


@pytest.mark.parametrize("clock", [PROCESS_CPU_TIME, THREAD_CPU_TIME])
def test_clocks_of_cpu_time_count_what_is_computed(clock: int) -> None:
    """A clock of CPU time goes on by what the thread computes: at least 20 ms here."""
    with calls({}) as wasi:
        assert wasi.clock_time_get(clock, 0, RESULT) == 0
        before = wasi.memory.read_u64(RESULT)
        end = time.thread_time_ns() + 20_000_000
        while time.thread_time_ns() < end:
            pass
        assert wasi.clock_time_get(clock, 0, RESULT) == 0
        after = wasi.memory.read_u64(RESULT)

    assert after - before >= 20_000_000


def test_real_time_is_the_hosts_and_the_others_begin_with_the_program() -> None:
    """The real time clock tells the host's time; monotonic time and the process's CPU time start near 0."""
    with calls({}) as wasi:
        wasi.clock_time_get(REALTIME, 0, RESULT)
        real = wasi.memory.read_u64(RESULT)
        wasi.clock_time_get(MONOTONIC, 0, RESULT)
        monotonic = wasi.memory.read_u64(RESULT)
        wasi.clock_time_get(PROCESS_CPU_TIME, 0, RESULT)
        used = wasi.memory.read_u64(RESULT)

    assert abs(real - time.time_ns()) < 60_000_000_000
    assert monotonic < 60_000_000_000
    assert used < 60_000_000_000


@pytest.mark.parametrize("namespace", ["wasi_snapshot_preview1", "wasi_unstable"])
def test_an_unknown_clock_is_invalid(namespace: str) -> None:
    """A clock that does not exist is 28 (`inval`), for its time and its resolution."""
    with calls({}, namespace) as wasi:
        assert wasi.clock_time_get(9, 0, RESULT) == 28
        assert wasi.clock_res_get(9, RESULT) == 28


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("clock", [REALTIME, MONOTONIC])
def test_waiting_until_a_time_ends_after_it(clock: int, shared: bool) -> None:
    """After a wait until a time, the clock that was waited for has reached it."""
    with calls({}, shared=shared) as wasi:
        for _ in range(5):
            wasi.clock_time_get(clock, 0, RESULT)
            until = wasi.memory.read_u64(RESULT) + 2_000_000
            wasi.memory.write(BUFFER, struct.pack("<QB7xIxxxxQQH6x", 5, 0, clock, until, 0, 1))
            assert wasi.poll_oneoff(BUFFER, BUFFER + 64, 1, RESULT) == 0
            wasi.clock_time_get(clock, 0, RESULT)

            assert wasi.memory.read_u64(RESULT) >= until


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("clock", range(4))
def test_a_time_can_be_written_anywhere_in_memory_and_nowhere_else(clock: int, shared: bool) -> None:
    """A time may lie at any address, the last eight bytes included; beyond is an errno, and no trap."""
    with calls({}, shared=shared) as wasi:
        end = wasi.memory.size
        for address in (RESULT + 1, end - 8, end - 9):
            wasi.memory.write(address, b"\xff" * 8)
            assert wasi.clock_time_get(clock, 0, address) == 0
            assert wasi.memory.read_u64(address) != 0xFFFFFFFFFFFFFFFF
        for address in (end - 7, end, end + 8, 0xFFFFFFF8, 0xFFFFFFFF):
            assert wasi.clock_time_get(clock, 0, address) != 0
