"""A stub's first call against the close of the library that it finds, under every order of steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dl.dlfcn import ModuleHandle
from dl.limits import Limits
from dl.modules.construction import Construction
from dl.modules.image import image_from_bytes
from dl.modules.linked_module import LinkedModule, StubTarget
from dl.program.state import LinkerState
from dl.program.table import TableSpace
from tests.support.modules import library, returns
from threads.testing import ScheduleError, Scheduler, explore, replay

_WASM = library(returns("f", 1))


def _module(state: LinkerState, number: int) -> LinkedModule:
    image = image_from_bytes(_WASM, f"{number}.so", f"{number}.so")
    module = LinkedModule(image, Construction(state.constructions), ModuleHandle(number))
    module.construction.finished()
    state.publish([module], [])
    module.opens = 1
    return module


def a_first_call_against_a_close(
    scheduler: Scheduler, kind: type[LinkerState] = LinkerState
) -> Callable[[], None]:
    """One thread binds a stub of a library to what it finds, another closes that in the meantime."""
    state = kind(TableSpace(16, Limits()), stub_lock=scheduler.lock())  # type: ignore[arg-type]
    user, maker = _module(state, 2), _module(state, 3)
    found: list[StubTarget | None] = []

    def find() -> StubTarget | None:
        there = state.loaded(maker.image.identity)
        scheduler.point("found")
        return None if there is None else StubTarget(7, there.handle)

    def close() -> None:
        maker.opens -= 1
        gone = state.take_unreachable()
        scheduler.point("destructors")
        if gone:
            assert state.remove_unused(gone) == [], "a stub was bound to what is going"

    scheduler.spawn(lambda: found.append(state.bind_stub(user, 0, find)), "caller")
    scheduler.spawn(close, "closer")

    def check() -> None:
        (target,) = found
        assert (target is not None) == (maker.handle in state.modules), (
            "bound to what is gone, or gone too early"
        )

    return check


def test_a_stub_is_bound_or_its_library_gone() -> None:
    """In every order either the stub keeps the library that it was bound to, or finds it no longer."""
    result = explore(a_first_call_against_a_close, preemptions=2)
    assert result.complete
    assert result.schedules > 3


class BindsWithoutTheLock(LinkerState):
    """Binds a stub while a close may be looking at who is bound to what."""

    def bind_stub(self, module: LinkedModule, position: int, find: Any) -> StubTarget | None:
        known: StubTarget | None = find()
        if known is not None:
            module.stub_targets[position] = known
        return known


def test_a_stub_that_is_bound_without_the_lock_is_caught() -> None:
    """The search can fail: without the lock some order binds a stub to a library that is gone."""

    def program(scheduler: Scheduler) -> Callable[[], None]:
        return a_first_call_against_a_close(scheduler, BindsWithoutTheLock)

    with pytest.raises(ScheduleError) as caught:
        explore(program, preemptions=2)
    with pytest.raises(ScheduleError):
        replay(program, caught.value.schedule)
