"""The rendezvous protocol under every order of steps: a small scheduler runs real threads one step at a time.

A model of guest code executes "instructions", each of which checks the invariant; a model of the engine's epochs
interrupts it, and loses an interrupt where a real engine can. Mutants at the end prove that the checks can fail.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import threads
import threads.rendezvous
import threads.waits
from tests.support.rendezvous_world import Group, ProgramEndedError, World, unless_ended
from threads import (
    CLOSED,
    DETACHED,
    GUEST,
    HOST,
    DeadlockError,
    Event,
    FutexTable,
    Interrupted,
    Rendezvous,
    ReplayError,
    Replica,
    ReplicaClosedError,
    WaitResult,
    Waits,
)
from threads.testing import Program, ScheduleError, Scheduler, explore, replay, walk

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

STEP = st.sampled_from(
    ["compute", "host call", "link", "call back", "spin", "die", "cancel next", "host link"]
)


class TestRandomPrograms:
    """Programs that nobody thought of."""

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        programs=st.lists(st.lists(STEP, min_size=1, max_size=4), min_size=2, max_size=4),
        fails_at=st.integers(0, 3),
        seed=st.integers(0, 2**32),
        early_timeouts=st.booleans(),
    )
    def test_random_programs_in_random_orders_keep_the_invariant(
        self, programs: list[list[str]], fails_at: int, seed: int, early_timeouts: bool
    ) -> None:
        """Threads that compute, call the host, link, die, fail to replay and cancel each other keep it."""

        def program(scheduler: Scheduler) -> Callable[[], None]:
            world = World(scheduler)
            groups = [world.group(str(i), fails_at=fails_at if i == 0 else 0) for i in range(len(programs))]

            def run(group: Group, steps: list[str], following: Group) -> None:
                try:
                    for number, step in enumerate(steps):
                        name = f"{group.name}.{number}"
                        if step == "host link":
                            world.commit(group, name)
                        elif step == "cancel next":
                            following.replica.interrupt_with(Interrupted())
                        else:
                            with group.guest():
                                group.instruction()
                                if step == "die":
                                    world.executing.discard(group.name)
                                    world.rendezvous.leave(group.replica)
                                    return
                                if step == "spin":
                                    for _ in range(4):
                                        group.instruction()
                                        scheduler.pause()
                                elif step != "compute":
                                    with group.host_call():
                                        if step == "link":
                                            world.commit(group, name)
                                        elif step == "call back":
                                            with group.guest():
                                                group.instruction()
                                    group.instruction()
                except (Interrupted, ReplayError, ReplicaClosedError):
                    assert group.name not in world.executing

            for i, steps in enumerate(programs):
                following = groups[(i + 1) % len(groups)]
                scheduler.spawn(partial(run, groups[i], steps, following), groups[i].name)
            return world.check

        walk(program, seed=seed, walks=2, preempt=0.2, early_timeouts=early_timeouts)


class SequentialProtocol(RuleBasedStateMachine):
    """One thread plays every group's part, in any order of calls that does not wait, against a plain model."""

    def __init__(self) -> None:
        super().__init__()
        self.bumps = 0
        self.rendezvous: Rendezvous[int] = Rendezvous(self.bump)
        self.groups: list[tuple[Replica[int], list[int], list[int]]] = []
        self.interrupted: dict[int, Interrupted] = {}
        self.operations: list[int] = []

    def bump(self) -> None:
        self.bumps += 1

    @rule(applied=st.integers(0, 20))
    @precondition(lambda self: len(self.groups) < 5)
    def join(self, applied: int) -> None:
        applied = min(applied, len(self.operations))
        made = self.operations[:applied]
        replica: Replica[int] = Replica(f"{len(self.groups)}", lambda _, operation: made.append(operation))
        self.rendezvous.join(replica, applied)
        self.groups.append((replica, made, []))

    @rule(data=st.data())
    @precondition(lambda self: self.groups)
    def step(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.groups) - 1))
        replica, made, nesting = self.groups[index]
        pending = index in self.interrupted
        if replica.state == GUEST:
            action = data.draw(st.sampled_from(["leave", "host", "safe point", "forget"]))
        else:
            action = data.draw(st.sampled_from(["enter", "back", "synchronize", "interrupt", "withdraw"]))
        try:
            if action == "leave":
                replica.leave_guest(nesting.pop())
            elif action == "host":
                replica.enter_host()
            elif action == "safe point":
                replica.safe_point()
            elif action == "forget":
                self.rendezvous.leave(replica)
                replica.leave_guest(nesting.pop())
                del self.groups[index]
                self.interrupted = {i - (i > index): e for i, e in self.interrupted.items() if i != index}
            elif action == "enter":
                nesting.append(replica.enter_guest())
            elif action == "back" and nesting:
                replica.exit_host()
            elif action == "synchronize":
                replica.synchronize()
                assert made == self.operations
            elif action == "interrupt" and not pending:
                self.interrupted[index] = Interrupted()
                replica.interrupt_with(self.interrupted[index])
            elif action == "withdraw" and pending:
                assert replica.withdraw(self.interrupted.pop(index))
        except Interrupted as error:
            expected = self.interrupted.pop(index)
            assert expected is error  # noqa: PT017 - whether it raises is what this finds out
            assert replica.state != GUEST

    @rule(data=st.data())
    @precondition(lambda self: all(replica.state != GUEST for replica, _, _ in self.groups))
    def commit(self, data: st.DataObject) -> None:
        operation = len(self.operations) * 10
        with self.rendezvous.instigate(None):
            assert self.rendezvous.commit(None, operation) == len(self.operations) + 1
        self.operations.append(operation)

    @rule()
    @precondition(lambda self: any(replica.state == GUEST for replica, _, _ in self.groups))
    def commit_gives_up(self) -> None:
        before = self.bumps
        with self.rendezvous.instigate(None), pytest.raises(threads.BarrierTimeoutError) as caught:
            self.rendezvous.commit(None, -1, timeout=0)
        assert set(caught.value.replicas) == {r.name for r, _, _ in self.groups if r.state == GUEST}
        assert self.bumps == before

    @invariant()
    def guests_are_up_to_date(self) -> None:
        assert [operation for _, operation in self.rendezvous.log.since(0)] == self.operations
        for index, (replica, made, _) in enumerate(self.groups):
            assert made == self.operations[: len(made)]
            if replica.state == GUEST:
                assert made == self.operations
                assert index not in self.interrupted
        statistics = self.rendezvous.statistics()
        assert statistics.guest == sum(replica.state == GUEST for replica, _, _ in self.groups)
        assert statistics.detached + statistics.host + statistics.guest == len(self.groups)


