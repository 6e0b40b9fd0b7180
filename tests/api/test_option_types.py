"""Options of the wrong type are refused by name, before anything of the program is made."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import dl
from dl.api.option_checks import CHECKS

WRONG: dict[str, list[Any]] = {
    "main": [5, [], object()],
    "name": [5, b"x"],
    "library_path": [5, [5], "alone"],
    "libraries": [5, {"a.so": 5}, {5: b""}],
    "map_name": [5],
    "imports": [5, {5: {}}, [("env",)]],
    "args": [5, "alone", [1], [b"x"]],
    "env": [5, {"A": 1}, ["A"], {1: "a"}],
    "preopens": [5, {"/": 1}, ["x"]],
    "stdin": [5, ["x"]],
    "stdout": [5, ["x"]],
    "stderr": [5, b"x"],
    "memory": [5, "x"],
    "stack_size": ["x", None, 1.5, True],
    "thread_stack_size": ["x"],
    "interrupts": ["no", 1],
    "default_files": [5],
    "preload": [5, "alone", [5]],
    "engine": [5, [1]],
    "cache": [5],
    "limits": [5, {"threads": 1}],
    "modules": [5, {"a": 5}],
    "module_path": [5, [5]],
    "finder": [5, [5]],
    "isolate": [1],
    "wamr": ["x", True],
    "profiler": [5],
}


@pytest.mark.parametrize("option", WRONG)
def test_a_value_of_the_wrong_type_is_refused_by_name(option: str) -> None:
    """The error names the option, what it takes and what was given, and is of this package."""
    for value in WRONG[option]:
        given: dict[str, Any] = {"main": None, option: value}
        with pytest.raises(dl.LinkerUsageError, match=rf"^{option}[:\[].* (takes|must be) ") as caught:
            dl.Linker(given.pop("main"), **given)
        assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"main": ""}, "main: it takes the path of a file, which is not empty"),
        ({"args": ["x\0"]}, r"args\[0\]: it takes a text without zero bytes, not 'x\\x00'"),
        ({"env": {"A": "x\0"}}, r"env\['A'\]: it takes a text without zero bytes, not 'x\\x00'"),
        ({"env": {"A=B": "x"}}, "env: it takes names .* no equals sign, not 'A=B'"),
        ({"env": {"": "x"}}, "env: it takes names .* not empty"),
        (
            {"preopens": {"/x": "/nonexistent"}},
            r"preopens\['/x'\]: it takes .* directory that is there, not '/none",
        ),
        ({"preopens": {"/x": __file__}}, r"preopens\['/x'\]: it takes .* directory that is there"),
    ],
)
def test_a_value_that_no_program_can_have_is_refused_by_name(given: dict[str, Any], said: str) -> None:
    """What would fail in the engine, or late, or not at all, is told when the linker is made."""
    with pytest.raises(dl.LinkerUsageError, match=f"^{said}"):
        dl.Linker(**{"main": None, **given})


def test_every_option_has_its_check() -> None:
    """Each option of a linker has a check of its type, or one of its words where it is used."""
    by_words = {"side_memory", "bind", "guest_dlfcn"}
    options = set(inspect.signature(dl.Linker).parameters)

    assert set(CHECKS) == options - by_words == set(WRONG)
    for option in by_words:
        given: dict[str, Any] = {option: 5}
        with pytest.raises(dl.LinkerUsageError, match=f"^{option} must be one of"):
            dl.Linker(None, **given)


@pytest.mark.parametrize("bound", ["timeout", "cpu_time"])
@pytest.mark.parametrize("value", ["1", [1], -1, float("nan"), pytest.param(10**400, id="large")])
def test_bounds_on_time_are_numbers(bound: str, value: Any) -> None:
    """A bound of a run that is no number of seconds is refused by name."""
    bounds: dict[str, Any] = {bound: value}
    with dl.Linker(None) as linker, pytest.raises(dl.LinkerUsageError, match=f"{bound} must be a number"):
        linker.main_group.run(**bounds)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda group: group.dlopen(5), "library: it takes a module"),
        (lambda group: group.library([]), "library: it takes a module"),
        (lambda group: group.dlopen("a.so", "now"), "flags of dl.DlFlags"),
        (lambda group: group.dlopen("a.so", 1.5), "flags of dl.DlFlags"),
        (lambda group: group.dlopen("a.so", library_path="lib"), "library_path: it takes a list"),
        (lambda group: group.dlopen("a.so", library_path=[5]), r"library_path\[0\]: it takes a path"),
        (lambda group: group.dlopen(b"", name=5), "name: it takes a text"),
        (
            lambda group: group.dlsym("a.so", "f"),
            "a handle is a Library, or what dlopen returned, not 'a.so'",
        ),
        (lambda group: group.dlsym(None, "f"), "a handle is"),
        (lambda group: group.dlsym(dl.MAIN_HANDLE, 5), "a symbol's name is a text, not 5"),
        (lambda group: group.dlclose("a.so"), "a handle is"),
        (lambda group: group.linker.module("a.so"), "a handle is"),
        (lambda group: group.linker.allocate("8"), "a block of '8' bytes"),
        (lambda group: group.linker.executor("8"), "at least one worker, not '8'"),
        (lambda group: group.linker.allocate(8, "8"), "an alignment of '8'"),
        (lambda group: group.linker.instantiate(5), "it takes a module"),
        (lambda group: group.linker.load([]), "it takes a module"),
        (
            lambda group: group.dladdr("f"),
            "a pointer is a number, or a function or data of the guest, not 'f'",
        ),
        (lambda group: group.linker.events.subscribe(5), "events are told to a function, not to 5"),
        (lambda group: group.linker.events.subscribe(print, 5), "the kinds of events are"),
        (lambda group: group.linker.events.queue(limit="8"), "at least one, not '8'"),
        (lambda _group: dl.MemoryType("8"), "a memory has a number of pages, not '8'"),  # type: ignore[arg-type]
    ],
)
def test_arguments_of_the_wrong_type_are_named(call: Callable[[dl.InstanceGroup], object], said: str) -> None:
    """What is given to methods in place of a library, flags, a handle, a name or a number is told as such."""
    with dl.Linker(None) as linker, pytest.raises(dl.LinkerUsageError, match=said):
        call(linker.main_group)
