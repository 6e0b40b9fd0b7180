"""What values may be, said once: checks that options of a linker and fields of a description are made of."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from operator import index
from typing import TYPE_CHECKING, Any

from dl.errors import LinkerUsageError
from dl.text import shown_integer

if TYPE_CHECKING:
    from typing import TypeGuard

Check = Callable[[Any, str], Any]
"""Takes a value and the name of its field; returns the value as it is kept, or raises `UnfitError`."""

_MOST_SHOWN = 60


class UnfitError(ValueError):
    """A value is not what its field takes; an error of `dl` is made of it before anybody else sees it.

    Attributes:
        field: which field, and where in it, such as `imports['env']['log']`.
        reason: what is wrong.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason


def shortened(value: object) -> str:
    """Return a value as a short text: bytes by their number."""
    if type(value) is int:
        return shown_integer(value)
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {shortened(one)}" for key, one in value.items()) + "}"
    return repr(value)


def unfit(value: object, field: str, wanted: str) -> UnfitError:
    """Return the error for a value, with what its field takes."""
    text = shortened(value)
    return UnfitError(
        field, f"it takes {wanted}, not {text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + '...'}"
    )


def taken(check: Check, value: Any, field: str) -> Any:
    """Return what a check makes of an argument of a public function.

    Raises:
        LinkerUsageError: the check refuses it; names the parameter, what it takes and what was given.
    """
    try:
        return check(value, field)
    except UnfitError as error:
        raise LinkerUsageError(f"{error.field}: {error.reason}") from None


def anything(value: Any, _field: str) -> Any:
    """Take whatever it is; somebody else looks at it."""
    return value


def whole(value: Any, field: str) -> int:
    """Take a whole number, or an object that stands for one (`__index__`)."""
    try:
        return index(value)
    except TypeError:
        raise unfit(value, field, "a whole number") from None


def octets(value: Any, field: str) -> memoryview:
    """Take bytes in one piece: `bytes`, or an object with their buffer."""
    try:
        return memoryview(value).cast("B")
    except TypeError:
        raise unfit(value, field, "bytes in one piece") from None


def word(value: Any, field: str) -> str:
    """Take a text, whatever it has in it."""
    if not isinstance(value, str):
        raise unfit(value, field, "a text")
    return value


def function(value: Any, field: str) -> Any:
    """Take what can be called."""
    if not callable(value):
        raise unfit(value, field, "a function")
    return value


def is_time(value: Any) -> TypeGuard[float]:
    """Whether a value is a number that clocks can reckon with: a float, or a whole number that has one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        float(value)
    except OverflowError:  # 1.8e308 and more
        return False
    return True


def seconds(value: Any, field: str) -> float:
    """Take a positive number of seconds."""
    if not is_time(value) or not value > 0:
        raise unfit(value, field, "a positive number of seconds")
    return value


def duration(value: Any, field: str) -> float:
    """Take a number of seconds to wait; none that is less than 0 is waited at all."""
    if not is_time(value):
        raise unfit(value, field, "a number of seconds")
    return value


def at_least(least: int) -> Check:
    """Return a check for whole numbers that are not smaller than one."""

    def checked(value: Any, field: str) -> int:
        if not hasattr(value, "__index__") or index(value) < least:
            raise unfit(value, field, f"a whole number, {least} or more")
        return index(value)

    return checked


def text(value: Any, field: str) -> str:
    """Take a text that a program can get."""
    if not isinstance(value, str) or "\0" in value:
        raise unfit(value, field, "a text without zero bytes")
    return value


def flag(value: Any, field: str) -> bool:
    """Take True or False."""
    if not isinstance(value, bool):
        raise unfit(value, field, "True or False")
    return value


def any_path(value: Any, field: str) -> str:
    """Take a path, as text or as an object that is one; whether there can be such a file is for whoever opens it to say."""
    found = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(found, str):
        raise unfit(value, field, "a path")
    return found


def path(value: Any, field: str) -> str:
    """Take a path that a file can have."""
    found = any_path(value, field)
    if not found or "\0" in found:
        raise unfit(value, field, "a path")
    return found


def or_path(kinds: tuple[type[Any], ...], wanted: str, of_path: Check) -> Check:
    """Return a check for objects of some types, which are kept as they are, or paths.

    Args:
        kinds: the types.
        wanted: what the field takes, in words.
        of_path: takes the paths.
    """

    def checked(value: Any, field: str) -> Any:
        if isinstance(value, kinds):
            return value
        if not isinstance(value, (str, os.PathLike)):
            raise unfit(value, field, wanted)
        return of_path(value, field)

    return checked


def module_or(of_path: Check) -> Check:
    """Return a check for modules, of which a path is taken by another check."""
    return or_path((bytes, bytearray, memoryview), "a module: a path, or bytes", of_path)


def stream_or(of_path: Check) -> Check:
    """Return a check for what standard input may be, of which a path is taken by another check."""
    return or_path((bytes,), "bytes, or a path", of_path)


def cache_or(of_path: Check) -> Check:
    """Return a check for whether compiled code is kept on disk, or where, of which a path is taken by another check."""
    return or_path((bool,), "True, False or a path", of_path)


stream, cache = stream_or(path), cache_or(path)
_module = module_or(path)


def module(value: Any, field: str) -> str | bytes:
    """Take a module: its path or its bytes, which are copied if they can change."""
    found = _module(value, field)
    return found if isinstance(found, str) else bytes(found)


def bytes_of_stack(value: Any, field: str) -> int:
    """Take the size of a stack."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or value % 1024:
        raise unfit(value, field, "bytes, a positive multiple of 1024")
    return value


def choice(check: Callable[[Any], object]) -> Check:
    """Return a check of what another function refuses."""

    def checked(value: Any, field: str) -> Any:
        try:
            check(value)
        except LinkerUsageError as error:
            raise UnfitError(field, str(error)) from None
        return value

    return checked


def optional(check: Check) -> Check:
    """Return a check that takes None too."""
    return lambda value, field: None if value is None else check(value, field)


def instance(kind: type[Any]) -> Check:
    """Return a check for objects of a public class."""

    def checked(value: Any, field: str) -> Any:
        if not isinstance(value, kind):
            raise unfit(value, field, f"a {'' if kind.__module__ == 'builtins' else 'dl.'}{kind.__name__}")
        return value

    return checked


def each(check: Check) -> Check:
    """Return a check for lists of what another takes."""

    def checked(value: Any, field: str) -> tuple[Any, ...]:
        if isinstance(value, (str, bytes, os.PathLike, Mapping)) or not isinstance(value, Iterable):
            raise unfit(value, field, "a list")
        return tuple(check(one, f"{field}[{number}]") for number, one in enumerate(value))

    return checked


def by_name(check: Check) -> Check:
    """Return a check for mappings from texts to what another takes; None is an empty one."""

    def checked(value: Any, field: str) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise unfit(value, field, "a mapping")
        return {text(key, field): check(one, f"{field}[{key!r}]") for key, one in value.items()}

    return checked
