"""Wakes: what a waiter waits for, on the machine itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from tests.support.rendezvous_program import DEADLINE
from threads import FREE_THREADED, SYSTEM, Waiter
from threads.platform import Wake
from threads.queue_wake import QueueWake

KINDS: dict[str, Callable[[], Wake]] = {"of the platform": SYSTEM.wake, "of a queue": QueueWake}
MILLISECOND = 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_one_wake_is_stored(kind: str) -> None:
    """A wake that comes before the wait ends it at once, a second one is refused, and none is left."""
    wake = KINDS[kind]()
    assert not wake.acquire(blocking=False)
    wake.release()
    with pytest.raises(RuntimeError):
        wake.release()
    assert wake.acquire(timeout=DEADLINE)
    assert not wake.acquire(timeout=MILLISECOND)


@pytest.mark.parametrize("kind", KINDS)
def test_wakes_come_from_other_threads(kind: str) -> None:
    """Two threads that wake each other in turn lose none."""
    here, there = KINDS[kind](), KINDS[kind]()
    rounds = 300
    answered: list[bool] = []

    def answer() -> None:
        for _ in range(rounds):
            answered.append(there.acquire(timeout=DEADLINE))
            here.release()

    thread = threading.Thread(target=answer)
    thread.start()
    for _ in range(rounds):
        there.release()
        assert here.acquire(timeout=DEADLINE)
    thread.join()
    assert answered == [True] * rounds


@pytest.mark.skipif(not FREE_THREADED, reason="with a GIL a lock of Python's does not spin")
def test_wait_keeps_its_time_limit_beside_threads_that_compute() -> None:
    """Beside threads that compute, waits of a millisecond take less than those for a lock, which spins; if not, use locks."""
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(100))

    busy = [threading.Thread(target=compute) for _ in range(6)]
    for thread in busy:
        thread.start()
    waiter, lock = Waiter("waits"), threading.Lock()
    lock.acquire()
    seconds: dict[str, list[float]] = {"wait": [], "lock": []}
    try:
        for _ in range(9):
            began = time.perf_counter()
            waiter.park(int(1e9 * MILLISECOND))
            between = time.perf_counter()
            lock.acquire(timeout=MILLISECOND)
            seconds["wait"].append(between - began)
            seconds["lock"].append(time.perf_counter() - between)
    finally:
        stop.set()
        for thread in busy:
            thread.join()
    # In all: the kernel makes few of the lock's waits long, but then very long.
    assert sum(seconds["wait"]) < sum(seconds["lock"]) / 2
