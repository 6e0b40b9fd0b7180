"""The rendezvous protocol under every order of steps: a small scheduler runs real threads one step at a time.

A model of guest code executes "instructions", each of which checks the invariant; a model of the engine's epochs
interrupts it, and loses an interrupt where a real engine can. `test_model_mutants.py` proves that the checks can fail.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import threads
import threads.rendezvous
import threads.waits
from tests.support.rendezvous_world import Group, ProgramEndedError, World, unless_ended
from threads import (
    DeadlockError,
    Event,
    FutexTable,
    Interrupted,
    ReplayError,
    ReplicaClosedError,
    WaitResult,
    Waits,
)
from threads.testing import Program, Scheduler, explore, walk

# Scenarios: each sets up one run.


def two_guests_and_a_host_thread(scheduler: Scheduler, **types: Any) -> Callable[[], None]:
    """The plain barrier."""
    world = World(scheduler, **types)
    first, second = world.group("first"), world.group("second")
    scheduler.spawn(lambda: first.run(3), "first")
    scheduler.spawn(lambda: second.run(1), "second")
    scheduler.spawn(lambda: world.commit(None, "a"), "host")
    return world.check


def a_guest_in_and_out_of_host_calls(scheduler: Scheduler, **types: Any) -> Callable[[], None]:
    """Host calls, guest code called back from one, and two operations in a row."""
    world = World(scheduler, **types)
    group = world.group("group")

    def run() -> None:
        with group.guest():
            group.instruction()
            with group.host_call(), group.guest():
                group.instruction()
            group.instruction()

    def host() -> None:
        world.commit(None, "a")
        world.commit(None, "b")

    scheduler.spawn(run, "group")
    scheduler.spawn(host, "host")
    return world.check


def two_instigators(scheduler: Scheduler, **types: Any) -> Callable[[], None]:
    """Two guests that link at the same time, from host calls."""
    world = World(scheduler, **types)

    def run(group: Group) -> None:
        with group.guest():
            group.instruction()
            with group.host_call():
                world.commit(group, group.name)
            group.instruction()

    for name in ("first", "second"):
        group = world.group(name)
        scheduler.spawn(partial(run, group), name)

    def check() -> None:
        assert sorted(operation for _, operation in world.rendezvous.log.since(0)) == ["first", "second"]
        world.check()

    return check


def a_guest_that_dies(scheduler: Scheduler, **types: Any) -> Callable[[], None]:
    """A thread that ends in guest code, without a safe point, while a barrier may wait for it."""
    world = World(scheduler, **types)
    dying, living = world.group("dying"), world.group("living")

    def die() -> None:
        dying.replica.enter_guest()
        world.executing.add("dying")
        scheduler.point("a trap")
        world.executing.discard("dying")
        world.rendezvous.leave(dying.replica)
        world.rendezvous.leave(dying.replica)

    scheduler.spawn(die, "dying")
    scheduler.spawn(living.run, "living")
    scheduler.spawn(lambda: world.commit(None, "a"), "host")
    return world.check


def a_replay_that_fails(scheduler: Scheduler, **types: Any) -> Callable[[], None]:
    """One follower cannot replay the second operation; it ends, alone."""
    world = World(scheduler, **types)
    failing, living = world.group("failing", fails_at=2), world.group("living")

    def fail() -> None:
        with pytest.raises(ReplayError) as caught:
            failing.spin_until(lambda: False)
        assert (caught.value.replica, caught.value.sequence) == ("failing", 2)
        with pytest.raises(ReplicaClosedError):
            failing.replica.enter_guest()

    def host() -> None:
        world.commit(None, "a")
        world.commit(None, "b")

    scheduler.spawn(fail, "failing")
    scheduler.spawn(living.run, "living")
    scheduler.spawn(host, "host")
    return world.check


def a_shutdown_during_a_barrier(scheduler: Scheduler, **types: Any) -> Callable[[], None]:
    """The program ends while one thread computes and another links."""
    world = World(scheduler, **types)
    spinning, linking = world.group("spinning"), world.group("linking")
    committed: list[int] = []

    def spin() -> None:
        with pytest.raises(ProgramEndedError):
            spinning.spin_until(lambda: False)

    scheduler.spawn(spin, "spinning")
    scheduler.spawn(unless_ended(lambda: committed.append(world.commit(linking, "a"))), "linking")
    scheduler.spawn(lambda: world.rendezvous.shutdown(ProgramEndedError()) and None, "ender")

    def check() -> None:
        assert world.rendezvous.committed == len(committed)
        with pytest.raises(ProgramEndedError):
            linking.replica.enter_guest()
        world.check()

    return check


def a_shutdown_while_two_link(scheduler: Scheduler, **types: Any) -> Callable[[], None]:
    """The program ends while one thread links and another waits for the link lock."""
    world = World(scheduler, **types)
    linking = world.group("linking")
    committed: list[int] = []
    scheduler.spawn(unless_ended(lambda: committed.append(world.commit(linking, "a"))), "linking")
    scheduler.spawn(unless_ended(lambda: committed.append(world.commit(None, "b"))), "host")
    scheduler.spawn(lambda: world.rendezvous.shutdown(ProgramEndedError()) and None, "ender")

    def check() -> None:
        assert world.rendezvous.committed == len(committed)
        world.check()

    return check


def an_interrupted_instigator(scheduler: Scheduler, **types: Any) -> Callable[[], None]:
    """The thread that links is cancelled: it has committed and gets the exception later, or it has not committed."""
    world = World(scheduler, **types)
    linking, other = world.group("linking"), world.group("other")
    outcome: list[str] = []

    def link() -> None:
        try:
            with linking.guest():
                with linking.host_call():
                    world.commit(linking, "a")
                    outcome.append("committed")
                linking.instruction()
                outcome.append("went on")
            linking.run()
        except Interrupted:
            outcome.append("interrupted")
        else:
            linking.replica.withdraw(cancellation)

    cancellation = Interrupted()
    scheduler.spawn(link, "linking")
    scheduler.spawn(lambda: other.run(2), "other")
    scheduler.spawn(lambda: linking.replica.interrupt_with(cancellation), "canceller")

    def check() -> None:
        assert ("committed" in outcome) == (world.rendezvous.committed == 1)
        world.check()

    return check


def a_cancelled_computation(scheduler: Scheduler, **types: Any) -> Callable[[], None]:
    """A thread that computes for ever is interrupted, while an operation goes through."""
    world = World(scheduler, **types)
    spinning = world.group("spinning")

    def spin() -> None:
        with pytest.raises(Interrupted):
            spinning.spin_until(lambda: False)

    scheduler.spawn(spin, "spinning")
    scheduler.spawn(lambda: world.commit(None, "a"), "host")
    scheduler.spawn(lambda: spinning.replica.interrupt_with(Interrupted()), "canceller")
    return world.check


def a_spinning_reader(scheduler: Scheduler, **types: Any) -> Callable[[], None]:
    """A guest spins until it finds a pointer that another one publishes after its link, then uses it."""
    world = World(scheduler, **types)
    spinning, linking = world.group("spinning"), world.group("linking")
    pointers: list[str] = []

    def spin() -> None:
        spinning.spin_until(lambda: bool(pointers))
        assert spinning.applied == ["a"]

    def link() -> None:
        with linking.guest():
            with linking.host_call():
                world.commit(linking, "a")
            linking.instruction()
            pointers.append("a")

    scheduler.spawn(spin, "spinning")
    scheduler.spawn(link, "linking")
    return world.check


def a_late_joiner(scheduler: Scheduler, **types: Any) -> Callable[[], None]:
    """A group that is created during a barrier, with what it was built from."""
    world = World(scheduler, **types)
    first = world.group("first")

    def join() -> None:
        world.group("late").run()

    scheduler.spawn(lambda: first.run(1), "first")
    scheduler.spawn(join, "late")
    scheduler.spawn(lambda: world.commit(None, "a"), "host")
    return world.check


SCENARIOS = [
    two_guests_and_a_host_thread,
    a_guest_in_and_out_of_host_calls,
    two_instigators,
    a_guest_that_dies,
    a_replay_that_fails,
    a_shutdown_during_a_barrier,
    a_shutdown_while_two_link,
    an_interrupted_instigator,
    a_cancelled_computation,
    a_spinning_reader,
    a_late_joiner,
]


class TestEveryOrder:
    """The protocol itself."""

    @pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
    def test_scenario_under_every_order_with_one_preemption_keeps_the_invariant(
        self, scenario: Program
    ) -> None:
        """Any single preemption, at any access to shared state, leaves the invariant and the end state intact."""
        result = explore(scenario, preemptions=1, limit=4_000)

        assert result.complete
        assert result.schedules > 20

    @pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
    def test_scenario_under_random_orders_keeps_the_invariant(self, scenario: Program) -> None:
        """Many preemptions in one run, drawn from a seed, leave the invariant intact too."""
        walk(scenario, seed=20, walks=300, preempt=0.2)

    @pytest.mark.parametrize(
        "scenario", [a_spinning_reader, two_guests_and_a_host_thread], ids=lambda scenario: scenario.__name__
    )
    def test_scenario_when_timers_fire_early_keeps_the_invariant(self, scenario: Program) -> None:
        """A repeated interrupt that nobody needed harms nothing."""
        explore(scenario, preemptions=1, limit=800, early_timeouts=True)
        walk(scenario, seed=3, walks=200, early_timeouts=True)


# Random programs: what each of up to four threads does, and a random order to do it in.


# Waits.


def a_futex_handshake(scheduler: Scheduler, waits: type[Waits] = Waits) -> Callable[[], None]:
    """The waiter sees the old value or is woken; it never sleeps through the wake."""
    reports: list[DeadlockError] = []
    table = FutexTable(waits(reports.append, platform=scheduler))
    memory = [0]
    waiter = threads.Waiter("waiter", scheduler)
    waker = threads.Waiter("waker", scheduler)

    def wait() -> None:
        with table.waits.participant(waiter):
            while memory[0] == 0:
                table.wait(64, lambda: memory[0] == 0, None, waiter)

    def wake() -> None:
        memory[0] = 1
        scheduler.point("between the write and the wake")
        table.wake(64, 1)
        table.waits.remove(waker)

    table.waits.add(waker)
    scheduler.spawn(wait, "waiter")
    scheduler.spawn(wake, "waker")

    def check() -> None:
        assert reports == []
        assert not waiter.interrupted

    return check


def a_wake_against_a_time_out_and_an_interrupt(scheduler: Scheduler) -> Callable[[], None]:
    """Two waiters, one wake: exactly one of them takes it, unless both are gone."""
    table = FutexTable(Waits(platform=scheduler))
    results: dict[str, object] = {}
    woken: list[int] = []
    waiters = {name: threads.Waiter(name, scheduler) for name in ("timed", "cancelled")}

    def wait(name: str, timeout_ns: int | None) -> None:
        try:
            results[name] = table.wait(64, lambda: True, timeout_ns, waiters[name])
        except Interrupted:
            results[name] = "interrupted"

    scheduler.spawn(lambda: wait("timed", 1_000), "timed")
    scheduler.spawn(lambda: wait("cancelled", None), "cancelled")
    scheduler.spawn(lambda: woken.append(table.wake(64, 1)), "waker")
    scheduler.spawn(lambda: waiters["cancelled"].interrupt(Interrupted()), "canceller")

    def check() -> None:
        assert sum(result is WaitResult.WOKEN for result in results.values()) == woken[0]
        assert len(table) == 0

    return check


def a_ring_of_joins(scheduler: Scheduler) -> Callable[[], None]:
    """Three threads that each wait for the next one's end: all of them are told, once."""
    reports: list[DeadlockError] = []
    waits = Waits(reports.append, platform=scheduler)
    names = ["a", "b", "c"]
    ends = [Event(waits, f"the end of {name!r}") for name in names]
    waiters = [threads.Waiter(name, scheduler) for name in names]
    caught: list[str] = []

    def run(i: int) -> None:
        try:
            ends[(i + 1) % 3].wait(waiters[i])
        except DeadlockError:
            caught.append(names[i])
        finally:
            waits.remove(waiters[i])
            ends[i].set()

    for waiter in waiters:
        waits.add(waiter)
    for i in range(3):
        scheduler.spawn(partial(run, i), names[i])

    def check() -> None:
        told = [*caught, *(waiter.name for waiter in waiters if waiter.interrupted)]
        assert sorted(told) == names  # who was woken by another's end is told at its next wait
        assert [report.threads for report in reports] == [
            (("a", "the end of 'b'"), ("b", "the end of 'c'"), ("c", "the end of 'a'"))
        ]

    return check


class TestWaits:
    """Futexes, events and deadlocks, in every order."""

    @pytest.mark.parametrize(
        "scenario",
        [a_futex_handshake, a_wake_against_a_time_out_and_an_interrupt, a_ring_of_joins],
        ids=lambda scenario: scenario.__name__,
    )
    @pytest.mark.parametrize("early_timeouts", [False, True])
    def test_waits_under_every_order_lose_no_wake_and_report_no_false_deadlock(
        self, scenario: Program, early_timeouts: bool
    ) -> None:
        """No order with two preemptions loses a wake, takes one twice, or mistakes a woken thread for a stuck one."""
        explore(scenario, preemptions=2, limit=800, early_timeouts=early_timeouts)
        walk(scenario, seed=7, walks=300, preempt=0.3, early_timeouts=early_timeouts)


# Mutants: each breaks one rule of the protocol, and the checker must notice.
