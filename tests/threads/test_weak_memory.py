"""The protocol where threads see each other's stores late, as without a GIL; and without one of its fences."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import threads
from tests.support.rendezvous_world import ProgramEndedError, World
from tests.threads import test_model, test_replay_model
from threads import Interrupted, Nudger, ReplicaClosedError, Waiter, Waits
from threads.testing import Program, ScheduleError, Scheduler, WeakMemory, explore, replay, walk

# Late stores exist without a GIL only, from 3.13 on.
pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="which step releases a lock is seen in the bytecode of 3.11 and later"
)

MEMORIES = {"membarrier": WeakMemory(), "locks": WeakMemory(locks=True)}


def a_group_made_to_leave_while_it_replays(scheduler: Scheduler, **types: Any) -> Callable[[], None]:
    """Another thread ends a group; its own thread, which is settling after a replay, must learn of it."""
    world = World(scheduler, **types)
    leaving = world.group("leaving")

    def enter_until_refused() -> None:
        with pytest.raises(ReplicaClosedError):  # noqa: PT012 - the round in which it happens is open
            while True:
                leaving.replica.enter_guest()
                leaving.replica.leave_guest()
                scheduler.pause()

    scheduler.spawn(enter_until_refused, "leaving")
    scheduler.spawn(lambda: world.commit(None, "a"), "host")
    scheduler.spawn(lambda: world.rendezvous.leave(leaving.replica), "ender")
    return world.check


def an_interrupt_of_a_thread_that_enters(scheduler: Scheduler, **types: Any) -> Callable[[], None]:
    """A thread enters guest code, to compute for ever, at the moment it is interrupted; nobody links."""
    world = World(scheduler, **types)
    entering = world.group("entering")

    def spin() -> None:
        with pytest.raises(Interrupted):
            entering.spin_until(lambda: False)

    scheduler.spawn(spin, "entering")
    scheduler.spawn(lambda: entering.replica.interrupt_with(Interrupted()), "canceller")
    return world.check


def a_wait_in_something_foreign(
    scheduler: Scheduler, wake: Callable[[Waiter], None] = lambda waiter: waiter.interrupt(Interrupted())
) -> Callable[[], None]:
    """A thread waits for a pipe, and another one writes to it to wake the thread."""
    waits = Waits(platform=scheduler)
    waiter = Waiter("waiting", scheduler)
    pipe: list[bool] = []

    def wait() -> None:
        with (  # noqa: PT012 - before the body or after it
            pytest.raises((Interrupted, ProgramEndedError)),
            waits.external(waiter, "a pipe", lambda: pipe.append(True)),
        ):
            scheduler.point("about to wait for the pipe")
            while not pipe:
                scheduler.pause()

    scheduler.spawn(wait, "waiting")
    scheduler.spawn(lambda: wake(waiter), "waker")
    return lambda: None


def an_end_of_a_wait_in_something_foreign(scheduler: Scheduler) -> Callable[[], None]:
    """The same, with the program's end."""
    return a_wait_in_something_foreign(scheduler, lambda waiter: waiter.end(ProgramEndedError()))


def an_interrupt_beside_another_wake(scheduler: Scheduler) -> Callable[[], None]:
    """Of two wakes that come at once only one is stored; the thread that takes it must find what both were for."""
    waiter = Waiter("waiting", scheduler)

    def wait() -> None:
        with pytest.raises(Interrupted):  # noqa: PT012 - as above
            while True:
                waiter.raise_if_interrupted()
                waiter.park()

    scheduler.spawn(wait, "waiting")
    scheduler.spawn(waiter.unpark, "waker")
    scheduler.spawn(lambda: waiter.interrupt(Interrupted()), "interrupter")
    return lambda: None


def an_interrupt_at_the_end_of_a_shield(scheduler: Scheduler) -> Callable[[], None]:
    """The interrupter finds that the thread can be interrupted, or the thread finds the interrupt at the shield's end."""
    waiter = Waiter("shielded", scheduler)
    found: list[bool] = []

    def look() -> None:
        if waiter.interrupted:
            found.append(True)

    def undo() -> None:
        with waiter.shielded():
            scheduler.pause()  # undoes something; the others see that it is shielded
        scheduler.point("goes on")

    waiter.alarm = look
    scheduler.spawn(undo, "shielded")
    scheduler.spawn(lambda: waiter.interrupt(Interrupted()), "interrupter")

    def check() -> None:
        assert found

    return check


def two_requests_to_notice(scheduler: Scheduler) -> Callable[[], None]:
    """One thread repeats an interrupt for a request, and stops as the next one comes; who asks loses its own interrupt."""
    # A request is a bell: something that threads see late in this model.
    requests = [Waiter(name, scheduler) for name in ("first", "second")]
    asking = {0}
    heard: list[str] = []

    def interrupt() -> None:
        if scheduler.get_ident() not in asking:
            for request in requests:
                if request.bell is not None:
                    request.bell = None
                    heard.append(request.name)

    def is_unheard() -> bool:
        scheduler.point("looks for requests")
        return any(request.bell is not None for request in requests)

    nudger = Nudger(scheduler, interrupt, is_unheard)

    def ask(request: Waiter) -> None:
        asking.add(scheduler.get_ident())
        request.bell = lambda: None
        nudger.nudge()

    def ask_and_wait() -> None:
        while not heard:
            scheduler.pause()
        ask(requests[1])
        scheduler.point("about to wait until it is heard")
        while is_unheard():
            scheduler.pause()

    scheduler.spawn(lambda: ask(requests[0]), "first")
    scheduler.spawn(ask_and_wait, "second")
    return lambda: None


