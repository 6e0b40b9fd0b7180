"""The nudger: interrupts again while one of its predicates says that somebody has not noticed."""

from __future__ import annotations

import threading

from tests.support.rendezvous_program import DEADLINE, Program, until
from threads import SYSTEM, Nudger


class TestNudger:
    """One nudger for all kinds of requests."""

    def test_nudge_repeats_until_no_predicate_says_unheard(self) -> None:
        """Two kinds of requests share one repeating thread, which ends when both have been noticed."""
        bumps: list[int] = []
        again = threading.Event()
        pending = {"signal": True, "cancellation": True}

        def interrupt() -> None:
            bumps.append(1)
            if len(bumps) % 3 == 0:
                again.set()

        nudger = Nudger(SYSTEM, interrupt)
        nudger.add(lambda: pending["signal"])
        nudger.add(lambda: pending["cancellation"])
        nudger.nudge()
        for name in ("signal", "cancellation"):
            again.clear()
            assert again.wait(DEADLINE)
            pending[name] = False

        assert nudger._repeating.acquire(timeout=DEADLINE)  # taken once the repeating thread has given up
        count = len(bumps)
        nudger._repeating.release()
        nudger.nudge()
        assert len(bumps) == count + 1

    def test_nudge_without_anybody_unaware_interrupts_once(self) -> None:
        """Nobody is asked again if nobody has to notice."""
        bumps: list[int] = []
        nudger = Nudger(SYSTEM, lambda: bumps.append(1), lambda: False)
        nudger.nudge()
        assert bumps == [1]
        assert nudger._repeating.acquire(blocking=False)

    def test_removed_predicate_is_not_asked(self) -> None:
        """Removing is idempotent, and ends the repetition for that predicate's sake."""
        bumps: list[int] = []
        nudger = Nudger(SYSTEM, lambda: bumps.append(1))
        unheard = lambda: True  # noqa: E731
        nudger.add(unheard)
        nudger.nudge()
        until(lambda: len(bumps) > 2)
        nudger.remove(unheard)
        nudger.remove(unheard)
        assert nudger._repeating.acquire(timeout=DEADLINE)
        count = len(bumps)
        nudger._repeating.release()
        nudger.nudge()
        assert len(bumps) == count + 1

    def test_nudger_of_a_rendezvous_takes_requests_of_others(self) -> None:
        """What a program's linker registers is repeated beside the rendezvous' own requests."""
        program = Program()
        unheard = [True]
        program.rendezvous.nudger.add(lambda: unheard[0])
        program.rendezvous.nudge()
        until(lambda: program.bumps > 3)
        unheard[0] = False
        assert program.rendezvous.nudger._repeating.acquire(timeout=DEADLINE)
        count = program.bumps
        program.rendezvous.nudger._repeating.release()
        assert program.bumps == count
