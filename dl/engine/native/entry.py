"""Python functions as native callbacks: nothing may go wrong before their `try`, or after it.

A native callback whose Python function raises returns whatever lies on the stack, because ctypes writes no result; to
an engine that reads the result as a pointer to a trap this is fatal. So all callbacks of the adapter put their whole
body into one `try` and return a value from each branch. Two things can still fail outside of it, and do so in practice:

* CPython delivers signals and asynchronous exceptions at the *start* of a Python function. While guest code runs, no
  Python does, so Ctrl-C arrives in the first instruction of the next callback, nearly always: `entry` moves it past that point.
* The start of a function fails when the limit of recursion is reached. The callback cannot catch that, so
  each call into the guest first checks that a callback from it will have room: `need_room`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from types import CodeType, FunctionType
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

_AFTER_YIELD_FROM = 2
"""Argument of RESUME that says: not the start of a function, and no place to handle what is pending."""


def entry(function: Function) -> Function:
    """Make a function that begins with `try` handle pending signals inside of that `try`, not before.

    CPython 3.10 does this by itself: there, a function that begins by setting up a handler is not interrupted before. Since
    3.11 a function begins with the instruction RESUME, whose argument says what is resumed; for the start of a function
    and after `yield` it looks for pending signals, and after `yield from` and `await` it does not. It does nothing else
    with the argument. An interpreter that has no such instruction gets the function as it is.
    """
    assert isinstance(function, FunctionType)
    function.__code__ = _without_check(function.__code__)
    return function


def _plain() -> None:
    """Begins with RESUME, as every function without cells does; its number is that of the interpreter's version."""


_RESUME = _plain.__code__.co_code[0] if sys.version_info >= (3, 11) else None


@cache
def _without_check(code: CodeType) -> CodeType:
    raw = bytearray(code.co_code)
    for offset in range(
        0, len(raw), 2
    ):  # of an instruction and its argument; the engine's own notes between them are 0
        if (raw[offset], raw[offset + 1]) == (_RESUME, 0):
            raw[offset + 1] = _AFTER_YIELD_FROM
            return code.replace(co_code=bytes(raw))
    return code


_nested: Any = int
for _ in range(16):
    _nested = (_nested,)
_NESTED = _nested
"""A test that recurses into C as deep as a callback does until it returns, errors included."""


def _second_frame() -> None:
    isinstance(None, _NESTED)


def need_room() -> None:
    """Check that a Python function that is called from here, through native code, can start and report an error.

    Raises:
        RecursionError: the limit of recursion is too near.
    """
    _second_frame()
