"""Stops a thread before each access to shared state in this package's files; for `threads.testing.scheduler`.

Two ways, one effect. CPython 3.12 and later have `sys.monitoring`, whose events belong to code objects: they hold for all
threads, and uninteresting places are switched off one by one. Before that it is `sys.settrace`, thread by thread. (On
3.12 and later `sys.settrace` is no choice: a thread that ends takes bytecode events from the others.)
"""

from __future__ import annotations

import contextlib
import dis
import functools
import importlib
import pathlib
import sys
import threading
from collections.abc import Callable, Iterator
from types import CodeType, FrameType, FunctionType
from typing import Any, Final

__all__ = ["SHARED", "all_threads", "this_thread"]

SHARED: Final = frozenset(
    {"state", "applied", "version", "_closed", "_pending", "_ended", "alarm", "bell"}
    | {"holder", "_thread", "_committed", "_awaited", "_happened"}
)
"""Attributes that one thread writes and another reads outside a lock."""

_MODULES: Final = (
    "futex", "grace", "instigation", "log", "nudger", "rendezvous", "replica", "turn", "waiter", "waits",
)  # fmt: skip
_FILES: Final = frozenset(
    str(pathlib.Path(__file__).resolve().parents[1] / f"{name}.py") for name in _MODULES
)
_OPERATIONS: Final = frozenset({"LOAD_ATTR", "STORE_ATTR", "LOAD_METHOD"})

_monitoring: Any = getattr(sys, "monitoring", None)
_here = threading.local()  # .point: what to call in this thread


@functools.cache
def _places(code: CodeType) -> dict[int, str]:
    """Return where a function touches shared attributes: bytecode offset to a description."""
    places = {}
    line: int | None = code.co_firstlineno
    for instruction in dis.get_instructions(code):
        # Since 3.13 `starts_line` is a flag, and the line has a field of its own.
        number = getattr(instruction, "line_number", instruction.starts_line)
        line = line if number is None else number
        if instruction.opname in _OPERATIONS and instruction.argval in SHARED:
            file = pathlib.Path(code.co_filename).name
            places[instruction.offset] = f"{file}:{line} {instruction.opname} {instruction.argval}"
    return places


@contextlib.contextmanager
def this_thread(point: Callable[[str], None]) -> Iterator[None]:
    """Call `point(place)` before each access that this thread makes while the `with` lasts."""
    _here.point = point
    if _monitoring is None:
        sys.settrace(_trace)
    try:
        yield
    finally:
        _here.point = None
        if _monitoring is None:
            sys.settrace(None)


@contextlib.contextmanager
def all_threads() -> Iterator[None]:
    """Make `this_thread` work; around all runs of a test."""
    if _monitoring is None:
        yield
        return
    tool = next(number for number in range(6) if _monitoring.get_tool(number) is None)
    _monitoring.use_tool_id(tool, "threads.testing")
    codes = [code for name in _MODULES for code in _codes_of(importlib.import_module(f"threads.{name}"))]
    try:
        _monitoring.register_callback(tool, _monitoring.events.INSTRUCTION, _before_instruction)
        for code in codes:
            _monitoring.set_local_events(tool, code, _monitoring.events.INSTRUCTION)
        yield
    finally:
        for code in codes:
            _monitoring.set_local_events(tool, code, 0)
        _monitoring.register_callback(tool, _monitoring.events.INSTRUCTION, None)
        _monitoring.free_tool_id(tool)


def _before_instruction(code: CodeType, offset: int) -> Any:
    place = _places(code).get(offset)
    if place is None:
        return _monitoring.DISABLE
    point = getattr(_here, "point", None)
    if point is not None:
        point(place)
    return None


def _codes_of(module: object) -> Iterator[CodeType]:
    """Yield the code objects of a module's functions and methods that touch shared attributes."""
    for value in list(vars(module).values()):
        owner = vars(value).values() if isinstance(value, type) else (value,)
        for member in owner:
            inner = member.fget if isinstance(member, property) else member
            function = getattr(inner, "__wrapped__", inner)
            if isinstance(function, FunctionType) and function.__module__ == getattr(module, "__name__", ""):
                yield from _with_nested(function.__code__)


def _with_nested(code: CodeType) -> Iterator[CodeType]:
    if _places(code):
        yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_nested(constant)


def _trace(frame: FrameType, _event: str, _argument: Any) -> Any:
    if frame.f_code.co_filename not in _FILES:
        return None
    places = _places(frame.f_code)
    if not places:
        return None
    frame.f_trace_lines = False
    frame.f_trace_opcodes = True

    def local(inner: FrameType, kind: str, _inner_argument: Any) -> Any:
        if kind == "opcode":
            place = places.get(inner.f_lasti)
            if place is not None:
                _here.point(place)
        return local

    return local
