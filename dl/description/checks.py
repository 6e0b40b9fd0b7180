"""What each field of a description may hold, and how it is kept: as values that compare and hash."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from dl.checks import (
    Check,
    UnfitError,
    by_name,
    bytes_of_stack,
    cache,
    choice,
    each,
    flag,
    instance,
    module,
    optional,
    path,
    shortened,
    stream,
    text,
    unfit,
)
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

__all__ = ["CHECKS", "check_names", "checked", "shortened"]


def checked(value: Any, field: str) -> Any:
    """Return the value of a field as it is kept.

    Raises:
        SpecError: the field does not take it.
    """
    try:
        return CHECKS[field](value, field)
    except UnfitError as error:
        raise SpecError(error.field, error.reason) from None


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


def _function(value: Any, field: str) -> str:
    if callable(value):
        try:
            return function_name(value)
        except ValueError as error:
            raise UnfitError(field, str(error)) from None
    if not is_function_name(value):
        raise unfit(value, field, "the name of a function, as module:qualname")
    name: str = value
    return name


def _import(value: Any, field: str) -> str | int | float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    return _function(value, field)


def _wamr(value: Any, field: str) -> WamrMode | None:
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return WamrMode.from_mode_bits(value)
        except LinkerUsageError as error:
            raise UnfitError(field, str(error)) from None
    mode: WamrMode | None = None if value is None else instance(WamrMode)(value, field)
    return mode


def _kept(check: Check) -> Check:
    """Return a check for mappings, kept so that they compare and hash."""
    taken = by_name(check)
    return lambda value, field: FrozenMapping(taken(value, field))


def _engine(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise unfit(
            value, field, "the name of an engine (an engine that is an object belongs to one process)"
        )
    return value


def _limits(value: Any, field: str) -> Limits:
    limits: Limits = Limits() if value is None else instance(Limits)(value, field)
    return limits


CHECKS: Mapping[str, Check] = {
    "main": optional(module),
    "name": optional(text),
    "library_path": each(path),
    "libraries": _kept(module),
    "map_name": optional(_function),
    "imports": _kept(_kept(_import)),
    "args": each(text),
    "env": _kept(text),
    "preopens": _kept(path),
    "stdin": optional(stream),
    "stdout": optional(path),
    "stderr": optional(path),
    "memory": optional(instance(MemoryType)),
    "stack_size": bytes_of_stack,
    "thread_stack_size": bytes_of_stack,
    "side_memory": choice(checked_side_memory),
    "interrupts": optional(flag),
    "default_files": flag,
    "bind": choice(checked_binding),
    "guest_dlfcn": choice(checked_dlfcn),
    "preload": each(path),
    "profiler": optional(text),
    "engine": optional(_engine),
    "cache": cache,
    "limits": _limits,
    "modules": _kept(module),
    "module_path": each(path),
    "finder": each(_function),
    "isolate": flag,
    "wamr": _wamr,
}
