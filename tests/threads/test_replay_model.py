"""Replays under every order of steps: what the log drops, what is given back after them, and how they are interrupted.

Mutants at the end break one rule each, and a scenario must notice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.rendezvous_world import ProgramEndedError, SlotGroup, SlotWorld, unless_ended
from threads import Interrupted, Rendezvous, ReplayError, Replica, ReplicaClosedError
from threads.grace import GracePeriods
from threads.replays import Replays
from threads.testing import Program, ScheduleError, Scheduler, explore, replay, walk

# Scenarios: each sets up one run.


def slots_that_change_while_guests_run(scheduler: Scheduler, **types: Any) -> Callable[[], None]:
    """A slot is filled, filled anew and emptied while a guest computes, another one is absent, and a third comes."""
    world = SlotWorld(scheduler, **types)
    running = world.slots("running")
    world.slots("absent")

    def host() -> None:
        world.set(None, "a", "1")
        world.set(None, "a", "2")
        world.set(None, "a", "")

    scheduler.spawn(lambda: running.run(3), "running")
    scheduler.spawn(lambda: world.slots("late").run(1), "late")
    scheduler.spawn(host, "host")
    return world.check


def a_slot_that_a_guest_fills_and_another_empties(scheduler: Scheduler, **types: Any) -> Callable[[], None]:
    """Two guests change the same table from host calls, and look at their own in between."""
    world = SlotWorld(scheduler, **types)
    first, second = world.slots("first"), world.slots("second")
    world.set(None, "a", "0")

    def run(group: SlotGroup, value: str) -> None:
        with group.guest():
            group.instruction()
            with group.host_call():
                world.set(group, "a" if value else "b", value or "3")
            group.instruction()

    def empties() -> None:
        run(second, "")
        with second.guest(), second.host_call():
            world.set(second, "b", "")

    scheduler.spawn(lambda: run(first, "1"), "first")
    scheduler.spawn(empties, "second")
    return world.check


def memory_of_a_module_that_is_being_instantiated(scheduler: Scheduler, **types: Any) -> Callable[[], None]:
    """A module is removed while followers may be instantiating it: its memory is given back after them, once."""
    world = SlotWorld(scheduler, **types)
    given_back: list[int] = []

    def instantiate(operation: str) -> None:
        if operation == "a=1":
            assert not given_back, "instantiates in memory that was given back"
            scheduler.pause()  # the instantiation
            assert not given_back, "the memory was given back under an instantiation"

    first, second = (world.slots(name, on_apply=instantiate) for name in ("first", "second"))

    def host() -> None:
        world.set(None, "a", "", after=lambda: given_back.append(world.rendezvous.committed))

    world.set(None, "a", "1")
    scheduler.spawn(lambda: first.run(1), "first")
    scheduler.spawn(lambda: second.run(1), "second")
    scheduler.spawn(host, "host")

    def check() -> None:
        assert len(given_back) == 1
        world.check()

    return check


def a_replay_that_fails_while_memory_waits_for_it(scheduler: Scheduler, **types: Any) -> Callable[[], None]:
    """The follower that the memory waits for cannot instantiate the module, and is made to leave at the same time."""
    world = SlotWorld(scheduler, **types)
    given_back: list[int] = []
    touched: list[int] = []

    def fail(operation: str) -> None:
        if operation == "a=1":
            scheduler.pause()  # the instantiation
            touched.extend(given_back)
            raise MemoryError

    failing = world.slots("failing", on_apply=fail)

    def run() -> None:
        try:
            failing.run(1)
        except (ReplayError, ReplicaClosedError):
            assert failing.replica.closed is not None

    def host() -> None:
        world.set(None, "a", "", after=lambda: given_back.append(1))

    world.set(None, "a", "1")

    scheduler.spawn(run, "failing")
    scheduler.spawn(lambda: world.rendezvous.leave(failing.replica), "leaver")
    scheduler.spawn(host, "host")

    def check() -> None:
        assert given_back == [1]
        assert touched == [], "the memory was given back under an instantiation"
        world.check()

    return check


def an_endless_start_function(
    scheduler: Scheduler, stop: Callable[[SlotWorld, SlotGroup], object], **types: Any
) -> Callable[[], None]:
    world = SlotWorld(scheduler, **types)
    endless = world.slots("endless", on_apply=lambda _: endless.start_function())
    other = world.slots("other")
    outcome: list[str] = []

    def run() -> None:
        try:
            endless.run(1)
            endless.run(1)
        except (Interrupted, ProgramEndedError):
            outcome.append("interrupted")
        assert endless.name not in world.executing

    scheduler.spawn(run, "endless")
    scheduler.spawn(unless_ended(lambda: world.set(None, "a", "1")), "host")
    scheduler.spawn(unless_ended(lambda: other.run(1)), "other")
    scheduler.spawn(lambda: stop(world, endless) and None, "stopper")

    def check() -> None:
        if outcome == []:  # the interrupt came last: it is pending
            assert endless.replica.waiter.interrupted or world.rendezvous._ended is not None
        world.rendezvous.leave(endless.replica)
        world.check()

    return check


def a_cancelled_start_function(scheduler: Scheduler, **types: Any) -> Callable[[], None]:
    """A follower replays a load whose start function never ends, and is cancelled; the others continue."""
    return an_endless_start_function(
        scheduler, lambda _, group: group.replica.interrupt_with(Interrupted()), **types
    )


def a_shutdown_in_a_start_function(scheduler: Scheduler, **types: Any) -> Callable[[], None]:
    """The program ends while a follower replays a load whose start function never ends."""
    return an_endless_start_function(
        scheduler, lambda world, _: world.rendezvous.shutdown(ProgramEndedError()), **types
    )


SCENARIOS = [
    slots_that_change_while_guests_run,
    a_slot_that_a_guest_fills_and_another_empties,
    memory_of_a_module_that_is_being_instantiated,
    a_replay_that_fails_while_memory_waits_for_it,
    a_cancelled_start_function,
    a_shutdown_in_a_start_function,
]


class TestEveryOrder:
    """The rules for replays."""

    @pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
    def test_replays_under_every_order_with_one_preemption_keep_the_rules(self, scenario: Program) -> None:
        """Any single preemption leaves all tables alike, the log short, memory untouched and no thread unheard."""
        result = explore(scenario, preemptions=1, limit=1_200)

        assert result.schedules > 20

    @pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
    def test_replays_under_random_orders_keep_the_rules(self, scenario: Program) -> None:
        """Many preemptions in one run, drawn from a seed, do so too."""
        walk(scenario, seed=30, walks=200, preempt=0.2)


# Mutants.


class FetchesThenMarks(Replays[str]):
    """Reads the next operation, and marks the replica as replaying it in a second step."""

    def begin(self, replica: Replica[str], *, first: bool) -> tuple[int, str] | None:
        log = self._rendezvous.log
        with self._lock:
            following = log.next(replica, replica.sequence)
            if following is None:
                replica.sequence = log.committed
                return None
        with self._lock:
            self._grace.begin(replica)
            replica.replaying = following[0]
        return following


class GivesBackAtOnce(GracePeriods):
    """Waits for no replay."""

    def add(self, action: Callable[[], None]) -> bool:
        return False


class GivesBackAfterTheFirst(GracePeriods):
    """Waits for one of the replays under way."""

    def end(self, replica: object) -> None:
        for period in self._under_way.pop(replica, ()):
            if period.awaited:
                period.awaited.clear()
                self._due.append(period.action)


class LeavingEndsTheReplay(Rendezvous[str]):
    """Takes a replica that is made to leave for one that is out of its replay."""

    def leave(self, replica: Replica[str], reason: str = "it has left") -> None:
        super().leave(replica, reason)
        with self._lock:
            self.replays._grace.end(replica)
        self.replays._grace.perform_due()


class FailuresEndNoReplay(Replays[str]):
    """Ends a grace period only for replays that succeed."""

    def end(self, replica: Replica[str], *, made: bool) -> None:
        if made:
            super().end(replica, made=made)
        else:
            replica.replaying = 0


class OwesNobodyWhoReplays(Rendezvous[str]):
    """Takes a replica that is replaying an operation for one that has not begun it."""

    def _begun_locked(self, sequence: int, instigator: Replica[str] | None) -> list[Replica[str]]:
        return [other for other in self._replicas if other is not instigator and other.sequence >= sequence]


class OwesEverybody(Rendezvous[str]):
    """Has groups undo what they have never made."""

    def _begun_locked(self, sequence: int, instigator: Replica[str] | None) -> list[Replica[str]]:
        return [other for other in self._replicas if other is not instigator]


class DeafReplay(Replica[str]):
    """Lets no interrupt into a replay."""

    def _stop_if_interrupted(self) -> None:
        pass


class NudgesGuestsOnly(Replica[str]):
    """Takes a replay, which is HOST, for no guest code."""

    def _alarm(self) -> None:
        self.applied = -3
        if self.state == 2:
            self._rendezvous.nudge()


class LooksBeforeItMarks(Replays[str]):
    """Looks for interrupts, and marks the replica as replaying afterwards."""

    def begin(self, replica: Replica[str], *, first: bool) -> tuple[int, str] | None:
        waiter = replica.waiter
        waiter.raise_if_interrupted()
        replica.waiter.platform.point("mutant")  # type: ignore[attr-defined]
        waiter._shields += 1  # the look that follows sees nothing
        return super().begin(replica, first=first)


def with_replays(kind: type[Replays[str]]) -> type[Rendezvous[str]]:
    class Mutant(Rendezvous[str]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.replays = kind(self, self._lock)

    return Mutant


def with_grace(kind: type[GracePeriods]) -> type[Rendezvous[str]]:
    class Mutant(Rendezvous[str]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.replays._grace = kind()

    return Mutant


class KeepsAll(Rendezvous[str]):
    """Passes no `replaces` to the log."""

    def commit(self, replica: Replica[str] | None, operation: str, **how: Any) -> int:
        how.pop("replaces", None)
        return super().commit(replica, operation, **how)


MUTANTS: list[tuple[Any, str, dict[str, Any]]] = [
    (
        memory_of_a_module_that_is_being_instantiated,
        "fetches, then marks",
        {"rendezvous": with_replays(FetchesThenMarks)},
    ),
    (
        memory_of_a_module_that_is_being_instantiated,
        "gives back at once",
        {"rendezvous": with_grace(GivesBackAtOnce)},
    ),
    (
        memory_of_a_module_that_is_being_instantiated,
        "after the first",
        {"rendezvous": with_grace(GivesBackAfterTheFirst)},
    ),
    (
        memory_of_a_module_that_is_being_instantiated,
        "owes no replaying",
        {"rendezvous": OwesNobodyWhoReplays},
    ),
    (a_replay_that_fails_while_memory_waits_for_it, "leaving ends it", {"rendezvous": LeavingEndsTheReplay}),
    (
        a_replay_that_fails_while_memory_waits_for_it,
        "failing ends none",
        {"rendezvous": with_replays(FailuresEndNoReplay)},
    ),
    (slots_that_change_while_guests_run, "owes everybody", {"rendezvous": OwesEverybody}),
    (slots_that_change_while_guests_run, "replaces nothing", {"rendezvous": KeepsAll}),
    (a_cancelled_start_function, "deaf", {"replica": DeafReplay}),
    (a_shutdown_in_a_start_function, "deaf at the end", {"replica": DeafReplay}),
    (a_cancelled_start_function, "nudges guests only", {"replica": NudgesGuestsOnly}),
    (a_cancelled_start_function, "looks, then marks", {"rendezvous": with_replays(LooksBeforeItMarks)}),
]


class TestMutants:
    """The checker can fail."""

    @pytest.mark.parametrize(
        ("scenario", "types"),
        [pytest.param(scenario, types, id=name) for scenario, name, types in MUTANTS],
    )
    def test_mutant_of_a_rule_for_replays_is_caught(self, scenario: Any, types: dict[str, Any]) -> None:
        """With one rule broken some order fails, and its schedule fails again."""

        def program(scheduler: Scheduler) -> Callable[[], None]:
            check: Callable[[], None] = scenario(scheduler, **types)
            return check

        with pytest.raises(ScheduleError) as caught:
            explore(program, preemptions=2, limit=3_000)

        with pytest.raises(ScheduleError) as again:
            replay(program, caught.value.schedule)
        assert again.value.kind == caught.value.kind
