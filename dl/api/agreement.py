"""Annotations of plain Python functions, held against the signatures under which the guest calls them.

Such a function gets and returns plain values: integers, floats, 16 bytes. An annotation that says something else is a mistake
that would show as a wrong number somewhere, or not at all. What is not annotated, or by something that is no type of a plain
value, is held against the number of arguments only; that an integer does where a float is expected is Python's own rule.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

from dl.api.values import CString, Pointer, ValueType, function_name, is_structure, returns_later
from dl.wasm.types import FuncType

_INTEGERS, _FLOATS, _VECTORS = ("i32", "i64"), ("f32", "f64"), ("v128",)
_VARIADIC = 4
"""A bit of a function's code: it has `*args`."""


def _plain(annotation: Any, *, result: bool) -> tuple[str, ...] | None:
    """Return the types that fit an annotation; none for one that no plain value is; None for one that says nothing."""
    for mark in getattr(annotation, "__metadata__", ()):
        if isinstance(mark, ValueType):
            return (mark.name,)
    if annotation in (int, bool, Pointer):
        # What is returned is converted, so an integer serves for a float.
        return (*_INTEGERS, *_FLOATS) if result and annotation is int else _INTEGERS
    if annotation is float:
        return _FLOATS if result else (*_INTEGERS, *_FLOATS)
    if annotation is bytes:
        return _VECTORS
    if annotation in (str, CString, type(None)) or is_structure(annotation):
        return ()
    return None


def _shown(annotation: Any) -> str:
    for mark in getattr(annotation, "__metadata__", ()):
        if isinstance(mark, ValueType):
            return f"dl.{mark.name.upper()}"
    return getattr(annotation, "__name__", None) or repr(annotation)


def disagreement(function: Callable[..., Any], kind: FuncType) -> str | None:
    """Return in what a function differs from a signature, in words: in its arguments' number, or its annotations.

    Args:
        function: functions and methods of Python are looked at, and nothing else.
        kind: the signature.

    Returns:
        None if it is not certain that they differ.
    """
    own = 1 if isinstance(function, MethodType) else 0
    body = function.__func__ if isinstance(function, MethodType) else function
    if not isinstance(body, FunctionType):
        return None
    late = returns_later(body)
    if late is not None:
        return late
    code = body.__code__
    names = code.co_varnames[own : code.co_argcount]
    called = function_name(function)
    required = len(names) - len(body.__defaults__ or ())
    most = len(names) if not code.co_flags & _VARIADIC else len(kind.params)
    if not required <= len(kind.params) <= most:
        return f"{called} takes {len(names)} arguments, and gets {len(kind.params)}"
    if not body.__annotations__:
        return None
    try:
        hints = typing.get_type_hints(body, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return None  # names that only a type checker imports
    for name, given in zip(names, kind.params, strict=False):
        fitting = _plain(hints[name], result=False) if name in hints else None
        if fitting is not None and given not in fitting:
            return _said(called, f"parameter {name!r}", hints[name], f"gets {given}", fitting)
    if "return" not in hints:
        return None
    annotation = hints["return"]
    if not kind.results:
        none = annotation in (type(None), typing.NoReturn) or _plain(annotation, result=True) is None
        return None if none else f"{called} returns {_shown(annotation)}, and no result is expected"
    if len(kind.results) == 1:
        fitting = _plain(annotation, result=True)
        if fitting is not None and kind.results[0] not in fitting:
            return _said(called, "the result", annotation, f"must be {kind.results[0]}", fitting)
    return None


def _said(called: str, where: str, annotation: Any, is_: str, fitting: tuple[str, ...]) -> str:
    plain = "" if fitting or annotation is type(None) else "; dl.host_function reads texts and structures"
    return f"{where} of {called} is annotated {_shown(annotation)}, and {is_}{plain}"
