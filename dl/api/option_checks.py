"""What each option of a linker may be.

What a value must be beyond its type is checked where it is used; here, if that is late, or far from the option's name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from operator import index
from typing import Any

from dl.checks import (
    Check,
    UnfitError,
    any_path,
    anything,
    by_name,
    cache_or,
    each,
    flag,
    function,
    instance,
    module_or,
    optional,
    path,
    stream_or,
    taken,
    text,
    unfit,
    word,
)
from dl.errors import LinkerUsageError
from dl.limits import Limits
from dl.options import MemoryType
from dl.text import shown

_module, _stream, _cache = module_or(any_path), stream_or(any_path), cache_or(any_path)


def _number(value: Any, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise unfit(value, field, "a number of bytes")
    return value


def _output(value: Any, field: str) -> Any:
    if not callable(value) and not isinstance(value, (str, os.PathLike)):
        raise unfit(value, field, "a function that gets bytes, or a path")
    return value


def _engine(value: Any, field: str) -> Any:
    if not isinstance(value, str) and not hasattr(value, "new_store"):
        raise unfit(value, field, "the name of an engine, or an engine")
    return value


def _mode(value: Any, field: str) -> Any:
    from dl.wamr.mode import WamrMode  # noqa: PLC0415  for those who give one

    if not isinstance(value, (int, WamrMode)) or isinstance(value, bool):
        raise unfit(value, field, "a dl.WamrMode, or its number")
    return value


def _main(value: Any, field: str) -> Any:
    if isinstance(value, (str, os.PathLike)) and not os.fspath(value):
        raise UnfitError(field, "it takes the path of a file, which is not empty")
    return _module(value, field)


def _directory(value: Any, field: str) -> str:
    # Else what opens the program's first file would find that out, if one is ever opened.
    found = path(value, field)
    if not os.path.isdir(found):
        raise unfit(found, field, "the path of a directory that is there")
    return found


def _environment(value: Any, field: str) -> dict[str, str]:
    found: dict[str, str] = by_name(text)(value, field)
    for name in found:
        if not name or "=" in name:  # a program gets texts NAME=VALUE
            raise unfit(name, field, "names of variables, which are not empty and have no equals sign")
    return found


def _one_or_each(check: Check) -> Check:
    several = each(check)
    return lambda value, field: (several if isinstance(value, Sequence) else check)(value, field)


CHECKS: Mapping[str, Check] = {
    "main": optional(_main),
    "name": optional(word),
    "library_path": each(any_path),
    "libraries": by_name(_module),
    "map_name": optional(function),
    "imports": by_name(anything),
    "args": each(text),
    "env": _environment,
    "preopens": by_name(_directory),
    "stdin": optional(_stream),
    "stdout": optional(_output),
    "stderr": optional(_output),
    "memory": optional(instance(MemoryType)),
    "stack_size": _number,
    "thread_stack_size": _number,
    "interrupts": optional(flag),
    "default_files": flag,
    "preload": each(any_path),
    "engine": optional(_engine),
    "cache": _cache,
    "limits": optional(instance(Limits)),
    "modules": by_name(_module),
    "module_path": each(any_path),
    "finder": _one_or_each(function),
    "isolate": flag,
    "wamr": optional(_mode),
    "profiler": optional(word),
}


def check_library(library: Any, library_path: Any, name: Any) -> None:
    """Check the types of what a `dlopen` takes.

    Raises:
        LinkerUsageError: one of them is of another type; names it.
    """
    taken(optional(_module), library, "library")
    taken(
        optional(each(any_path)), () if isinstance(library_path, Iterator) else library_path, "library_path"
    )
    taken(optional(word), name, "name")


def number_of(handle: Any) -> int:
    """Return the number of a module handle.

    Raises:
        LinkerUsageError: it is none.
    """
    try:
        return index(handle)
    except TypeError:
        raise LinkerUsageError(
            f"a handle is a Library, or what dlopen returned, not {shown(repr(handle))}"
        ) from None


def check_options(given: Mapping[str, Any]) -> None:
    """Check the types of options of `dl.Linker`, by their names; others are not looked at.

    Raises:
        LinkerUsageError: one is not what the linker takes; names it, and what it takes.
    """
    for name, value in given.items():
        check = CHECKS.get(name)
        if check is None or isinstance(value, Iterator):  # which can be gone through once
            continue
        taken(check, value, name)
