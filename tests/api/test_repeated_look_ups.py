"""A symbol that a group has looked up before: the answer is kept, and is what a new look-up would find or raise."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import dl
from tests.support.modules import library, linker, returns

GLOBAL = dl.RTLD_NOW | dl.RTLD_GLOBAL
TWO = {"first.so": library(returns("f", 1)), "second.so": library(returns("f", 2))}


def value(group: dl.InstanceGroup, handle: Any, name: str = "f") -> Any:
    """What a function that a look-up finds returns; looked up twice, so that the second time is the kept answer's."""
    found, again = group.dlsym(handle, name), group.dlsym(handle, name)
    assert found is again
    assert isinstance(found, dl.GuestFunction)
    return found()


def test_the_first_definition_is_found_after_it_has_changed() -> None:
    """The global scope answers with what is first in it now: after a load, a promotion and a close."""
    with linker(TWO) as program:
        group = program.main_group
        second = group.dlopen("second.so")
        with pytest.raises(dl.SymbolNotFoundError):
            group.dlsym(dl.RTLD_DEFAULT, "f")
        first = group.dlopen("first.so", GLOBAL)
        assert value(group, dl.RTLD_DEFAULT) == 1
        group.dlopen("second.so", GLOBAL | dl.RTLD_NOLOAD)
        assert value(group, dl.RTLD_DEFAULT) == 1
        group.dlclose(first)
        assert value(group, dl.RTLD_DEFAULT) == 2
        group.dlclose(second)
        group.dlclose(second)
        with pytest.raises(dl.SymbolNotFoundError):
            group.dlsym(dl.RTLD_DEFAULT, "f")


def test_a_closed_library_is_known_no_longer() -> None:
    """A handle that was looked into before is refused once its library is closed, by this thread or by another."""
    with linker(TWO, memory=dl.MemoryType(shared=True)) as program:
        group = program.main_group
        first, second = group.dlopen("first.so"), group.dlopen("second.so")
        assert (value(group, first), value(group, second)) == (1, 2)
        group.dlclose(first)
        program.spawn(lambda other: other.dlclose(second)).join()
        for handle in (first, second):
            with pytest.raises(dl.InvalidHandleError):
                group.dlsym(handle, "f")


def test_who_may_not_look_up_is_refused_all_the_same() -> None:
    """Another thread, and everybody after the linker's end, gets the error of a first look-up."""
    with linker(TWO, memory=dl.MemoryType(shared=True)) as program:
        group = program.main_group
        handle = group.dlopen("first.so", GLOBAL)
        assert value(group, handle) == 1
        with pytest.raises(dl.LinkerUsageError):
            program.spawn(lambda _other: group.dlsym(handle, "f")).join()
    with pytest.raises(dl.LinkerClosedError):
        group.dlsym(handle, "f")


@pytest.mark.parametrize("handle", [1.0, None, "1", 1 + 0j])
def test_what_is_no_handle_is_refused(handle: Any) -> None:
    """A value that compares equal to a handle, and is no integer, is refused with and without a kept answer."""
    with linker({"first.so": TWO["first.so"]}) as program:
        group = program.main_group
        group.dlopen("first.so", GLOBAL)
        assert value(group, dl.MAIN_HANDLE) == 1
        with pytest.raises(dl.LinkerUsageError, match="a handle is"):
            group.dlsym(handle, "f")


def test_each_look_up_is_traced(caplog: pytest.LogCaptureFixture) -> None:
    """The logger of look-ups is told of each, the repeated ones included."""
    with linker(TWO) as program:
        group = program.main_group
        handle = group.dlopen("first.so")
        assert value(group, handle) == 1
        with caplog.at_level(logging.DEBUG, logger="dl.link.symbols"):
            group.dlsym(handle, "f")
            group.dlsym(handle, "f")
        assert sum("dlsym" in record.message for record in caplog.records) == 2


def test_a_function_that_was_never_called_goes_with_its_library() -> None:
    """Its first call after the close is refused as a later one is, whichever thread has closed the library."""
    with linker(TWO, memory=dl.MemoryType(shared=True)) as program:
        group = program.main_group
        first, second = group.dlopen("first.so"), group.dlopen("second.so")
        functions = [group.dlsym(first, "f"), group.dlsym(second, "f")]
        group.dlclose(first)
        program.spawn(lambda other: other.dlclose(second)).join()
        for function in functions:
            assert isinstance(function, dl.GuestFunction)
            with pytest.raises(dl.InvalidHandleError):
                function()


def test_a_signature_that_python_cannot_hold_is_refused_at_the_call() -> None:
    """A function with a reference among its values can be looked up and has an address; calling it names it."""
    with linker({"lib.so": library('(func (export "f") (param externref))')}) as program:
        group = program.main_group
        function = group.dlsym(group.dlopen("lib.so"), "f")
        assert isinstance(function, dl.GuestFunction)
        assert function.address > 0
        with pytest.raises(dl.ValueConversionError, match="f .*cannot cross into Python"):
            function(None)
