"""What an instigator makes of what others have committed, and when: before its body, but not while it holds the link lock."""

from __future__ import annotations

import threading

import pytest

from tests.support.rendezvous_program import DEADLINE, Program, running
from threads import ProtocolError, ReplicaClosedError


def test_others_take_the_link_lock_while_an_instigator_follows() -> None:
    """A thread that replays before its own change, however long that takes, holds nobody up; then it is up to date."""
    program = Program()
    slow = program.group("slow")
    replays, others_are_done = threading.Event(), threading.Event()
    program.commit("a")

    def wait(sequence: int) -> None:
        if sequence == 1:
            replays.set()
            assert others_are_done.wait(DEADLINE)

    slow.on_apply = wait

    def change() -> None:
        with program.rendezvous.instigate(slow.replica):
            assert slow.made == ["a", "b", "c"]
            slow.made.append("own")
            program.rendezvous.commit(slow.replica, "own")

    with running(change):
        assert replays.wait(DEADLINE)
        program.commit("b")
        program.commit("c", program.group("quick"))
        others_are_done.set()
    assert program.operations == ["a", "b", "c", "own"]


def test_who_commits_nothing_of_its_own_need_not_follow() -> None:
    """Its body begins at once; it may commit what its group has not made either, and makes that like all others."""
    program = Program()
    group = program.group()
    program.commit("a")
    with program.rendezvous.instigate(group.replica, current=False):
        assert group.made == []
        with pytest.raises(ProtocolError, match="before it has made"):
            program.rendezvous.commit(group.replica, "own")
        program.rendezvous.commit(None, "b")
    with group.guest():
        assert group.made == program.operations == ["a", "b"]


def test_a_group_that_has_ended_gets_no_link_lock() -> None:
    """Whether it would follow or not; and the lock is free afterwards."""
    program = Program()
    group = program.group()
    program.rendezvous.leave(group.replica, "gone")
    for current in (True, False):
        with (
            pytest.raises(ReplicaClosedError, match="gone"),
            program.rendezvous.instigate(group.replica, current=current),
        ):
            raise AssertionError("it has the lock")
    assert program.commit("a") == 1
