"""Python values to and from the 16-byte slots in which an engine passes WebAssembly values.

Slot layout: `wasmtime_val_raw_t`, and Wasmer's `RawValue`: little-endian, the value in the first bytes of its slot. i32 and
i64 come out signed; unsigned values go in as well, so that addresses above 2 GiB pass. v128 is 16 bytes.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from dl.errors import ValueConversionError
from dl.text import shown_integer
from dl.wasm.types import FuncType
from threads import found_in

SLOT_BYTES = 16

NUMBERS = ("i32", "i64", "f32", "f64", "v128")
"""Value types that are not references, by their `wasmtime_valtype_kind_t`, which is also their `wasmtime_valkind_t`."""

_FORMATS = {"i32": "i12x", "i64": "q8x", "f32": "f12x", "f64": "d8x", "v128": "16s"}
_VIEWS: dict[str, Any] = {
    "i32": ctypes.c_int32,
    "i64": ctypes.c_int64,
    "f32": ctypes.c_float,
    "f64": ctypes.c_double,
}
"""Objects over the beginning of a slot, which are read in half the time that a struct takes."""
_WIDTHS = {"i32": 32, "i64": 64}


class Marshaller:
    """Conversion for one signature.

    Attributes:
        slots: 16-byte slots that arguments and results need, at least 1.
        arguments: struct of the arguments; pack for calls into the guest, unpack for host functions.
        results: struct of the results.
    """

    __slots__ = ("arguments", "kind", "results", "slots")

    def __init__(self, kind: FuncType) -> None:
        unsupported = [t for t in (*kind.params, *kind.results) if t not in _FORMATS]
        if unsupported:
            raise ValueConversionError(kind, f"a value of type {unsupported[0]} cannot cross into Python")
        self.kind = kind
        self.slots = max(len(kind.params), len(kind.results), 1)
        self.arguments = struct.Struct("<" + "".join(_FORMATS[t] for t in kind.params))
        self.results = struct.Struct("<" + "".join(_FORMATS[t] for t in kind.results))

    def wrap(
        self, types: tuple[str, ...], values: tuple[Any, ...], what: str, function: str = ""
    ) -> tuple[Any, ...]:
        """Bring values into the ranges the structs take: the slow path, after a struct has refused them.

        Raises:
            ValueConversionError: wrong number, type or range.
        """
        if len(types) != len(values):
            verb = "takes" if what == "arguments" else "has"
            raise ValueConversionError(self.kind, f"{verb} {len(types)} {what}, got {len(values)}", function)
        return tuple(
            self._wrap_one(kind, value, f"{what[:-1]} {position}", function)
            for position, (kind, value) in enumerate(zip(types, values, strict=True))
        )

    def _wrap_one(self, kind: str, value: Any, where: str, function: str) -> Any:
        width = _WIDTHS.get(kind)
        if width:
            return self._integer(value, width, where, function)
        if kind == "v128":
            if not isinstance(value, (bytes, bytearray)) or len(value) != 16:
                raise ValueConversionError(self.kind, f"{where} must be 16 bytes, got {value!r}", function)
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueConversionError(self.kind, f"{where} must be a number, got {value!r}", function)
        try:
            number = float(value)
        except OverflowError:
            raise ValueConversionError(
                self.kind, f"{where} does not fit in {kind}: {shown_integer(int(value))}", function
            ) from None
        return _nearest_f32(number) if kind == "f32" else number

    def _integer(self, value: Any, width: int, where: str, function: str) -> int:
        try:
            number = int(value.__index__())
        except (AttributeError, TypeError):  # an array of NumPy has the method, and refuses
            raise ValueConversionError(
                self.kind, f"{where} must be an integer, got {value!r}", function
            ) from None
        if not -(1 << (width - 1)) <= number < 1 << width:
            raise ValueConversionError(
                self.kind, f"{where} does not fit in i{width}: {shown_integer(number)}", function
            )
        return number - (1 << width) if number >= 1 << (width - 1) else number

    def pack_results(self, area: Any, value: Any, function: str) -> None:
        """Write what a host function, whose name is given for errors, returned into the slots.

        Raises:
            ValueConversionError: it does not fit the signature.
        """
        count = len(self.kind.results)
        if not count:
            if value is not None:
                raise ValueConversionError(
                    self.kind, f"has no result, but the host function returned {value!r}", function
                )
            return
        values = tuple(value) if count > 1 and isinstance(value, (tuple, list)) else (value,)
        if "v128" in self.kind.results:  # a struct fills up short bytes with zeros
            values = self.wrap(self.kind.results, values, "results", function)
        try:
            self.results.pack_into(area, 0, *values)
        except (struct.error, OverflowError, TypeError):
            self.results.pack_into(area, 0, *self.wrap(self.kind.results, values, "results", function))


def _nearest_f32(value: float) -> float:
    """Round to single precision; what is too large becomes an infinity, as in C."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


@lru_cache(maxsize=4096)
def marshaller(kind: FuncType) -> Marshaller:
    """Return the conversion for a signature.

    Raises:
        ValueConversionError: it has values that Python code cannot hold, such as references.
    """
    return Marshaller(kind)


def result_reader(kind: FuncType, area: Any) -> Callable[[], Any]:
    """Return a function that reads the results from slots that are an object of ctypes: None, a value, or a tuple."""
    count = len(kind.results)
    if count == 0:
        return lambda: None
    view = found_in(_VIEWS, kind.results[0])
    if count == 1 and view is not None:
        result = view.from_buffer(area)
        return lambda: result.value
    read = partial(marshaller(kind).results.unpack_from, area)
    return read if count > 1 else lambda: read()[0]


def has_references(kind: FuncType) -> bool:
    """Whether a signature has values that are neither numbers nor vectors."""
    return any(text not in NUMBERS for text in (*kind.params, *kind.results))


def check_count(kinds: tuple[str, ...], values: tuple[Any, ...], where: FuncType, what: str) -> None:
    """Check that there are as many values as types.

    Raises:
        ValueConversionError: there are not; the message says `what` they are.
    """
    if len(kinds) != len(values):
        raise ValueConversionError(where, f"has {len(kinds)} {what}, got {len(values)}")


def returned_values(kind: FuncType, value: Any) -> tuple[Any, ...]:
    """Return what a Python function returned, as a tuple of results.

    Raises:
        ValueConversionError: it is not as many as the signature has.
    """
    if not kind.results:
        if value is not None:
            raise ValueConversionError(kind, f"has no result, but the host function returned {value!r}")
        return ()
    if len(kind.results) == 1:
        return (value,)
    if not isinstance(value, (tuple, list)):
        raise ValueConversionError(kind, f"has {len(kind.results)} results, got {value!r}")
    return tuple(value)
