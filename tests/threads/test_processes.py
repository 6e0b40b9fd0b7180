"""A program in a forked child: refused with a clear error, and closed without waiting."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable

import pytest

from tests.support.rendezvous_program import DEADLINE, Program, running
from threads import ForkedProcessError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def in_child(check: Callable[[], None]) -> None:
    """Run a check in a forked child; it must return within the test's time limit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 and later warn of what is tested here
        child = os.fork()
    if child == 0:
        status = 1
        try:
            check()
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class TestFork:
    """What a child may and may not do."""

    @pytest.mark.timeout(60)
    def test_child_is_refused_and_closes_at_once_whatever_the_parent_was_doing(self) -> None:
        """With all locks held, the gate closed and the link lock taken in the parent, nothing in the child hangs."""
        program = Program()
        group = program.group()
        deaf = program.group("deaf")
        deaf.replica.enter_guest()
        at_barrier = threading.Event()
        program.on_interrupt = at_barrier.set
        rendezvous = program.rendezvous

        def check() -> None:
            message = (
                f"^the program belongs to process {os.getppid()} and cannot be used in process {os.getpid()}"
            )
            attempts: list[Callable[[], object]] = [
                lambda: rendezvous.instigate(None).__enter__(),
                lambda: rendezvous.instigate(group.replica).__enter__(),
                lambda: program.group("another"),
                lambda: rendezvous.after_replays(lambda: None),
                rendezvous.statistics,
                group.replica.enter_guest,
                deaf.replica.safe_point,
            ]
            for attempt in attempts:
                with pytest.raises(ForkedProcessError, match=message):
                    attempt()
            rendezvous.leave(group.replica)
            assert rendezvous.shutdown(SystemExit()) is False

        with running(lambda: program.commit("a")):
            assert at_barrier.wait(DEADLINE)
            with rendezvous._lock, rendezvous._turn._lock:
                in_child(check)
            deaf.replica.leave_guest()

        with group.guest():
            assert group.made == ["a"]
