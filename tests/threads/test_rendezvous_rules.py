"""What the rendezvous refuses, how it ends, and what it counts."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.support.rendezvous_program import DEADLINE, Program, running, until
from threads import (
    ENDED,
    GUEST,
    FutexTable,
    InGuestCodeError,
    Interrupted,
    ProtocolError,
    Replica,
    ReplicaClosedError,
)


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
        with pytest.raises(InGuestCodeError, match=r"^'group' enters guest code from guest code$"):
            replica.enter_guest()

    def test_synchronize_in_guest_code_is_refused(self) -> None:
        """Replaying under running guest code would change it under its feet."""
        replica = Program().group().replica
        replica.enter_guest()
        with pytest.raises(InGuestCodeError, match="synchronizes in guest code"):
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
            pytest.raises(InGuestCodeError, match="in guest code"),
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
