"""Wakes: what a waiter waits for, on the machine itself."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.support.rendezvous_program import DEADLINE
from threads import SYSTEM
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