TestSequentialProtocol = SequentialProtocol.TestCase
TestSequentialProtocol.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


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


class ChecksBeforeItWrites(Replica[str]):
    """Reads the version, then becomes GUEST."""

    def enter_guest(self) -> int:
        previous = self.state
        if self.applied != self._rendezvous.version:
            self.catch_up()
        self.waiter.platform.point("mutant")  # type: ignore[attr-defined]
        self.state = GUEST
        return previous


class ForgetsToReCheck(Replica[str]):
    """Goes on after replaying without looking whether the gate closed meanwhile."""

    def catch_up(self) -> None:
        self.state = HOST
        self._rendezvous.pass_gate(self)
        self._replay()
        self.waiter.platform.point("mutant")  # type: ignore[attr-defined]
        self.state = GUEST


class LeavesSilently(Replica[str]):
    """Does not tell a waiting barrier that it left guest code."""

    def leave_guest(self, to: int = DETACHED) -> None:
        self.state = to


class SettlesInTheWrongOrder(Replica[str]):
    """Looks for interrupts first and writes its number afterwards: an interrupt between the two is overwritten."""

    def settle(self) -> None:
        stale = self._closed is not None or self.waiter.interrupted
        self.waiter.platform.point("mutant")  # type: ignore[attr-defined]
        self.applied = threads.STALE if stale else self.sequence


class LooksBeforeItCloses(Rendezvous[str]):
    """Reads who is GUEST, then closes the gate."""

    def _close_gate(self, waiter: threads.Waiter) -> list[Replica[str]]:
        with self._lock:
            self._instigator = waiter
            self._awaited = {other: None for other in self._replicas if other.state == GUEST}
            self._platform.point("mutant")  # type: ignore[attr-defined]
            self.version = CLOSED
            return list(self._awaited)


class DoesNotWait(Rendezvous[str]):
    """Commits without waiting for threads in guest code."""

    def _gather(self, waiter: threads.Waiter, timeout: float | None) -> None:
        self._call_interrupt()


class WaitsForTheDead(Rendezvous[str]):
    """Forgets a replica, but not that the barrier waits for it."""

    def leave(self, replica: Replica[str], reason: str = "it has left") -> None:
        with self._lock:
            self._replicas.pop(replica, None)
            replica.left(reason)


class OpensTooEarly(Rendezvous[str]):
    """Opens the gate, then appends."""

    def commit(
        self, replica: Replica[str] | None, operation: str, *, timeout: float | None = None, **_: Any
    ) -> int:
        waiter = self._turn.holder
        assert waiter is not None
        self._close_gate(waiter)
        self._gather(waiter, timeout)
        self._open_gate(None)
        self._platform.point("mutant")  # type: ignore[attr-defined]
        self.log.append(operation)
        self._open_gate(replica)
        return self.committed


MUTANTS: list[tuple[Any, dict[str, Any]]] = [
    (two_guests_and_a_host_thread, {"replica": ChecksBeforeItWrites}),
    (two_guests_and_a_host_thread, {"replica": LeavesSilently}),
    (two_guests_and_a_host_thread, {"rendezvous": LooksBeforeItCloses}),
    (two_guests_and_a_host_thread, {"rendezvous": DoesNotWait}),
    (two_guests_and_a_host_thread, {"rendezvous": OpensTooEarly}),
    (a_guest_in_and_out_of_host_calls, {"replica": ForgetsToReCheck}),
    (a_guest_that_dies, {"rendezvous": WaitsForTheDead}),
    (a_cancelled_computation, {"replica": SettlesInTheWrongOrder}),
]


