"""Opens, closes and first calls that meet: each order is forced by a listener that stops a thread at an event."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import dl
from tests.support.modules import SHARED_MEMORY, calls, imports, library, returns

SECONDS = 30
SHARED = dl.MemoryType(minimum=20, maximum=200, shared=True)


class Stop:
    """A thread that stops at an event of a module, until it is let go."""

    def __init__(self) -> None:
        self._there, self._go = threading.Event(), threading.Event()

    def here(self) -> None:
        self._there.set()
        assert self._go.wait(SECONDS)

    def reached(self) -> None:
        assert self._there.wait(SECONDS)

    def release(self) -> None:
        self._go.set()


@contextmanager
def stopping(linker: dl.Linker, kind: str, module: str) -> Iterator[Stop]:
    """Stop the first thread that comes to an event of a module."""
    stop, first = Stop(), threading.Lock()

    def listener(event: dl.Event) -> None:
        if event.module == module and first.acquire(blocking=False):
            stop.here()

    with linker.events.subscribe(listener, [kind]):
        try:
            yield stop
        finally:
            stop.release()


def until_waiting(linker: dl.Linker, what: str) -> None:
    """Wait until a thread waits for something."""
    for _ in range(SECONDS * 200):
        if any(what in reason for _, reason in linker.program.waits.waiting()):
            return
        threading.Event().wait(0.005)
    pytest.fail(f"no thread waits for {what}")


@pytest.fixture(name="linker")
def _linker() -> Iterator[dl.Linker]:
    libs = {
        "a.so": library(SHARED_MEMORY, returns("f", 1), memory_size=64),
        "b.so": library(SHARED_MEMORY, returns("f", 2), memory_size=64),
        "bad.so": library(SHARED_MEMORY, '(func (export "__wasm_call_ctors") unreachable)'),
        "user.so": library(SHARED_MEMORY, imports("f"), calls("g", "f")),
    }
    with dl.Linker(None, memory=SHARED, libraries=libs) as made:
        yield made


def call(group: dl.InstanceGroup, handle: int, name: str = "f") -> Any:
    """Call a function."""
    function = group.dlsym(handle, name)
    assert isinstance(function, dl.GuestFunction)
    return function()


def opened(name: str) -> Callable[[dl.InstanceGroup], int]:
    """Open a library in another thread."""
    return lambda group: int(group.dlopen(name))


def test_who_opens_a_library_that_is_ending_gets_another(linker: dl.Linker) -> None:
    """A thread that opens a library between its last close and its destructors waits, and loads it anew."""
    handle = linker.main_group.dlopen("a.so")
    with stopping(linker, "closed", "a.so") as stop:
        closing = linker.spawn(lambda group: group.dlclose(handle))
        stop.reached()
        opening = linker.spawn(opened("a.so"))
        until_waiting(linker, "a.so")
        assert [module.state for module in linker.modules] == ["closing"]
        stop.release()
        again = opening.join(SECONDS)
        closing.join(SECONDS)
    assert again > handle
    assert call(linker.main_group, again) == 1


def test_calls_go_on_until_the_library_is_gone(linker: dl.Linker) -> None:
    """Another thread's function works while destructors are still to run, and says that the library is closed afterwards."""
    handle = linker.main_group.dlopen("a.so")
    with stopping(linker, "closed", "a.so") as stop:
        closing = linker.spawn(lambda group: group.dlclose(handle))
        function = linker.main_group.dlsym(handle, "f")
        assert isinstance(function, dl.GuestFunction)
        stop.reached()
        assert function() == 1
        with pytest.raises(dl.InvalidHandleError, match="it was closed"):
            linker.main_group.dlclose(handle)
        stop.release()
        closing.join(SECONDS)
        with pytest.raises(dl.InvalidHandleError, match="f is gone"):
            function()


def test_who_opens_a_library_that_is_being_loaded_gets_the_same(linker: dl.Linker) -> None:
    """A thread that opens a library between its load and its constructors waits for these, and has it open too."""
    with stopping(linker, "loaded", "a.so") as stop:
        first = linker.spawn(opened("a.so"))
        stop.reached()
        second = linker.spawn(opened("a.so"))
        until_waiting(linker, "a.so")
        assert [module.state for module in linker.modules] == ["loading"]
        stop.release()
        assert first.join(SECONDS) == second.join(SECONDS)
    assert [module.opens for module in linker.modules] == [2]


def test_a_close_between_two_opens_takes_nothing_away(linker: dl.Linker) -> None:
    """A second open that waits for a library's constructors has it open, also when the first one closes it at once."""
    with stopping(linker, "loaded", "a.so") as stop:
        first = linker.spawn(lambda group: (handle := group.dlopen("a.so"), group.dlclose(handle))[0])
        stop.reached()
        second = linker.spawn(opened("a.so"))
        until_waiting(linker, "a.so")
        stop.release()
        first.join(SECONDS)
        handle = second.join(SECONDS)
    assert call(linker.main_group, handle) == 1
    linker.main_group.dlclose(handle)
    assert linker.modules == ()


def test_a_library_stays_for_a_stub_that_is_just_bound_to_it(linker: dl.Linker) -> None:
    """The provider of a stub's first call is closed while the call is under way: it stays until the caller goes."""
    group = linker.main_group
    user = group.dlopen("user.so", dl.RTLD_LAZY)
    provider = group.dlopen("a.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
    with stopping(linker, "bound", "user.so") as stop:
        calling = linker.spawn(lambda own: call(own, user, "g"))
        stop.reached()
        group.dlclose(provider)
        assert [module.name for module in linker.modules] == ["user.so", "a.so"]
        stop.release()
        assert calling.join(SECONDS) == 1
    group.dlclose(user)
    assert linker.modules == ()


def test_who_waits_for_a_load_that_fails_fails_too(linker: dl.Linker) -> None:
    """A thread that waits for another's constructors gets an error when they fail, and nothing is left."""
    with stopping(linker, "loaded", "bad.so") as stop:
        first = linker.spawn(opened("bad.so"))
        stop.reached()
        second = linker.spawn(opened("bad.so"))
        until_waiting(linker, "bad.so")
        stop.release()
        for thread in (first, second):
            with pytest.raises(dl.InitializationError, match=r"bad\.so"):
                thread.join(SECONDS)
    assert linker.modules == ()


def test_a_library_loads_while_another_ends(linker: dl.Linker) -> None:
    """An unload that stands still holds up no load and no close of other libraries."""
    handle = linker.main_group.dlopen("a.so")
    with stopping(linker, "closed", "a.so") as stop:
        closing = linker.spawn(lambda group: group.dlclose(handle))
        stop.reached()
        with linker.main_group.library("b.so") as other:
            assert other.f() == 2
        stop.release()
        closing.join(SECONDS)
    assert linker.modules == ()
