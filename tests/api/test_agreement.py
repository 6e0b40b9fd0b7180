"""Annotations of plain Python functions are held against the types under which the guest imports or calls them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

import dl
from tests.support.modules import pie

MAIN = pie(
    '(import "env" "add" (func $add (param i32 f64) (result i64)))',
    '(func (export "call") (result i64) (call $add (i32.const 3) (f64.const 0.5)))',
)
SIGNATURE = "(i32, f64) -> i64"


class Adder:
    """Whose method is given as an import."""

    def add(self, left: int, right: float) -> int:
        """Add two numbers."""
        return left + int(right * 2)


def added(left: int, right: float) -> int:
    """Add two numbers."""
    return left + int(right * 2)


def both_floats(left: float, right: float) -> int:
    """Take an integer where a float is expected, as Python has it."""
    return int(left + right * 2)


def exact(left: dl.I32, right: dl.F64) -> dl.I64:
    """Say exactly the types."""
    return left + int(right * 2)


def unsaid(left, right):  # type: ignore[no-untyped-def]
    """Say nothing."""
    return left + int(right * 2)


def any_of(*numbers: Any) -> Any:
    """Take what comes."""
    return numbers[0] + int(numbers[1] * 2)


def with_default(left: int, right: float, third: int = 0) -> int:
    """Take more than is given."""
    return left + int(right * 2) + third


def swapped(left: float, right: int) -> int:
    """Take them the other way round."""
    return int(left) + right


def text(left: str, right: float) -> int:
    """Expect that text is read."""
    return len(left) + int(right)


def narrow(left: int, right: float) -> dl.I32:
    """Return less than is asked for."""
    return left + int(right)


def nothing(left: int, right: float) -> None:
    """Return nothing."""


def one(left: int) -> int:
    """Take too few."""
    return left


def three(left: int, right: float, third: int) -> int:
    """Take too many."""
    return left + int(right) + third


async def coroutine(left: int, right: float) -> int:
    """Return something to wait for."""
    return left


def generator(left, right):  # type: ignore[no-untyped-def]
    """Return something to go through."""
    yield left + right


async def stream(left, right):  # type: ignore[no-untyped-def]
    """Return something to go through and wait for."""
    yield left + right


def unsaid_one(left):  # type: ignore[no-untyped-def]
    """Take too few, and say nothing."""
    return left


def unsaid_three(left, right, third):  # type: ignore[no-untyped-def]
    """Take too many, and say nothing."""
    return left + right + third


GOOD = [added, Adder().add, both_floats, exact, unsaid, any_of, with_default]
BAD = [
    (swapped, r"parameter 'right' of swapped is annotated int, and gets f64"),
    (text, r"parameter 'left' of text is annotated str, and gets i32; dl\.host_function reads texts"),
    (narrow, r"the result of narrow is annotated dl\.I32, and must be i64"),
    (nothing, r"the result of nothing is annotated NoneType, and must be i64"),
    (one, r"one takes 1 arguments, and gets 2"),
    (three, r"three takes 3 arguments, and gets 2"),
    (unsaid_one, r"unsaid_one takes 1 arguments, and gets 2"),
    (unsaid_three, r"unsaid_three takes 3 arguments, and gets 2"),
    (coroutine, r"coroutine is a coroutine function; the guest, which waits"),
    (generator, r"generator is a generator function; the guest, which waits"),
    (stream, r"stream is an asynchronous generator function; the guest"),
]


@pytest.mark.parametrize("function", GOOD)
def test_what_agrees_is_called(function: Callable[..., Any]) -> None:
    """Functions, methods, and functions without annotations are imported and called, and made callbacks."""
    with dl.Linker(MAIN, imports={"env": {"add": function}}, memory=dl.MemoryType(2)) as linker:
        assert linker.main_group.library(None)["call"]() == 4
        linker.callback(SIGNATURE, function).close()


@pytest.mark.parametrize(("function", "said"), BAD)
def test_what_does_not_is_refused_when_it_is_linked(function: Callable[..., Any], said: str) -> None:
    """The error names the import, the function, the parameter and both types, before anything runs."""
    expected = re.escape(f"import env.add is {SIGNATURE}")
    with pytest.raises(dl.ImportTypeError, match=f"{expected}.*{said}"):
        dl.Linker(MAIN, imports={"env": {"add": function}}, memory=dl.MemoryType(2))


def test_annotated_coroutines_are_no_functions_of_the_host() -> None:
    """Neither a callback whose annotations say its signature, nor a host function."""
    with dl.Linker(None) as linker, pytest.raises(dl.LinkerUsageError, match="is a coroutine function"):
        linker.callback(coroutine)
    with pytest.raises(dl.LinkerUsageError, match="is a coroutine function"):
        dl.host_function(coroutine)


def test_functions_without_a_signature_are_taken() -> None:
    """Whether a function that is not Python's takes that many arguments is not known before it is called."""
    for function in (print, divmod, int):
        with dl.Linker(MAIN, imports={"env": {"add": function}}, memory=dl.MemoryType(2)):
            pass


@pytest.mark.parametrize(("function", "said"), BAD)
def test_what_does_not_is_no_callback(function: Callable[..., Any], said: str) -> None:
    """A callback of that signature is refused with the same words, and takes no table index."""
    with dl.Linker(None) as linker:
        before = linker.statistics().table_elements
        with pytest.raises(dl.LinkerUsageError, match=said):
            linker.callback(SIGNATURE, function)
        assert linker.statistics().table_elements == before


def test_names_that_only_a_type_checker_knows_are_no_reason_to_refuse() -> None:
    """A function whose annotations cannot be read at run time is imported as one without."""

    def add(left: OnlyChecked, right: float) -> int:  # type: ignore[name-defined]  # noqa: F821
        return int(left) + int(right * 2)

    with dl.Linker(MAIN, imports={"env": {"add": add}}, memory=dl.MemoryType(2)) as linker:
        assert linker.main_group.library(None)["call"]() == 4
