"""Threads that fill and empty slots at once, while groups come and go: every table is right, and the log stays short."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.support.rendezvous_program import DEADLINE, running
from threads import OperationLog, Rendezvous, Replica

SLOTS = 20
SECONDS = 4.0


class Log(OperationLog[tuple[int, int]]):
    """Keeps what every table must hold after the last commit; 0 empties a slot."""

    def __init__(self) -> None:
        super().__init__()
        self.table: dict[int, int] = {}

    def append(self, operation: tuple[int, int], **how: Any) -> int:
        number = super().append(operation, **how)
        change(self.table, *operation)
        return number


def change(table: dict[int, int], slot: int, value: int) -> None:
    if value:
        table[slot] = value
    else:
        table.pop(slot, None)


class Program:
    """A rendezvous and the books of its slots."""

    def __init__(self) -> None:
        self.rendezvous: Rendezvous[tuple[int, int]] = Rendezvous(lambda: None)
        self.log = Log()
        self.rendezvous.log = self.log
        self.filling: dict[int, list[int]] = {}
        self.given_back = 0
        self.longest = 0

    def change(self, group: Group, slot: int, value: int) -> None:
        with self.rendezvous.instigate(group.replica):
            earlier = self.filling.get(slot, [])
            if not value and not earlier:
                return
            change(group.table, slot, value)
            number = self.rendezvous.commit(
                group.replica,
                (slot, value),
                replaces=dict.fromkeys(earlier),
                only_after=None if value else earlier[0],
            )
            self.filling[slot] = [*earlier[:1], number] if value else []
            self.longest = max(self.longest, len(self.log))
            if not value:
                self.rendezvous.after_replays(self.give_back)

    def give_back(self) -> None:
        self.given_back += 1


class Group:
    """A group with a table."""

    def __init__(self, program: Program, name: str) -> None:
        self.table: dict[int, int] = {}
        self.replica: Replica[tuple[int, int]] = Replica(
            name, lambda _, operation: change(self.table, *operation)
        )
        self.log = program.log
        program.rendezvous.join(self.replica)

    def compute(self, rounds: int) -> None:
        outer = self.replica.enter_guest()
        for _ in range(rounds):
            assert self.table == self.log.table  # no commit can come between: this thread is in guest code
            self.replica.safe_point()
        self.replica.leave_guest(outer)


@pytest.fixture(autouse=True)
def _switch_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def test_threads_that_change_slots_at_once_have_right_tables_and_a_short_log() -> None:
    """Threads that compute, link, are absent, come anew and leave agree at every step, and nothing old is kept."""
    seed = 40
    print(f"seed {seed}")
    program = Program()
    end = time.monotonic() + SECONDS
    absent = Group(program, "absent")
    stay: list[Group] = []

    def goes_on() -> bool:  # for some time, and until enough was done
        return time.monotonic() < end or program.rendezvous.committed <= 200 or program.given_back <= 20

    def links(number: int) -> None:
        generator = random.Random(seed + number)
        group = Group(program, f"links {number}")
        stay.append(group)
        while goes_on():
            program.change(
                group, generator.randrange(SLOTS), generator.choice([0, generator.randrange(1, 9)])
            )
            group.compute(generator.randrange(3))

    def comes_and_goes(number: int) -> None:
        generator = random.Random(seed + number)
        while goes_on():
            group = Group(program, f"guest {number}")
            for _ in range(generator.randrange(4)):
                group.compute(generator.randrange(20))
            program.rendezvous.leave(group.replica)

    with running(
        *(partial(links, i) for i in range(3)), *(partial(comes_and_goes, 10 + i) for i in range(3))
    ):
        assert threading.active_count() > 1

    for group in (absent, *stay, Group(program, "late")):
        group.compute(1)
    rendezvous = program.rendezvous
    print(f"{rendezvous.committed} operations, at most {program.longest} in the log")
    assert len(program.log) == len(program.log.table)
    assert program.longest <= 4 * SLOTS * 6
    assert rendezvous.statistics().replay_failures == 0
    assert time.monotonic() < end + DEADLINE
