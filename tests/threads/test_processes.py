"""A program in a forked child: refused with a clear error, and closed without waiting."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from tests.support.forks import in_child
from tests.support.rendezvous_program import DEADLINE, Program, running
from threads import ForkedProcessError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


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