OWN = [
    a_group_made_to_leave_while_it_replays,
    an_interrupt_of_a_thread_that_enters,
    a_wait_in_something_foreign,
    an_end_of_a_wait_in_something_foreign,
    an_interrupt_beside_another_wake,
    an_interrupt_at_the_end_of_a_shield,
    two_requests_to_notice,
]

FENCES: list[tuple[str, Program]] = [
    ("rendezvous._close_gate heavy", test_model.two_guests_and_a_host_thread),
    ("replica._alarm heavy", an_interrupt_of_a_thread_that_enters),
    ("replica.left heavy", a_group_made_to_leave_while_it_replays),
    ("waiter.interrupt heavy", a_wait_in_something_foreign),
    ("waiter.end heavy", an_end_of_a_wait_in_something_foreign),
    ("nudger.nudge heavy", two_requests_to_notice),
    ("replica.state light", test_model.two_guests_and_a_host_thread),
    ("replica.settle light", a_group_made_to_leave_while_it_replays),
    ("replica._replay_all light", test_replay_model.a_cancelled_start_function),
    ("waiter.shielded light", an_interrupt_at_the_end_of_a_shield),
    ("waiter.park light", an_interrupt_beside_another_wake),
    ("waits.external light", a_wait_in_something_foreign),
    ("nudger._repeat light", two_requests_to_notice),
]
"""Every fence of the package, and a scenario that fails without it."""


def passes() -> set[str]:
    """Return every place of the package that passes a fence, as "file.function side"."""
    found = set()
    for path in Path(threads.__file__).parent.glob("*.py"):
        if path.stem == "fences":
            continue
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            for call in ast.walk(function):
                if isinstance(call, ast.Call):
                    name = ast.unparse(call.func)
                    if name.endswith(".light"):
                        found.add(f"{path.stem}.{function.name} light")
                    if name.endswith(".heavy") or name == "pass_heavy":
                        found.add(f"{path.stem}.{function.name} heavy")
    return found


@pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)
class TestLateStores:
    """The protocol with its fences."""

    @pytest.mark.parametrize(
        "scenario",
        [*test_model.SCENARIOS, *test_replay_model.SCENARIOS],
        ids=lambda scenario: scenario.__name__,
    )
    def test_protocol_holds_where_stores_are_seen_late(self, scenario: Program, memory: WeakMemory) -> None:
        """Every scenario of the protocol, in many orders, keeps its invariant though stores are seen late."""
        explore(scenario, preemptions=1, limit=40, memory=memory)
        walk(scenario, seed=11, walks=30, preempt=0.2, memory=memory)

    @pytest.mark.parametrize("scenario", OWN, ids=lambda scenario: scenario.__name__)
    def test_fences_order_what_they_are_for(self, scenario: Program, memory: WeakMemory) -> None:
        """Scenarios in which one store must be seen in time end well, with any one preemption."""
        explore(scenario, preemptions=1, limit=150, memory=memory)
        walk(scenario, seed=12, walks=40, preempt=0.2, memory=memory)


class TestMissingFences:
    """Each fence is needed."""

    @pytest.mark.parametrize(("fence", "scenario"), FENCES, ids=[name for name, _ in FENCES])
    @pytest.mark.parametrize("kind", MEMORIES)
    def test_fence_that_is_missing_is_found(self, fence: str, scenario: Program, kind: str) -> None:
        """Without any one fence a scenario fails, and its schedule fails again; a light side that is free cannot be missed."""
        memory = WeakMemory(locks=MEMORIES[kind].locks, without=frozenset({fence}))
        if fence.endswith("light") and not memory.locks:
            explore(scenario, preemptions=1, limit=60, memory=memory)
            return
        with pytest.raises(ScheduleError) as caught:
            explore(scenario, preemptions=2, limit=2_000, memory=memory)

        with pytest.raises(ScheduleError) as again:
            replay(scenario, caught.value.schedule, memory=memory)
        assert again.value.trail == caught.value.trail

    def test_every_fence_of_the_package_is_among_them(self) -> None:
        """No place passes a fence that this file does not show to be needed."""
        assert passes() == {name for name, _ in FENCES}

    def test_store_buffers_change_the_package_for_the_run_only(self) -> None:
        """After a run the classes are what they were before."""
        before = dict(vars(threads.Replica))
        explore(a_wait_in_something_foreign, preemptions=0, memory=WeakMemory())
        assert dict(vars(threads.Replica)) == before
