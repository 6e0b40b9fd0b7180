"""Mutants: each breaks one rule of the protocol, and the exploration must notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import threads
import threads.rendezvous
import threads.waits
from tests.support.rendezvous_world import World
from tests.threads.test_model import (
    a_cancelled_computation,
    a_futex_handshake,
    a_guest_in_and_out_of_host_calls,
    a_guest_that_dies,
    two_guests_and_a_host_thread,
)
from threads import (
    CLOSED,
    DETACHED,
    GUEST,
    HOST,
    Rendezvous,
    Replica,
    WaitResult,
    Waits,
)
from threads.testing import ScheduleError, Scheduler, explore, replay


class ChecksBeforeItWrites(Replica[str]):
    """Reads the version, then becomes GUEST."""

    def enter_guest(self) -> int:
        previous = self.state
        if self.applied != self._rendezvous.version:
            self.catch_up()
        self.waiter.platform.point("mutant")  # type: ignore[attr-defined]
        self.state = GUEST
        return previous


class ForgetsToReCheck(Replica[str]):
    """Goes on after replaying without looking whether the gate closed meanwhile."""

    def catch_up(self) -> None:
        self.state = HOST
        self._rendezvous.pass_gate(self)
        self._replay()
        self.waiter.platform.point("mutant")  # type: ignore[attr-defined]
        self.state = GUEST


class LeavesSilently(Replica[str]):
    """Does not tell a waiting barrier that it left guest code."""

    def leave_guest(self, to: int = DETACHED) -> None:
        self.state = to


class SettlesInTheWrongOrder(Replica[str]):
    """Looks for interrupts first and writes its number afterwards: an interrupt between the two is overwritten."""

    def settle(self) -> None:
        stale = self._closed is not None or self.waiter.interrupted
        self.waiter.platform.point("mutant")  # type: ignore[attr-defined]
        self.applied = threads.STALE if stale else self.sequence


class LooksBeforeItCloses(Rendezvous[str]):
    """Reads who is GUEST, then closes the gate."""

    def _close_gate(self, waiter: threads.Waiter) -> list[Replica[str]]:
        with self._lock:
            self._instigator = waiter
            self._awaited = {other: None for other in self._replicas if other.state == GUEST}
            self._platform.point("mutant")  # type: ignore[attr-defined]
            self.version = CLOSED
            return list(self._awaited)


class DoesNotWait(Rendezvous[str]):
    """Commits without waiting for threads in guest code."""

    def _gather(self, waiter: threads.Waiter, timeout: float | None) -> None:
        self._call_interrupt()


class WaitsForTheDead(Rendezvous[str]):
    """Forgets a replica, but not that the barrier waits for it."""

    def leave(self, replica: Replica[str], reason: str = "it has left") -> None:
        with self._lock:
            self._replicas.pop(replica, None)
            replica.left(reason)


class OpensTooEarly(Rendezvous[str]):
    """Opens the gate, then appends."""

    def commit(
        self, replica: Replica[str] | None, operation: str, *, timeout: float | None = None, **_: Any
    ) -> int:
        waiter = self._turn.holder
        assert waiter is not None
        self._close_gate(waiter)
        self._gather(waiter, timeout)
        self._open_gate(None)
        self._platform.point("mutant")  # type: ignore[attr-defined]
        self.log.append(operation)
        self._open_gate(replica)
        return self.committed


MUTANTS: list[tuple[Any, dict[str, Any]]] = [
    (two_guests_and_a_host_thread, {"replica": ChecksBeforeItWrites}),
    (two_guests_and_a_host_thread, {"replica": LeavesSilently}),
    (two_guests_and_a_host_thread, {"rendezvous": LooksBeforeItCloses}),
    (two_guests_and_a_host_thread, {"rendezvous": DoesNotWait}),
    (two_guests_and_a_host_thread, {"rendezvous": OpensTooEarly}),
    (a_guest_in_and_out_of_host_calls, {"replica": ForgetsToReCheck}),
    (a_guest_that_dies, {"rendezvous": WaitsForTheDead}),
    (a_cancelled_computation, {"replica": SettlesInTheWrongOrder}),
]


class TestMutants:
    """The checker can fail."""

    @pytest.mark.parametrize(
        ("scenario", "types"), MUTANTS, ids=lambda value: value.__name__ if callable(value) else None
    )
    def test_mutant_of_the_protocol_is_caught(self, scenario: Any, types: dict[str, Any]) -> None:
        """A protocol with one rule broken fails, and its schedule fails again."""

        def program(scheduler: Scheduler) -> Callable[[], None]:
            check: Callable[[], None] = scenario(scheduler, **types)
            return check

        with pytest.raises(ScheduleError) as caught:
            explore(program, preemptions=2, limit=4_000)

        with pytest.raises(ScheduleError) as again:
            replay(program, caught.value.schedule)
        assert (again.value.kind, again.value.trail) == (caught.value.kind, caught.value.trail)

    def test_interrupt_that_is_not_repeated_is_caught(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A barrier that interrupts once hangs on a thread that was just leaving its callback."""
        monkeypatch.setattr(threads.rendezvous, "FIRST_REPEAT_NS", 10**15)

        def program(scheduler: Scheduler) -> Callable[[], None]:
            world = World(scheduler)
            spinning = world.group("spinning")

            def host() -> None:
                world.commit(None, "a")
                world.commit(None, "b")

            scheduler.spawn(lambda: spinning.spin_until(lambda: world.rendezvous.committed == 2), "spinning")
            scheduler.spawn(host, "host")
            return world.check

        with pytest.raises(ScheduleError) as caught:
            explore(program, preemptions=2, limit=6_000)

        assert caught.value.kind == "endless"

    def test_wake_that_leaves_its_waiter_counted_as_stuck_is_caught(self) -> None:
        """A woken thread that still counts as stuck makes a false deadlock, and the run shows it."""

        class CountsTheWoken(Waits):
            def wake_locked(self, queue: threads.waits.WaitQueue, count: int) -> list[threads.Waiter]:
                woken = []
                for wait in list(queue)[:count]:
                    del queue[wait]
                    wait.done = True
                    woken.append(wait.waiter)
                return woken

        with pytest.raises(ScheduleError) as caught:
            explore(lambda scheduler: a_futex_handshake(scheduler, CountsTheWoken), preemptions=2)

        assert "assert [DeadlockErro" in caught.value.detail

    def test_wake_between_check_and_enqueueing_is_caught(self) -> None:
        """A wait that checks the value before it takes the lock loses a wake, and the run shows it."""

        class ChecksOutside(Waits):
            def wait(self, waiter: Any, what: str, admit: Any, timeout_ns: int | None = None) -> WaitResult:
                queue = admit()
                if queue is None:
                    return WaitResult.NOT_EQUAL
                waiter.platform.point("mutant")
                return super().wait(waiter, what, lambda: queue, timeout_ns)

        with pytest.raises(ScheduleError) as caught:
            explore(lambda scheduler: a_futex_handshake(scheduler, ChecksOutside), preemptions=2)

        assert caught.value.kind in {"deadlock", "error"}
