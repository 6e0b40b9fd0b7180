"""Closes under every order of steps: an operation that undoes another, and leaves a state for those it is not owed to.

A slot stands for a library, and a slot "closed" for what stands at the table indices of those that are gone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.rendezvous_world import SlotWorld
from tests.threads.test_replay_model import KeepsAll, OwesEverybody, OwesNobodyWhoReplays
from threads import Rendezvous
from threads.testing import Program, ScheduleError, Scheduler, explore, replay, walk


class ClosingWorld(SlotWorld):
    """Slots that are closed, one after the other: each close replaces what the one before has left."""

    def __init__(self, scheduler: Scheduler, **types: Any) -> None:
        super().__init__(scheduler, **types)
        self.closes = self.left = 0

    def close(self, slot: str, *, after: Callable[[], None] | None = None) -> None:
        with self.rendezvous.instigate(None):
            earlier = self.filling.pop(slot)
            self.closes += 1
            replaces = dict.fromkeys(earlier)
            if self.left:
                replaces[self.left] = None
            self.left = self.rendezvous.commit(
                None,
                f"{slot}=|closed={self.closes}",
                replaces=replaces,
                only_after=earlier[0],
                leaves=f"closed={self.closes}",
            )
            if after is not None:
                self.rendezvous.after_replays(after)


def libraries_that_come_and_go(scheduler: Scheduler, **types: Any) -> Callable[[], None]:
    """Two are opened and closed while a guest computes, another thread is absent, one comes, and one ends."""
    world = ClosingWorld(scheduler, **types)
    running, ending = world.slots("running"), world.slots("ending")
    world.slots("absent")

    def host() -> None:
        world.set(None, "a", "1")
        world.set(None, "b", "1")
        world.close("a")
        world.close("b")

    def end() -> None:
        ending.run(1)
        world.rendezvous.leave(ending.replica)

    scheduler.spawn(lambda: running.run(2), "running")
    scheduler.spawn(lambda: world.slots("late").run(1), "late")
    scheduler.spawn(end, "ending")
    scheduler.spawn(host, "host")
    return world.check


def a_close_while_others_instantiate(scheduler: Scheduler, **types: Any) -> Callable[[], None]:
    """Followers are instantiating a library while it is closed, one of them for the first time, and it is opened again."""
    world = ClosingWorld(scheduler, **types)
    given_back: list[int] = []

    def instantiate(operation: str) -> None:
        if operation == "a=1":
            assert not given_back, "instantiates in memory that was given back"
            scheduler.pause()
            assert not given_back, "the memory was given back under an instantiation"

    first, second = (world.slots(name, on_apply=instantiate) for name in ("first", "second"))
    world.set(None, "b", "1")
    world.close("b")
    world.set(None, "a", "1")

    def host() -> None:
        world.close("a", after=lambda: given_back.append(1))
        world.set(None, "a", "2")

    scheduler.spawn(lambda: first.run(1), "first")
    scheduler.spawn(lambda: second.run(1), "second")
    scheduler.spawn(host, "host")

    def check() -> None:
        assert given_back == [1]
        world.check()

    return check


SCENARIOS = [libraries_that_come_and_go, a_close_while_others_instantiate]


class TestEveryOrder:
    @pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
    def test_closes_under_every_order_with_one_preemption(self, scenario: Program) -> None:
        """Any single preemption leaves all tables alike, the log short, and no memory given back under a replay."""
        assert explore(scenario, preemptions=1, limit=250).schedules > 20

    @pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
    def test_closes_under_random_orders(self, scenario: Program) -> None:
        """Many preemptions in one run, drawn from a seed, do so too."""
        walk(scenario, seed=50, walks=60, preempt=0.2)


class LeavesNothing(Rendezvous[str]):
    """Tells those that an operation is not owed to nothing of what it leaves."""

    def commit(self, replica: Any, operation: str, **how: Any) -> int:
        how.pop("leaves", None)
        return super().commit(replica, operation, **how)


MUTANTS: list[tuple[Any, str, type[Rendezvous[str]]]] = [
    (libraries_that_come_and_go, "leaves nothing", LeavesNothing),
    (libraries_that_come_and_go, "replaces nothing", KeepsAll),
    (libraries_that_come_and_go, "owes everybody", OwesEverybody),
    (a_close_while_others_instantiate, "owes no replaying", OwesNobodyWhoReplays),
]


class TestMutants:
    """The checker can fail."""

    @pytest.mark.parametrize(
        ("scenario", "rendezvous"),
        [pytest.param(scenario, kind, id=name) for scenario, name, kind in MUTANTS],
    )
    def test_mutant_of_a_rule_for_closes_is_caught(
        self, scenario: Any, rendezvous: type[Rendezvous[str]]
    ) -> None:
        """With one rule broken some order fails, and its schedule fails again."""

        def program(scheduler: Scheduler) -> Callable[[], None]:
            check: Callable[[], None] = scenario(scheduler, rendezvous=rendezvous)
            return check

        with pytest.raises(ScheduleError) as caught:
            explore(program, preemptions=2, limit=2_000)
        with pytest.raises(ScheduleError) as again:
            replay(program, caught.value.schedule)
        assert again.value.kind == caught.value.kind
