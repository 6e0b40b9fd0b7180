"""What arguments of `LinearMemory` may be: numbers, formats of the struct module, and structures of ctypes."""

from __future__ import annotations

import ctypes
import struct
from functools import lru_cache
from operator import index
from typing import Any

from memory.errors import InvalidRequestError

_HOST_POINTERS = "PzZOX"
"""Codes by which ctypes tells types that are pointers of the host, or objects of Python."""


def integer(parameter: str, value: Any) -> int:
    """The number that an argument is.

    Raises:
      InvalidRequestError: it is none; names the parameter.
    """
    try:
        return index(value)
    except TypeError:
        raise InvalidRequestError(
            parameter, value, "be an integer, or an object that stands for one"
        ) from None


def little_endian(layout: str) -> struct.Struct:
    """The codec of a format of the struct module, as linear memory has it.

    Raises:
      InvalidRequestError: it is none, or of another byte order.
    """
    if not isinstance(layout, str):
        raise InvalidRequestError("layout", layout, "be a text")
    return _codec(layout)


@lru_cache(maxsize=512)
def _codec(layout: str) -> struct.Struct:
    if layout[:1] in ("@", "=", ">", "!"):
        raise InvalidRequestError("layout", layout, "be little-endian, as linear memory is")
    try:
        return struct.Struct(layout if layout[:1] == "<" else "<" + layout)
    except struct.error as error:
        raise InvalidRequestError("layout", layout, f"be a format of the struct module: {error}") from error


def aggregate(kind: Any) -> Any:
    """The type, if a structure of the guest can be of it; untyped, as mypy does not know what its methods return.

    Raises:
      InvalidRequestError: it is no structure, or has a pointer or an object of the host, or a number of another byte order,
        among its fields.
    """
    if not isinstance(kind, type) or not issubclass(kind, (ctypes.Structure, ctypes.Union)):
        raise InvalidRequestError("kind", kind, "be a ctypes.Structure or a ctypes.Union")
    checked: Any = _check_aggregate
    checked(kind)
    return kind


@lru_cache(maxsize=512)
def _check_aggregate(kind: type[ctypes.Structure | ctypes.Union]) -> None:
    for base in kind.__bases__:
        if issubclass(base, (ctypes.Structure, ctypes.Union)):
            _check_aggregate(base)  # whose fields come first, and are not among those of the class itself
    for name, field, *_ in vars(kind).get("_fields_", ()):
        inner = field
        while issubclass(inner, ctypes.Array):
            inner = inner._type_
        if issubclass(inner, (ctypes.Structure, ctypes.Union)):
            _check_aggregate(inner)
            continue
        if _is_of_host(inner):
            raise InvalidRequestError(
                "kind",
                kind,
                f"have no pointers of the host: {kind.__name__}.{name} is {inner.__name__}; use c_uint32",
            )
        if _is_foreign(inner):
            raise InvalidRequestError(
                "kind", kind, f"be little-endian, as linear memory is: {kind.__name__}.{name} is not"
            )


def unreadable(kind: Any) -> str:
    """Why a guest cannot read values of a type of ctypes, as the end of the sentence "... must ..."; empty if it can."""
    while issubclass(kind, ctypes.Array):
        kind = kind._type_
    if issubclass(kind, (ctypes.Structure, ctypes.Union)):
        try:
            aggregate(kind)
        except InvalidRequestError as error:
            return error.requirement
        return ""
    if _is_of_host(kind):
        return f"have no pointers of the host: it is {kind.__name__}"
    return "be little-endian, as linear memory is" if _is_foreign(kind) else ""


def _is_of_host(kind: Any) -> bool:
    """Whether values of a type that is no aggregate are pointers of the host, or objects of Python."""
    code = getattr(kind, "_type_", "P")
    return not isinstance(code, str) or code in _HOST_POINTERS


def _is_foreign(kind: Any) -> bool:
    return getattr(kind, "__ctype_le__", kind) is not kind
