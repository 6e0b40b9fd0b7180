"""What each field of a description may hold, and how it is kept: as values that compare and hash."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from dl.description.frozen import FrozenMapping
from dl.description.functions import function_name, is_function_name
from dl.errors import LinkerUsageError, SpecError
from dl.limits import Limits
from dl.options import (
    MemoryType,
    checked_binding,
    checked_dlfcn,
    checked_side_memory,
)
from dl.wamr.mode import WamrMode

T = TypeVar("T")

Check = Callable[[Any, str], Any]
"""Takes a value and the name of its field; returns the value as it is kept, or raises `SpecError`."""

_MOST_SHOWN = 60


def shortened(value: object) -> str:
    """Return a value as a short text: bytes by their number."""
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {shortened(one)}" for key, one in value.items()) + "}"
    return repr(value)


def check_names(given: Iterable[str], known: list[str]) -> None:
    """Refuse names that no field has, with the nearest that there is.

    Raises:
        SpecError: one of them is not known.
    """
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, 1)
            meant = f"; did you mean {nearest[0]}?" if nearest else ""
            raise SpecError(str(name), f"there is no such field{meant}")


def _wrong(value: object, field: str, wanted: str) -> SpecError:
    text = shortened(value)
    return SpecError(
        field, f"it takes {wanted}, not {text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + '...'}"
    )


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise _wrong(value, field, "a text without zero bytes")
    return value


def _flag(value: Any, field: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(value, field, "True or False")
    return value


def _path(value: Any, field: str) -> str:
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(path, str) or not path or "\0" in path:
        raise _wrong(value, field, "a path")
    return path


def _module(value: Any, field: str) -> str | bytes:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if not isinstance(value, (str, os.PathLike)):
        raise _wrong(value, field, "a module: a path, or bytes")
    return _path(value, field)


def _function(value: Any, field: str) -> str:
    if callable(value):
        try:
            return function_name(value)
        except ValueError as error:
            raise SpecError(field, str(error)) from None
    if not is_function_name(value):
        raise _wrong(value, field, "the name of a function, as module:qualname")
    name: str = value
    return name


def _import(value: Any, field: str) -> str | int | float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    return _function(value, field)


def _stream(value: Any, field: str) -> str | bytes:
    return value if isinstance(value, bytes) else _path(value, field)


def _bytes_of_stack(value: Any, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or value % 1024:
        raise _wrong(value, field, "bytes, a positive multiple of 1024")
    return value


def _choice(check: Callable[[Any], object]) -> Check:
    def checked(value: Any, field: str) -> Any:
        try:
            check(value)
        except LinkerUsageError as error:
            raise SpecError(field, str(error)) from None
        return value

    return checked


def _optional(check: Check) -> Check:
    return lambda value, field: None if value is None else check(value, field)


def _cache(value: Any, field: str) -> bool | str:
    return value if isinstance(value, bool) else _path(value, field)


def _instance(kind: type[Any]) -> Check:
    def checked(value: Any, field: str) -> Any:
        if not isinstance(value, kind):
            raise _wrong(value, field, f"a dl.{kind.__name__}")
        return value

    return checked


def _wamr(value: Any, field: str) -> WamrMode | None:
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return WamrMode.from_mode_bits(value)
        except LinkerUsageError as error:
            raise SpecError(field, str(error)) from None
    checked: WamrMode | None = None if value is None else _instance(WamrMode)(value, field)
    return checked


def _each(check: Check) -> Check:
    def checked(value: Any, field: str) -> tuple[Any, ...]:
        if isinstance(value, (str, bytes, os.PathLike, Mapping)) or not isinstance(value, Iterable):
            raise _wrong(value, field, "a list")
        return tuple(check(one, f"{field}[{number}]") for number, one in enumerate(value))

    return checked


def _by_name(check: Check) -> Check:
    def checked(value: Any, field: str) -> FrozenMapping[Any]:
        if value is None:
            return FrozenMapping({})
        if not isinstance(value, Mapping):
            raise _wrong(value, field, "a mapping")
        return FrozenMapping(
            {_text(key, field): check(one, f"{field}[{key!r}]") for key, one in value.items()}
        )

    return checked


def _engine(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise _wrong(
            value, field, "the name of an engine (an engine that is an object belongs to one process)"
        )
    return value


def _limits(value: Any, field: str) -> Limits:
    checked: Limits = Limits() if value is None else _instance(Limits)(value, field)
    return checked


CHECKS: Mapping[str, Check] = {
    "main": _optional(_module),
    "name": _optional(_text),
    "library_path": _each(_path),
    "libraries": _by_name(_module),
    "map_name": _optional(_function),
    "imports": _by_name(_by_name(_import)),
    "args": _each(_text),
    "env": _by_name(_text),
    "preopens": _by_name(_path),
    "stdin": _optional(_stream),
    "stdout": _optional(_path),
    "stderr": _optional(_path),
    "memory": _optional(_instance(MemoryType)),
    "stack_size": _bytes_of_stack,
    "thread_stack_size": _bytes_of_stack,
    "side_memory": _choice(checked_side_memory),
    "interrupts": _optional(_flag),
    "default_files": _flag,
    "bind": _choice(checked_binding),
    "guest_dlfcn": _choice(checked_dlfcn),
    "preload": _each(_path),
    "profiler": _optional(_text),
    "engine": _optional(_engine),
    "cache": _cache,
    "limits": _limits,
    "modules": _by_name(_module),
    "module_path": _each(_path),
    "finder": _each(_function),
    "isolate": _flag,
    "wamr": _wamr,
}
