"""The rendezvous on real threads: who waits for whom, who is told what, and what is left after a failure."""

from __future__ import annotations

import contextlib
import linecache
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType

import pytest

from tests.support.rendezvous_program import DEADLINE, AtLine, Group, Program, held, hurried, running, until
from threads import (
    DETACHED,
    ENDED,
    FREE_THREADED,
    GUEST,
    HOST,
    STALE,
    BarrierTimeoutError,
    FutexTable,
    Interrupted,
    ProtocolError,
    ReplayError,
    Replica,
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
            rendezvous.commit(None, "a", timeout=0.01)

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
        with program.rendezvous.nudger._repeating:  # taken once the repeating thread has given up
            bumps = program.bumps
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

    def test_interrupt_withdrawn_before_the_next_step_is_as_if_it_never_came(self) -> None:
        """A cancellation that came too late does not hit the thread's next guest call."""
        replica = Program().group().replica
        late = Interrupted()
        replica.interrupt_with(late)
        replica.withdraw(late)

        assert replica.enter_guest() == DETACHED
        assert replica.applied == 0


class TestShutdown:
    """The program's end."""

    def test_shutdown_reaches_every_thread_and_leaves_nobody_waiting(self) -> None:
        """Who computes, waits at a futex, waits for the link lock or at a barrier raises what the program ended with."""
        program = Program()
        table = FutexTable()
        deaf = program.group("deaf")
        deaf.replica.enter_guest()  # keeps the barrier waiting
        spinning, waiting, linking = (program.group(name) for name in ("spinning", "waiting", "linking"))
        spins, waits = threading.Event(), threading.Event()
        ended: list[str] = []

        def ends(name: str, run: Callable[[], object]) -> Callable[[], None]:
            def ending() -> None:
                with pytest.raises(SystemExit, match="7"):
                    run()
                ended.append(name)

            return ending

        def wait() -> None:
            with waiting.guest():
                waiting.replica.enter_host()
                table.wait(8, lambda: waits.set() or True, None, waiting.replica.waiter)

        at_barrier = threading.Event()
        program.on_interrupt = at_barrier.set
        with running(
            ends("spinning", lambda: spinning.spin(lambda: False, spins)),
            ends("waiting", wait),
            ends("linking", lambda: program.commit("a", linking)),
        ):
            assert spins.wait(DEADLINE)
            assert waits.wait(DEADLINE)
            assert at_barrier.wait(DEADLINE)
            with running(ends("queueing", lambda: program.commit("b"))):
                until(lambda: program.rendezvous._turn._queue)
                assert program.rendezvous.shutdown(SystemExit(7))

        assert sorted(ended) == ["linking", "queueing", "spinning", "waiting"]
        assert program.operations == []
        assert not program.rendezvous.shutdown(SystemExit(8))
        assert program.rendezvous.version == ENDED

    def test_shutdown_lasts(self) -> None:
        """After the end nobody joins, links or enters guest code, however often they try; leaving works."""
        program = Program()
        group = program.group()
        program.rendezvous.shutdown(SystemExit(3))

        for _ in range(2):
            with pytest.raises(SystemExit):
                group.replica.enter_guest()
            with pytest.raises(SystemExit):
                program.commit("a")
            with pytest.raises(SystemExit):
                program.group("late")
        program.rendezvous.leave(group.replica)
        assert program.rendezvous.statistics().detached == 0


class TestRules:
    """Every guard trips."""

    def test_enter_guest_from_guest_code_is_refused(self) -> None:
        """A host call that forgets enter_host is found at the first call back."""
        replica = Program().group().replica
        replica.enter_guest()
        with pytest.raises(ProtocolError, match=r"^'group' enters guest code from guest code$"):
            replica.enter_guest()

    def test_synchronize_in_guest_code_is_refused(self) -> None:
        """Replaying under running guest code would change it under its feet."""
        replica = Program().group().replica
        replica.enter_guest()
        with pytest.raises(ProtocolError, match="synchronizes in guest code"):
            replica.synchronize()

    def test_replica_that_never_joined_is_refused(self) -> None:
        """Outside a rendezvous there is no entry, and leaving is harmless."""
        replica: Replica[str] = Replica("loner", lambda *_: None)
        with pytest.raises(ReplicaClosedError, match="it has not joined"):
            replica.enter_guest()
        with pytest.raises(ReplicaClosedError):
            replica.synchronize()
        replica.leave_guest()
        replica.state = GUEST
        replica.interrupt_with(Interrupted())
        assert repr(replica) == "<Replica 'loner' guest at 0>"

    def test_join_twice_or_with_a_wrong_number_is_refused(self) -> None:
        """A replica joins once, also after it left, and cannot claim operations that do not exist."""
        program = Program()
        replica = program.group().replica
        with pytest.raises(ProtocolError, match="joins a second time"):
            program.rendezvous.join(replica)
        program.rendezvous.leave(replica)
        with pytest.raises(ProtocolError, match="joins a second time"):
            program.rendezvous.join(replica)
        with pytest.raises(ProtocolError, match="'late' joins with 1 operations, of 0"):
            program.group("late", applied=1)

    def test_instigate_where_it_would_hang_is_refused(self) -> None:
        """Again in the same thread, in guest code, and inside a replay: refused, and the lock is where it was."""
        program = Program()
        group = program.group()
        rendezvous = program.rendezvous
        with rendezvous.instigate(group.replica):
            with pytest.raises(ProtocolError, match="that its own thread holds"), rendezvous.instigate(None):
                pytest.fail("entered")
            with pytest.raises(ProtocolError), rendezvous.instigate(group.replica):
                pytest.fail("entered")
            assert rendezvous._turn.holder is group.replica.waiter
        with (
            group.guest(),
            pytest.raises(ProtocolError, match="in guest code"),
            rendezvous.instigate(group.replica),
        ):
            pytest.fail("entered")

        def link(_sequence: int) -> None:
            with pytest.raises(ProtocolError, match="while it replays"), rendezvous.instigate(group.replica):
                pytest.fail("entered")

        group.on_apply = link
        program.commit("a")
        group.replica.synchronize()
        assert group.made == ["a"]

    def test_commit_without_the_link_lock_is_refused(self) -> None:
        """Outside instigate, for another replica, from another thread, and by one that has left."""
        program = Program()
        group, other = program.group(), program.group("other")
        rendezvous = program.rendezvous
        with pytest.raises(ProtocolError, match="does not hold the link lock"):
            rendezvous.commit(group.replica, "a")
        with rendezvous.instigate(group.replica):
            with pytest.raises(ProtocolError):
                rendezvous.commit(other.replica, "a")

            def elsewhere() -> None:
                with pytest.raises(ProtocolError):
                    rendezvous.commit(group.replica, "a")

            with running(elsewhere):
                pass
            rendezvous.leave(group.replica)
            with pytest.raises(ReplicaClosedError):
                rendezvous.commit(group.replica, "a")
        assert program.operations == []


class TestStatistics:
    """What can be seen from outside."""

    def test_statistics_count_states_barriers_and_catch_ups(self) -> None:
        """One snapshot tells who is where and what has happened."""
        program = Program()
        groups = [program.group(str(i)) for i in range(3)]
        program.commit("a")
        groups[0].replica.enter_guest()
        groups[1].replica.enter_guest()
        groups[1].replica.enter_host()

        statistics = program.rendezvous.statistics()

        assert (statistics.detached, statistics.host, statistics.guest) == (1, 1, 1)
        assert (statistics.committed, statistics.barriers, statistics.catch_ups) == (1, 1, 2)
        assert len(statistics.barrier_seconds) == 1
        assert 0 <= statistics.barrier_seconds[0] < DEADLINE

    def test_statistics_keep_the_last_barriers_only(self) -> None:
        """The samples are bounded however many operations a program makes."""
        program = Program()
        for i in range(1_100):
            program.commit(str(i))

        statistics = program.rendezvous.statistics()

        assert (statistics.committed, len(statistics.barrier_seconds)) == (1_100, 1_024)


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
