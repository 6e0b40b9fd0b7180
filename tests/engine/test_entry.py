"""Python functions as native callbacks: signals at their start, and room below the limit of recursion."""

from __future__ import annotations

import _thread
import ast
import functools
import operator
import signal
import sys
from collections.abc import Callable, Iterator

import pytest

from dl.engine.native.entry import entry, need_room
from tests.support.paths import ROOT


class Interrupted(BaseException):
    """What the signal handler raises."""


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    def handle(*_: object) -> None:
        raise Interrupted

    former = signal.signal(signal.SIGUSR1, handle)
    yield
    signal.signal(signal.SIGUSR1, former)


def work() -> None:
    """Python code, which handles signals as it starts."""


def start_with_a_signal(function: Callable[[], str]) -> str:
    """Call a function from native code, with a signal that has arrived and was not yet handled."""
    call = operator.methodcaller("__call__")
    interrupt = functools.partial(_thread.interrupt_main, signal.SIGUSR1)
    return list(map(call, [interrupt, function]))[1]


def test_a_signal_is_handled_inside_of_try() -> None:
    """A function made by `entry` handles a signal that arrived before it started in its own `try`."""

    @entry
    def function() -> str:
        try:
            work()
        except Interrupted:
            return "handled"
        return "missed"

    for _ in range(100):
        assert start_with_a_signal(function) == "handled"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="CPython 3.10 starts such functions undisturbed")
def test_other_functions_handle_it_before() -> None:
    """Why `entry` exists: an ordinary function that is nothing but a `try` can still raise."""

    def function() -> str:
        try:
            work()
        except Interrupted:
            return "handled"
        return "missed"

    with pytest.raises(Interrupted):
        start_with_a_signal(function)


def test_the_function_is_otherwise_the_same() -> None:
    """Arguments, defaults, closures and results work, each closure with its own variables."""

    def make(base: int) -> Callable[..., tuple[int, ...]]:
        @entry
        def function(first: int, *rest: int, last: int = 9) -> tuple[int, ...]:
            return (base, first, *rest, last)

        return function

    assert make(1)(2, 3) == (1, 2, 3, 9)
    assert make(5)(6, last=7) == (5, 6, 7)


@pytest.mark.parametrize("start", range(20))
def test_where_need_room_passes_a_callback_can_report(start: int) -> None:
    """At any depth, a native call after `need_room` can start a Python function that handles an error by native calls."""
    reported: list[int] = []

    @entry
    def callback(depth: int) -> None:
        try:
            raise KeyError(depth)
        except KeyError:
            reported.append(isinstance(depth, ((((((int,),),),),),)))

    def descend(depth: int) -> None:
        need_room()
        list(map(callback, [depth]))
        descend(depth + 1)

    def begin(depth: int) -> None:
        if depth:
            begin(depth - 1)
        else:
            descend(0)

    with pytest.raises(RecursionError) as caught:
        begin(start)

    assert caught.traceback[-1].name != "callback"
    assert all(reported)


def test_every_callback_begins_with_try() -> None:
    """Each function that is an `entry` begins with `try`, without which CPython 3.10 handles a signal before its body."""
    found = [
        (path.name, node.name, node.body[1 if ast.get_docstring(node) else 0])
        for path in (ROOT / "dl/engine").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        and any(isinstance(one, ast.Name) and one.id == "entry" for one in node.decorator_list)
    ]
    assert len(found) > 10
    assert [(file, name) for file, name, first in found if not isinstance(first, ast.Try)] == []