class TestMutants:
    """The checker can fail."""

    @pytest.mark.parametrize(
        ("scenario", "types"), MUTANTS, ids=lambda value: value.__name__ if callable(value) else None
    )
    def test_mutant_of_the_protocol_is_caught(self, scenario: Any, types: dict[str, Any]) -> None:
        """A protocol with one rule broken fails, and its schedule fails again."""

        def program(scheduler: Scheduler) -> Callable[[], None]:
            check: Callable[[], None] = scenario(scheduler, **types)
            return check

        with pytest.raises(ScheduleError) as caught:
            explore(program, preemptions=2, limit=4_000)

        with pytest.raises(ScheduleError) as again:
            replay(program, caught.value.schedule)
        assert (again.value.kind, again.value.trail) == (caught.value.kind, caught.value.trail)

    def test_interrupt_that_is_not_repeated_is_caught(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A barrier that interrupts once hangs on a thread that was just leaving its callback."""
        monkeypatch.setattr(threads.rendezvous, "FIRST_REPEAT_NS", 10**15)

        def program(scheduler: Scheduler) -> Callable[[], None]:
            world = World(scheduler)
            spinning = world.group("spinning")

            def host() -> None:
                world.commit(None, "a")
                world.commit(None, "b")

            scheduler.spawn(lambda: spinning.spin_until(lambda: world.rendezvous.committed == 2), "spinning")
            scheduler.spawn(host, "host")
            return world.check

        with pytest.raises(ScheduleError) as caught:
            explore(program, preemptions=2, limit=6_000)

        assert caught.value.kind == "endless"

    def test_wake_that_leaves_its_waiter_counted_as_stuck_is_caught(self) -> None:
        """A woken thread that still counts as stuck makes a false deadlock, and the run shows it."""

        class CountsTheWoken(Waits):
            def wake_locked(self, queue: threads.waits.WaitQueue, count: int) -> list[threads.Waiter]:
                woken = []
                for wait in list(queue)[:count]:
                    del queue[wait]
                    wait.done = True
                    woken.append(wait.waiter)
                return woken

        with pytest.raises(ScheduleError) as caught:
            explore(lambda scheduler: a_futex_handshake(scheduler, CountsTheWoken), preemptions=2)

        assert "assert [DeadlockErro" in caught.value.detail

    def test_wake_between_check_and_enqueueing_is_caught(self) -> None:
        """A wait that checks the value before it takes the lock loses a wake, and the run shows it."""

        class ChecksOutside(Waits):
            def wait(self, waiter: Any, what: str, admit: Any, timeout_ns: int | None = None) -> WaitResult:
                queue = admit()
                if queue is None:
                    return WaitResult.NOT_EQUAL
                waiter.platform.point("mutant")
                return super().wait(waiter, what, lambda: queue, timeout_ns)

        with pytest.raises(ScheduleError) as caught:
            explore(lambda scheduler: a_futex_handshake(scheduler, ChecksOutside), preemptions=2)

        assert caught.value.kind in {"deadlock", "error"}


class TestScheduler:
    """The scheduler itself."""

    def test_explore_of_a_lost_update_finds_it_with_one_preemption(self) -> None:
        """Two threads that read, then write, lose an update in some order, and only with a preemption."""

        def program(scheduler: Scheduler) -> Callable[[], None]:
            total = [0]

            def add() -> None:
                scheduler.point("before the read")
                seen = total[0]
                scheduler.point("before the write")
                total[0] = seen + 1

            def check() -> None:
                assert total == [2]

            scheduler.spawn(add, "one")
            scheduler.spawn(add, "two")
            return check

        assert explore(program, preemptions=0).complete
        with pytest.raises(ScheduleError):
            explore(program, preemptions=1)

    def test_explore_of_locks_taken_in_opposite_orders_finds_the_deadlock(self) -> None:
        """Nobody can go on is a failure that names who waits."""

        def program(scheduler: Scheduler) -> None:
            first, second = scheduler.lock(), scheduler.lock()

            def take(a: Any, b: Any) -> None:
                with a, b:
                    pass

            scheduler.spawn(lambda: take(first, second), "one")
            scheduler.spawn(lambda: take(second, first), "two")

        with pytest.raises(ScheduleError) as caught:
            explore(program, preemptions=1)

        assert caught.value.kind == "deadlock"
        assert caught.value.detail == "nobody can go on; waiting: one, two"

    def test_explore_within_its_bound_makes_every_schedule_once(self) -> None:
        """Two threads of two free steps each have as many orders as the bound allows, no more, each once."""
        seen: list[str] = []

        def program(scheduler: Scheduler) -> Callable[[], None]:
            trace: list[str] = []

            def run(name: str) -> None:
                for _ in range(2):
                    scheduler.point("step")
                    trace.append(name)

            scheduler.spawn(lambda: run("a"), "a")
            scheduler.spawn(lambda: run("b"), "b")
            return lambda: seen.append("".join(trace))

        result = explore(program, preemptions=8)

        assert result.complete
        assert set(seen) == {"aabb", "abab", "abba", "baab", "baba", "bbaa"}
