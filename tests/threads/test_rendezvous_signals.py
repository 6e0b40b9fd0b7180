"""The rendezvous while signal handlers raise between any two lines, and while everything happens at once."""

from __future__ import annotations

import contextlib
import linecache
import random
import sys
import threading
from collections.abc import Iterator
from functools import partial
from types import FrameType

import pytest

from tests.support.rendezvous_program import DEADLINE, AtLine, Group, Program, held, hurried, running
from threads import (
    GUEST,
    HOST,
    FutexTable,
    Interrupted,
    ReplayError,
)


class TestSignalHandlers:
    """Exceptions and interrupts out of nowhere."""

    @pytest.mark.parametrize("with_group", [False, True])
    def test_ctrl_c_at_any_line_of_a_commit_is_all_or_nothing(self, with_group: bool) -> None:
        """Either commit raises and nothing is in the log, or it returns and the exception comes right after."""
        outcomes = set()
        for number in range(1, 1_000):
            program = Program()
            group = program.group() if with_group else None
            other = program.group("other")
            other.replica.enter_guest()
            program.on_interrupt = partial(other.replica.leave_guest, HOST)
            replica = None if group is None else group.replica

            def press() -> None:
                raise KeyboardInterrupt

            def leaves_a_with(frame: FrameType, program: Program = program) -> bool:
                # The interpreter looks for signals nowhere between the last call of a block and its lock's release.
                line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
                return line.lstrip().startswith("with ") and held(program)

            raised = pending = False
            with contextlib.suppress(KeyboardInterrupt), program.rendezvous.instigate(replica):
                at = AtLine(number, press, leaves_a_with)
                try:
                    with at:
                        committed = program.rendezvous.commit(replica, "a")
                    assert committed == 1
                    waiter = program.rendezvous._turn.holder
                    assert waiter is not None
                    pending = waiter.interrupted
                except KeyboardInterrupt:
                    raised = True
            outcomes.add((raised, pending))

            assert raised == (program.operations == [])
            assert pending == (at.acted and not raised)
            assert program.rendezvous.version == program.rendezvous.committed
            assert not held(program)
            assert not hurried()
            if group is not None and pending:
                with pytest.raises(KeyboardInterrupt):
                    group.replica.enter_guest()
            assert program.commit("b") == len(program.operations)
            other.replica.exit_host()
            assert other.made == program.operations
            if not at.acted:
                break
        assert outcomes == {(True, False), (False, True), (False, False)}
        assert number > 30

    def test_ctrl_c_at_any_line_of_taking_the_link_lock_does_not_keep_it(self) -> None:
        """Whoever is interrupted on the way into the link lock does not hold it afterwards."""
        for number in range(1, 1_000):
            program = Program()
            group = program.group()
            program.commit("a")

            def press() -> None:
                raise KeyboardInterrupt

            def skip(frame: FrameType, program: Program = program) -> bool:
                line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
                return frame.f_code.co_name == "__exit__" or (
                    line.lstrip().startswith("with ") and held(program)
                )

            at = AtLine(number, press, skip)
            instigation = program.rendezvous.instigate(group.replica)
            try:
                with at:
                    instigation.__enter__()
            except KeyboardInterrupt:
                pass
            except ReplayError as error:
                raise AssertionError from error
            else:
                instigation.__exit__(None, None, None)
                if not at.acted:
                    break
            assert program.rendezvous._turn.holder is None
            assert program.commit("b") == 2
        assert number > 20

    def test_interrupt_with_from_a_handler_at_any_line_never_hangs_and_arrives_once(self) -> None:
        """A handler that calls interrupt_with in the middle of the thread's own commit takes no lock."""
        for number in range(1, 1_000):
            program = Program()
            group = program.group()
            other = program.group("other")
            other.replica.enter_guest()
            program.on_interrupt = partial(other.replica.leave_guest, HOST)
            arrivals = 0
            at = AtLine(number, partial(group.replica.interrupt_with, Interrupted()), lambda _: False)

            with at:
                try:
                    program.commit("a", group)
                except Interrupted:
                    arrivals += 1
                    group.made.clear()
            for _ in range(2):
                try:
                    with group.guest():
                        assert group.made == program.operations
                except Interrupted:
                    arrivals += 1

            assert arrivals == at.acted
            if not at.acted:
                break
        assert number > 30


class TestStress:
    """Everything at once, on real threads, switching as often as the interpreter can."""

    @pytest.fixture(autouse=True)
    def _switch_often(self) -> Iterator[None]:
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        yield
        sys.setswitchinterval(interval)

    @pytest.mark.parametrize("count", [2, 8, 41])
    def test_many_threads_that_link_wait_spin_and_die_end_alike(self, count: int) -> None:
        """Random work on many threads keeps the invariant at every step, and all groups end with the same log."""
        seed = 1234 + count
        program = Program()
        table = FutexTable()
        survivors: list[Group] = []
        start = threading.Barrier(count)

        def work(number: int) -> None:
            generator = random.Random(seed * 1000 + number)
            group = program.group(str(number))
            start.wait(DEADLINE)
            replica, rendezvous = group.replica, program.rendezvous

            def instruction() -> None:
                # One moment: the group's own record first, then the log; it may only have grown in between if the
                # barrier did not wait for this thread.
                made = len(group.made)
                assert made == rendezvous.committed
                assert replica.state == GUEST

            for step in range(3_000 // count):
                with group.guest():
                    for _ in range(generator.randrange(20)):
                        instruction()
                        replica.safe_point()
                    instruction()
                    replica.enter_host()
                    action = generator.randrange(4)
                    if action == 0:
                        program.commit(f"{number}.{step}", group)
                    elif action == 1:
                        table.wait(8, lambda: True, generator.randrange(200_000), replica.waiter)
                    elif action == 2:
                        table.wake(8, 2)
                    replica.exit_host()
                    instruction()
            if generator.random() < 0.3:
                replica.enter_guest()
                rendezvous.leave(replica)
            else:
                survivors.append(group)

        with running(*(lambda number=number: work(number) for number in range(count))):
            pass

        for group in survivors:
            group.replica.synchronize()
            assert group.made == program.operations
        statistics = program.rendezvous.statistics()
        assert statistics.detached == len(survivors)
        assert statistics.catch_ups > count
        assert statistics.committed == statistics.barriers == len(program.operations)
        assert len(table) == 0
