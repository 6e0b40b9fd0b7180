"""While a barrier waits for threads, Python's threads take turns sooner; afterwards as before."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from tests.support.rendezvous_program import Program, running
from threads import BarrierTimeoutError
from threads.switching import HURRIED_SECONDS, SwitchInterval

ORDINARY = 0.004
"""Seconds; what the process has set."""


@pytest.fixture(autouse=True)
def _ordinary() -> Iterator[None]:
    former = sys.getswitchinterval()
    sys.setswitchinterval(ORDINARY)
    yield
    sys.setswitchinterval(former)


def interval() -> float:
    return round(sys.getswitchinterval(), 6)


def test_a_barrier_that_waits_hurries() -> None:
    """The interval is short while a thread in guest code is waited for, and what it was when the operation is committed."""
    program = Program()
    group = program.group()
    group.replica.enter_guest()
    seen: list[float] = []

    def leave() -> None:
        seen.append(interval())
        group.replica.leave_guest()

    program.on_interrupt = leave
    program.commit("a")

    assert seen == [HURRIED_SECONDS]
    assert interval() == ORDINARY


def test_a_barrier_without_anybody_in_guest_code_does_not() -> None:
    """Nothing is changed where nobody has to be waited for."""
    program = Program()
    group = program.group()

    def look() -> None:
        raise AssertionError("nobody is interrupted")

    program.on_interrupt = look
    program.commit("a")
    assert group.replica.closed is None
    assert interval() == ORDINARY


def test_a_barrier_that_fails_puts_the_interval_back() -> None:
    """Time-outs and interrupts leave the interval as it was."""
    program = Program()
    program.group().replica.enter_guest()

    with pytest.raises(BarrierTimeoutError):
        with program.rendezvous.instigate(None):
            program.rendezvous.commit(None, "a", timeout=0.01)
    assert interval() == ORDINARY


def test_the_last_one_that_waits_puts_it_back() -> None:
    """Of two barriers at a time the first to end changes nothing."""
    switching, one, other = SwitchInterval(), object(), object()
    switching.hurry(one)
    switching.hurry(other)
    switching.relax(one)
    switching.relax(one)
    assert interval() == HURRIED_SECONDS
    switching.relax(other)
    assert interval() == ORDINARY


def test_what_the_host_sets_meanwhile_stays() -> None:
    """An interval that is set while a barrier waits is not overwritten; a shorter one is not made longer."""
    switching, asker = SwitchInterval(), object()
    switching.hurry(asker)
    sys.setswitchinterval(0.02)
    switching.relax(asker)
    assert interval() == 0.02

    sys.setswitchinterval(0.00005)
    switching.hurry(asker)
    assert interval() == 0.00005
    switching.relax(asker)
    assert interval() == 0.00005


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_begins_with_the_former_interval() -> None:
    """A child that is forked while a barrier waits has nobody who would put the interval back."""
    program = Program()
    group = program.group()
    group.replica.enter_guest()
    codes: list[int] = []

    def fork() -> None:
        child = os.fork()
        if not child:
            os._exit(0 if interval() == ORDINARY else 1)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        group.replica.leave_guest()

    program.on_interrupt = fork
    with running(lambda: program.commit("a")):
        pass
    assert codes == [0]
