"""Replays on real threads: what is given back after them, how they are interrupted, and who is told of what."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.support.rendezvous_program import DEADLINE, Group, Program, is_locked, running
from threads import (
    DETACHED,
    Interrupted,
    ReplayError,
    ReplicaClosedError,
)
from threads.replica import REPLAY_PATIENCE_NS


class InReplay:
    """A group whose replay of the first operation waits for the test."""

    def __init__(self, program: Program, name: str = "replaying") -> None:
        self.group: Group = program.group(name)
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.group.on_apply = self._wait
        self.raised: list[BaseException] = []

    def _wait(self, _sequence: int) -> None:
        self.entered.set()
        assert self.go_on.wait(DEADLINE)

    def run(self) -> None:
        try:
            self.group.replica.synchronize()
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            self.raised.append(error)


class TestAfterReplays:
    """Grace periods."""

    def test_action_when_nothing_replays_is_performed_at_once_and_may_raise(self) -> None:
        """Without a replay under way the caller performs the action, and gets what it raises."""
        program = Program()
        done: list[int] = []
        program.rendezvous.after_replays(lambda: done.append(threading.get_ident()))
        assert done == [threading.get_ident()]

        with pytest.raises(ZeroDivisionError):
            program.rendezvous.after_replays(lambda: print(1 // 0))

    def test_action_is_performed_once_by_the_thread_that_ends_the_last_replay(self) -> None:
        """Two replays under way: the action comes after both, in the second one's thread, with no lock held."""
        program = Program()
        first, second = InReplay(program, "first"), InReplay(program, "second")
        program.commit("a")
        performed: list[tuple[str, bool]] = []

        def action() -> None:
            free = not is_locked(program.rendezvous._lock)
            performed.append((threading.current_thread().name, free))

        with running(first.run, second.run):
            assert first.entered.wait(DEADLINE)
            assert second.entered.wait(DEADLINE)
            program.rendezvous.after_replays(action)
            names = {thread.name for thread in threading.enumerate()}
            assert performed == []
            first.go_on.set()
            second.go_on.set()

        assert len(performed) == 1
        assert performed[0][0] in names - {threading.current_thread().name}
        assert performed[0][1]

    def test_replay_that_begins_later_is_not_waited_for(self) -> None:
        """A replica that begins after the call does not hold the action up."""
        program = Program()
        early, late = InReplay(program, "early"), InReplay(program, "late")
        program.commit("a")
        performed = threading.Event()

        with running(early.run):
            assert early.entered.wait(DEADLINE)
            program.rendezvous.after_replays(performed.set)
            with running(late.run):
                assert late.entered.wait(DEADLINE)
                early.go_on.set()
                assert performed.wait(DEADLINE)
                late.go_on.set()

    @pytest.mark.parametrize("how", ["fails", "leaves"])
    def test_action_is_performed_once_if_the_replica_fails_or_leaves(self, how: str) -> None:
        """However the replay ends, the action comes after it, and not when another thread makes the replica leave."""
        program = Program()
        replaying = InReplay(program)
        program.commit("a")
        performed: list[int] = []

        def end(_sequence: int) -> None:
            replaying._wait(1)
            if how == "fails":
                raise MemoryError

        replaying.group.on_apply = end
        with running(replaying.run):
            assert replaying.entered.wait(DEADLINE)
            program.rendezvous.after_replays(lambda: performed.append(1))
            if how == "leaves":
                program.rendezvous.leave(replaying.group.replica)
            assert performed == []
            replaying.go_on.set()

        assert performed == [1]
        assert [type(error) for error in replaying.raised] == ([ReplayError] if how == "fails" else [])

    def test_exception_of_an_action_is_reported_and_kills_no_replica(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An action that raises in another's thread is reported to the hook for threads; that thread continues."""
        program = Program()
        replaying = InReplay(program)
        program.commit("a")
        reported: list[type[BaseException]] = []
        monkeypatch.setattr(threading, "excepthook", lambda arguments: reported.append(arguments.exc_type))
        performed: list[int] = []

        with running(replaying.run):
            assert replaying.entered.wait(DEADLINE)
            program.rendezvous.after_replays(lambda: print(1 // 0))
            program.rendezvous.after_replays(lambda: performed.append(1))
            replaying.go_on.set()

        assert (reported, performed, replaying.raised) == ([ZeroDivisionError], [1], [])
        with replaying.group.guest():
            assert replaying.group.made == ["a"]

    def test_ctrl_c_in_an_action_is_raised_in_its_thread_and_kills_no_replica(self) -> None:
        """What is no error of the action goes to the thread, which has made its operation and stays a member."""
        program = Program()
        replaying = InReplay(program)
        program.commit("a")
        performed: list[int] = []

        def press() -> None:
            raise KeyboardInterrupt

        with running(replaying.run):
            assert replaying.entered.wait(DEADLINE)
            program.rendezvous.after_replays(press)
            program.rendezvous.after_replays(lambda: performed.append(1))
            replaying.go_on.set()

        assert [type(error) for error in replaying.raised] == [KeyboardInterrupt]
        assert performed == [1]
        assert replaying.group.replica.closed is None
        with replaying.group.guest():
            assert replaying.group.made == ["a"]


def endless(group: Group, started: threading.Event) -> Callable[[int], None]:
    """What a start function that never ends does: it computes, and notices interrupts at its safe points."""

    def start_function(_sequence: int) -> None:
        outer = group.replica.enter_guest()
        try:
            started.set()
            while True:
                group.replica.safe_point()
        finally:
            group.replica.leave_guest(outer)

    return start_function


class TestInterruptedReplays:
    """Operations whose guest code never ends."""

    @pytest.mark.parametrize("how", ["interrupt", "shutdown", "leave"])
    def test_endless_replay_can_be_interrupted_and_ends_its_group_alone(self, how: str) -> None:
        """A cancellation, the program's end and a forced leave all reach it, and are what its thread raises."""
        program = Program()
        group = program.group("endless")
        started = threading.Event()
        group.on_apply = endless(group, started)
        raised: list[BaseException] = []
        reason = SystemExit(3) if how == "shutdown" else Interrupted("cancelled")

        def run() -> None:
            try:
                group.replica.enter_guest()
            except BaseException as error:  # noqa: BLE001 - looked at below
                raised.append(error)

        program.commit("a")
        with running(run):
            assert started.wait(DEADLINE)
            program.commit("b")
            if how == "interrupt":
                group.replica.interrupt_with(reason)
            elif how == "shutdown":
                program.rendezvous.shutdown(reason)
            else:
                program.rendezvous.leave(group.replica, "it was closed")

        if how == "leave":
            assert isinstance(raised[0], ReplicaClosedError)
            assert group.replica.closed == "it was closed"
        else:
            assert raised == [reason]
            assert group.replica.closed == "its replay of operation 1 failed"
        assert group.replica.state == DETACHED
        assert program.rendezvous.statistics().replay_failures == 1
        if how != "shutdown":
            other = program.group("other")
            with other.guest():
                assert other.made == ["a", "b"]

    def test_interrupt_of_a_replay_interrupts_the_engine_until_it_is_heard(self) -> None:
        """A replay counts as guest code: its thread is nudged again while it has not noticed."""
        program = Program()
        replaying = InReplay(program)
        program.commit("a")
        enough = threading.Event()

        def count() -> None:
            if program.bumps == 4:
                enough.set()

        program.on_interrupt = count
        with running(replaying.run):
            assert replaying.entered.wait(DEADLINE)
            replaying.group.replica.interrupt_with(Interrupted())
            assert enough.wait(DEADLINE)
            replaying.go_on.set()

        assert (
            replaying.raised == []
        )  # nothing in it came to a safe point: it was made, and the interrupt is pending
        with pytest.raises(Interrupted), replaying.group.guest():
            pytest.fail("entered")

    def test_interrupt_that_comes_before_a_replay_leaves_the_group_a_member(self) -> None:
        """Raised before anything was half made, an interrupt costs the thread nothing but itself."""
        program = Program()
        group = program.group()
        program.commit("a")
        group.replica.interrupt_with(Interrupted())

        with pytest.raises(Interrupted):
            group.replica.synchronize()

        assert group.replica.closed is None
        assert group.made == []
        group.replica.synchronize()
        assert group.made == ["a"]

    def test_interrupt_that_the_operation_wraps_is_raised_as_it_was(self) -> None:
        """An engine that makes an error of its own from the interrupt does not hide it."""
        program = Program()
        group = program.group()
        cancellation = Interrupted()

        def wrap(_sequence: int) -> None:
            group.replica.interrupt_with(cancellation)
            try:
                while True:
                    group.replica.exit_host()
            except Interrupted:
                raise OSError("trap") from None

        group.on_apply = wrap
        program.commit("a")
        with pytest.raises(Interrupted) as caught:
            group.replica.synchronize()
        assert caught.value is cancellation

    def test_interrupt_of_a_replay_that_ends_soon_leaves_the_group_a_member(self) -> None:
        """An interrupt waits a moment for the operation to end, and then costs the group nothing."""
        program = Program()
        group = program.group()

        def host_call(_sequence: int) -> None:
            group.replica.interrupt_with(Interrupted())
            group.replica.exit_host()

        group.on_apply = host_call
        program.commit("a")
        with pytest.raises(Interrupted):
            group.replica.enter_guest()

        with group.guest():
            assert group.made == ["a"]

    def test_interrupt_of_a_replay_whose_thread_is_held_up_leaves_the_group_a_member(self) -> None:
        """Time that passes while the thread does not run is not the operation's."""
        program = Program()
        group = program.group()

        def host_calls(_sequence: int) -> None:
            group.replica.interrupt_with(Interrupted())
            group.replica.exit_host()
            threading.Event().wait(3 * REPLAY_PATIENCE_NS / 1e9)  # as a busy machine does
            group.replica.exit_host()

        group.on_apply = host_calls
        program.commit("a")
        with pytest.raises(Interrupted):
            group.replica.enter_guest()

        with group.guest():
            assert group.made == ["a"]

    def test_shielded_replay_is_not_interrupted(self) -> None:
        """Where interrupts are held back, a replay is not interrupted either; they are delivered after it."""
        program = Program()
        group = program.group()

        def host_call(_sequence: int) -> None:
            group.replica.interrupt_with(Interrupted())
            group.replica._patient_until = 0
            for _ in range(9):
                group.replica.exit_host()

        group.on_apply = host_call
        program.commit("a")
        with group.replica.waiter.shielded():
            group.replica.synchronize()

        assert group.made == ["a"]
        with pytest.raises(Interrupted):
            group.replica.enter_guest()
