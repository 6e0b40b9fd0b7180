"""The rendezvous under random programs and random orders."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import threads
import threads.rendezvous
import threads.waits
from tests.support.rendezvous_world import Group, World
from threads import (
    GUEST,
    Interrupted,
    Rendezvous,
    ReplayError,
    Replica,
    ReplicaClosedError,
)
from threads.testing import Scheduler, walk

STEP = st.sampled_from(
    ["compute", "host call", "link", "call back", "spin", "die", "cancel next", "host link"]
)


class TestRandomPrograms:
    """Programs that nobody thought of."""

    @settings(max_examples=150)
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
TestSequentialProtocol.settings = settings(max_examples=60, stateful_step_count=40)
