"""The rendezvous on real threads: who waits for whom, who is told what, and what is left after a failure."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from functools import partial

import pytest

from tests.support.rendezvous_program import DEADLINE, Group, Program, running, until
from threads import (
    DETACHED,
    FREE_THREADED,
    GUEST,
    HOST,
    STALE,
    BarrierTimeoutError,
    FutexTable,
    Interrupted,
    ReplayError,
    ReplicaClosedError,
    WaitResult,
)


class TestStates:
    """Into guest code and out of it."""

    def test_enter_and_leave_nest_through_host_calls(self) -> None:
        """Guest code, host call, guest code and back: every leaving restores the state that was entered from."""
        group = Program().group()
        replica = group.replica

        states = [replica.state]
        outer = replica.enter_guest()
        states.append(replica.state)
        replica.enter_host()
        states.append(replica.state)
        inner = replica.enter_guest()
        states.append(replica.state)
        replica.leave_guest(inner)
        states.append(replica.state)
        replica.exit_host()
        states.append(replica.state)
        replica.leave_guest(outer)
        states.append(replica.state)

        assert states == [DETACHED, GUEST, HOST, GUEST, HOST, GUEST, DETACHED]

    def test_enter_guest_applies_what_is_missing_in_order(self) -> None:
        """A group that was elsewhere during three operations has made them, in order, when it enters."""
        program = Program()
        group = program.group()
        for operation in "abc":
            program.commit(operation)

        with group.guest():
            assert group.made == ["a", "b", "c"]
            assert group.replica.applied == program.rendezvous.version == 3

    def test_join_with_a_number_replays_only_what_follows(self) -> None:
        """A group built from the first two operations replays the third and no other."""
        program = Program()
        for operation in "abc":
            program.commit(operation)

        group = program.group("late", applied=2)
        with group.guest():
            pass

        assert group.made == ["a", "b", "c"]

    def test_exit_host_and_synchronize_apply_what_is_missing(self) -> None:
        """A host call can look at its own group up to date, and returns to guest code only up to date."""
        program = Program()
        group = program.group()
        replica = group.replica
        with group.guest():
            replica.enter_host()
            program.commit("a")
            assert group.made == []
            replica.synchronize()
            assert group.made == ["a"]
            program.commit("b")
            replica.exit_host()
            assert group.made == ["a", "b"]

    def test_inline_forms_do_what_the_methods_do(self) -> None:
        """The two-line forms that a caller may write out enter, catch up and leave like the methods."""
        program = Program()
        group = program.group()
        replica, rendezvous = group.replica, program.rendezvous
        program.commit("a")

        replica.state = GUEST
        if replica.applied != rendezvous.version:
            replica.catch_up()
        assert (replica.state, group.made) == (GUEST, ["a"])
        replica.state = DETACHED
        if rendezvous.version < 0:
            replica.arrive()

        program.commit("b")
        assert program.rendezvous.statistics().detached == 1

    def test_replay_that_runs_guest_code_stays_in_its_replay(self) -> None:
        """Guest code and host calls inside a replay neither recurse into it nor count as guest code."""
        program = Program()
        group = program.group()
        replica = group.replica
        states: list[int] = []

        def initialize(_sequence: int) -> None:
            outer = replica.enter_guest()
            states.append(replica.state)
            replica.enter_host()
            replica.exit_host()
            replica.safe_point()
            states.append(replica.state)
            replica.synchronize()
            replica.leave_guest(outer)
            states.append(replica.state)

        group.on_apply = initialize
        program.commit("a")
        program.commit("b")

        with group.guest():
            assert replica.state == GUEST
            assert group.made == ["a", "b"]
        assert states == [HOST, HOST, HOST] * 2


class TestBarrier:
    """Who waits for whom."""

    def test_commit_when_nobody_is_in_guest_code_interrupts_nobody(self) -> None:
        """Detached groups and groups in host calls are neither waited for nor interrupted."""
        program = Program()
        program.group("detached")
        parked = program.group("parked")
        parked.replica.enter_guest()
        parked.replica.enter_host()

        assert program.commit("a") == 1
        assert program.bumps == 0

    def test_commit_while_a_guest_computes_waits_for_its_safe_point(self) -> None:
        """A thread that spins is interrupted once, links, and goes on with the operation made."""
        program = Program()
        group = program.group()
        started = threading.Event()

        with running(lambda: group.spin(lambda: "a" in group.made, started)):
            assert started.wait(DEADLINE)
            assert program.commit("a") == 1

        assert group.made == ["a"]
        # These rounds come to a safe point unasked; without a GIL that may be before the instigator interrupts.
        assert program.bumps >= (0 if FREE_THREADED else 1)

    def test_commit_waits_for_no_follower_to_replay(self) -> None:
        """The instigator goes on while a follower is still replaying."""
        program = Program()
        group = program.group()
        started, committed = threading.Event(), threading.Event()
        group.on_apply = lambda _: (
            None if committed.wait(DEADLINE) else pytest.fail("commit waited for the replay")
        )

        with running(lambda: group.spin(lambda: bool(group.made), started)):
            assert started.wait(DEADLINE)
            program.commit("a")
            committed.set()

    def test_commit_while_a_thread_waits_for_ever_goes_through(self) -> None:
        """A group in a futex wait without a limit delays nobody, and catches up before it runs on."""
        program = Program()
        group = program.group()
        table = FutexTable()
        waiting = threading.Event()
        seen: list[list[str]] = []

        def still_expected() -> bool:
            waiting.set()
            return True

        def wait() -> None:
            with group.guest():
                group.replica.enter_host()
                assert table.wait(8, still_expected, None, group.replica.waiter) is WaitResult.WOKEN
                group.replica.exit_host()
                seen.append(list(group.made))

        with running(wait):
            assert waiting.wait(DEADLINE)
            program.commit("a")
            assert group.made == []
            assert table.wake(8, 1) == 1

        assert seen == [["a"]]

    def test_commit_when_a_guest_dies_during_the_barrier_goes_on(self) -> None:
        """A barrier forgets a group that leaves while it waits for it."""
        program = Program()
        dying = program.group("dying")
        dying.replica.enter_guest()
        program.on_interrupt = lambda: program.rendezvous.leave(dying.replica)

        assert program.commit("a") == 1
        assert program.rendezvous.statistics().guest == 0
        with pytest.raises(ReplicaClosedError, match=r"^'dying' cannot enter guest code: it has left$"):
            dying.replica.safe_point()

    def test_commit_that_times_out_names_who_did_not_come_and_commits_nothing(self) -> None:
        """After the limit the barrier says who is missing, and everything is as before."""
        program = Program()
        groups = [program.group(name) for name in ("first", "second")]
        for group in groups:
            group.replica.enter_guest()
        rendezvous = program.rendezvous

        with rendezvous.instigate(None), pytest.raises(BarrierTimeoutError) as caught:
            rendezvous.commit(None, "a", timeout=0.1)

        assert caught.value.replicas == ("first", "second")
        assert str(caught.value).endswith("by 'first', 'second'")
        assert (rendezvous.version, rendezvous.committed, rendezvous._awaited) == (0, 0, {})
        groups[0].replica.safe_point()
        assert groups[0].replica.state == GUEST
        assert program.bumps >= 2

    def test_commit_when_interrupting_fails_commits_nothing(self) -> None:
        """An engine that cannot be interrupted makes the operation fail, not hang, and the gate opens again."""

        def fail() -> None:
            raise OSError("no interrupts")

        program = Program(fail)
        group = program.group()
        group.replica.enter_guest()

        with pytest.raises(OSError, match="no interrupts"):
            program.commit("a")
        group.replica.leave_guest()

        assert program.commit("b") == 1
        assert program.operations == ["b"]

    def test_commit_interrupted_while_it_waits_rolls_back(self) -> None:
        """A cancelled instigator raises out of its wait; the operation is not in the log and others run on."""
        program = Program()
        linking, other = program.group("linking"), program.group("other")
        other.replica.enter_guest()
        cancellation = Interrupted("cancelled")
        program.on_interrupt = lambda: linking.replica.interrupt_with(cancellation)

        with pytest.raises(Interrupted) as caught:
            program.commit("a", linking)

        assert caught.value is cancellation
        assert program.operations == []
        other.replica.safe_point()
        assert other.replica.state == GUEST

    def test_commit_when_ctrl_c_comes_while_it_waits_rolls_back(self) -> None:
        """A signal handler's exception in the barrier's wait leaves no trace."""
        program = Program()
        group = program.group()
        group.replica.enter_guest()
        waiting = threading.Event()
        program.on_interrupt = waiting.set

        def press() -> None:
            assert waiting.wait(DEADLINE)
            os.kill(os.getpid(), signal.SIGINT)

        with running(press), pytest.raises(KeyboardInterrupt):
            program.commit("a")

        group.replica.leave_guest()
        assert (program.commit("b"), program.operations) == (1, ["b"])

    def test_instigators_come_one_at_a_time_in_the_order_they_asked(self) -> None:
        """The link lock is handed over in arrival order, and each body starts with all operations made."""
        program = Program()
        groups = [program.group(str(i)) for i in range(5)]
        turn = program.rendezvous._turn
        inside: list[str] = []

        def link(group: Group) -> None:
            with program.rendezvous.instigate(group.replica):
                assert group.made == program.operations == inside
                inside.append(group.replica.name)
                group.made.append(group.replica.name)
                program.rendezvous.commit(group.replica, group.replica.name)

        with contextlib.ExitStack() as stack, program.rendezvous.instigate(None):
            for count, group in enumerate(groups, 1):
                stack.enter_context(running(partial(link, group)))
                while len(turn._queue) < count:  # each has asked before the next one does
                    threading.Event().wait(0.001)

        assert program.operations == ["0", "1", "2", "3", "4"]

    def test_instigate_cancelled_while_it_waits_for_its_turn_leaves_the_queue(self) -> None:
        """A thread that waits for the link lock can be cancelled, and the lock goes to the next."""
        program = Program()
        group = program.group()
        raised: list[BaseException] = []

        def link() -> None:
            try:
                program.commit("a", group)
            except Interrupted as error:
                raised.append(error)

        with program.rendezvous.instigate(None), running(link):
            until(lambda: program.rendezvous._turn._queue)
            group.replica.interrupt_with(Interrupted())

        assert len(raised) == 1
        assert program.commit("b") == 1


class TestReplayFailures:
    """A follower that cannot follow."""

    def test_replay_that_raises_ends_its_group_alone(self) -> None:
        """The thread gets an error that names group, operation and cause; the others and the log go on."""
        program = Program()
        failing, living = program.group("failing"), program.group("living")

        def fail(sequence: int) -> None:
            if sequence == 2:
                raise MemoryError("no table space")

        failing.on_apply = fail
        for operation in "abc":
            program.commit(operation)

        with pytest.raises(ReplayError) as caught:
            failing.replica.enter_guest()

        assert str(caught.value) == "'failing' cannot replay operation 2: MemoryError: no table space"
        assert isinstance(caught.value.__cause__, MemoryError)
        assert failing.made == ["a"]
        with pytest.raises(ReplicaClosedError, match="its replay of operation 2 failed"):
            failing.replica.enter_guest()
        with living.guest():
            assert living.made == ["a", "b", "c"]
        statistics = program.rendezvous.statistics()
        assert (statistics.replay_failures, statistics.detached) == (1, 1)

    def test_replay_cut_off_by_ctrl_c_ends_its_group_and_raises_as_it_is(self) -> None:
        """A group half way through an operation may not go on, whatever cut it off; Ctrl-C stays Ctrl-C."""
        program = Program()
        group = program.group()

        def press(_sequence: int) -> None:
            raise KeyboardInterrupt

        group.on_apply = press
        program.commit("a")

        with pytest.raises(KeyboardInterrupt):
            group.replica.enter_guest()
        assert group.replica.closed == "its replay of operation 1 failed"
        assert group.replica.state == DETACHED

    def test_instigate_when_the_caller_cannot_catch_up_gives_the_lock_back(self) -> None:
        """A group that fails to replay on its way into the link lock does not keep it."""
        program = Program()
        group = program.group()

        def fail(_sequence: int) -> None:
            raise ValueError

        group.on_apply = fail
        program.commit("a")

        with pytest.raises(ReplayError), program.rendezvous.instigate(group.replica):
            pytest.fail("entered")
        assert program.commit("b") == 2


class TestInterrupts:
    """Exceptions for one thread."""

    @pytest.mark.parametrize("where", ["safe_point", "exit_host", "enter_guest"])
    def test_interrupt_is_raised_once_at_the_next_step(self, where: str) -> None:
        """A pending interrupt is raised at a safe point, a host call's exit or an entry, and then is gone."""
        program = Program()
        replica = program.group().replica
        if where != "enter_guest":
            replica.enter_guest()
        if where == "exit_host":
            replica.enter_host()
        cancellation = Interrupted()
        replica.interrupt_with(cancellation)
        assert replica.applied == STALE

        with pytest.raises(Interrupted) as caught:
            getattr(replica, where)()

        assert caught.value is cancellation
        assert replica.state != GUEST
        replica.leave_guest()
        replica.leave_guest(replica.enter_guest())
        assert replica.applied == 0

    def test_interrupt_of_a_computing_thread_interrupts_the_engine_until_it_is_heard(self) -> None:
        """A thread that misses the first interrupts is asked again, and nobody is once it has heard."""
        heard = threading.Event()
        program = Program()
        group = program.group()
        group.replica.enter_guest()

        def count() -> None:
            if program.bumps == 4:
                heard.set()

        program.on_interrupt = count
        group.replica.interrupt_with(Interrupted())
        assert heard.wait(DEADLINE)

        with pytest.raises(Interrupted):
            group.replica.safe_point()
        assert program.rendezvous.nudger._repeating.acquire(
            timeout=DEADLINE
        )  # taken once the repeating thread has given up
        bumps = program.bumps
        program.rendezvous.nudger._repeating.release()
        assert program.bumps == bumps

    def test_interrupts_are_raised_in_the_order_they_came_unless_withdrawn(self) -> None:
        """Three interrupts, the second taken back: the first and the third are raised, one a step."""
        replica = Program().group().replica
        first, second, third = (Interrupted(name) for name in ("first", "second", "third"))
        for exception in (first, second, third):
            replica.interrupt_with(exception)

        assert replica.withdraw(second)
        assert not replica.withdraw(second)
        for expected in (first, third):
            with pytest.raises(Interrupted) as caught:
                replica.enter_guest()
            assert caught.value is expected
        assert replica.enter_guest() == DETACHED

    def test_the_interrupt_that_is_withdrawn_is_that_one_and_not_an_equal_one(self) -> None:
        """Of two exceptions that say they are equal, as those of a dataclass do, the one that was not taken back is raised."""

        class Equal(Interrupted):
            def __eq__(self, other: object) -> bool:
                return isinstance(other, Equal)

            __hash__ = None  # type: ignore[assignment]

        replica = Program().group().replica
        first, second = Equal("first"), Equal("second")
        for exception in (first, second):
            replica.interrupt_with(exception)

        assert replica.withdraw(second)
        assert not replica.withdraw(second)
        with pytest.raises(Equal) as caught:
            replica.enter_guest()
        assert caught.value is first
        assert replica.enter_guest() == DETACHED

    def test_interrupt_withdrawn_before_the_next_step_is_as_if_it_never_came(self) -> None:
        """A cancellation that came too late does not hit the thread's next guest call."""
        replica = Program().group().replica
        late = Interrupted()
        replica.interrupt_with(late)
        replica.withdraw(late)

        assert replica.enter_guest() == DETACHED
        assert replica.applied == 0
