"""The scheduler that explores the orders of steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from threads.testing import ScheduleError, Scheduler, explore


class TestScheduler:
    """The scheduler itself."""

    def test_explore_of_a_lost_update_finds_it_with_one_preemption(self) -> None:
        """Two threads that read, then write, lose an update in some order, and only with a preemption."""

        def program(scheduler: Scheduler) -> Callable[[], None]:
            total = [0]

            def add() -> None:
                scheduler.point("before the read")
                seen = total[0]
                scheduler.point("before the write")
                total[0] = seen + 1

            def check() -> None:
                assert total == [2]

            scheduler.spawn(add, "one")
            scheduler.spawn(add, "two")
            return check

        assert explore(program, preemptions=0).complete
        with pytest.raises(ScheduleError):
            explore(program, preemptions=1)

    def test_explore_of_locks_taken_in_opposite_orders_finds_the_deadlock(self) -> None:
        """Nobody can go on is a failure that names who waits."""

        def program(scheduler: Scheduler) -> None:
            first, second = scheduler.lock(), scheduler.lock()

            def take(a: Any, b: Any) -> None:
                with a, b:
                    pass

            scheduler.spawn(lambda: take(first, second), "one")
            scheduler.spawn(lambda: take(second, first), "two")

        with pytest.raises(ScheduleError) as caught:
            explore(program, preemptions=1)

        assert caught.value.kind == "deadlock"
        assert caught.value.detail == "nobody can go on; waiting: one, two"

    def test_explore_within_its_bound_makes_every_schedule_once(self) -> None:
        """Two threads of two free steps each have as many orders as the bound allows, no more, each once."""
        seen: list[str] = []

        def program(scheduler: Scheduler) -> Callable[[], None]:
            trace: list[str] = []

            def run(name: str) -> None:
                for _ in range(2):
                    scheduler.point("step")
                    trace.append(name)

            scheduler.spawn(lambda: run("a"), "a")
            scheduler.spawn(lambda: run("b"), "b")
            return lambda: seen.append("".join(trace))

        result = explore(program, preemptions=8)

        assert result.complete
        assert set(seen) == {"aabb", "abab", "abba", "baab", "baba", "bbaa"}
