"""References of a Wasmer store, between Python and the slots of a call.

A reference to a function is an address; one to a Python object is a number by which the store knows the object. The engine
passes both on and counts nothing, so the store looks itself which numbers are still in use: see `Objects`.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dl.engine.native.values import NUMBERS, SLOT_BYTES, check_count, marshaller
from dl.engine.values import Reference
from dl.errors import EngineError, ValueConversionError
from dl.wasm.types import FuncType

if TYPE_CHECKING:
    from dl.engine.wasmer.store import WasmerStore

_REFERENCE = struct.Struct("<Q8x")
_EXCEPTION = struct.Struct("<I12x")

_FEW = 1000
"""Objects that are kept without asking which of them are still referred to."""
_MOST = 1 << 20
"""Objects that the guest code of one store can refer to."""


class Objects:
    """The Python objects that a store's guest code can refer to. Used by the store's thread.

    An object is kept until no table, global or exception of the store refers to it any longer. That is looked for when the
    objects have doubled, at a time when no guest code runs: then nothing else can refer to one.

    Args:
        referred: returns the numbers that the store's tables, globals and exceptions hold.
        runs: whether guest code of the store runs.
    """

    def __init__(self, referred: Callable[[], set[int]], runs: Callable[[], object]) -> None:
        self._referred = referred
        self._runs = runs
        self._objects: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}
        self._next = 1
        self._enough = _FEW
        self._passing = 0

    def __len__(self) -> int:
        return len(self._objects)

    def begin(self) -> None:
        """Begin to pass references: until `end`, each one is kept that `number` gives."""
        if len(self._objects) >= self._enough and not self._passing and not self._runs():
            self._let_go()
        self._passing += 1

    def end(self) -> None:
        """End what `begin` began."""
        self._passing -= 1

    def _let_go(self) -> None:
        referred = self._referred()
        # Whatever the end of an object does, it finds both tables complete.
        former, self._objects = self._objects, {n: o for n, o in self._objects.items() if n in referred}
        self._numbers = {id(one): number for number, one in self._objects.items()}
        self._enough = max(_FEW, 2 * len(self._objects))
        former.clear()

    def number(self, value: object) -> int:
        """Return the number of an object.

        Raises:
            EngineError: there are too many.
        """
        known = self._numbers.get(id(value))
        if known is None:
            if len(self._objects) >= _MOST:
                raise EngineError("the engine has no room for another external reference")
            known, self._next = self._next, self._next + 1
            self._objects[known] = value
            self._numbers[id(value)] = known
        return known

    def find(self, number: int) -> Any:
        """Return the object of a number."""
        return self._objects[number]

    def clear(self) -> None:
        """Forget all objects: the store is closed."""
        self._numbers = {}
        former, self._objects = self._objects, {}
        former.clear()


def write_value(store: WasmerStore, kind: str, value: Any, area: Any, position: int, where: FuncType) -> None:
    """Convert a Python value, between `Objects.begin` and `Objects.end` of the store.

    Args:
        store: where it is used.
        kind: its value type.
        value: the value.
        area: the slots.
        position: which slot to fill in.
        where: for messages.

    Raises:
        ValueConversionError: it is not of this type.
        EngineError: the store refers to too many objects.
    """
    offset = position * SLOT_BYTES
    if kind in NUMBERS:
        convert = marshaller(FuncType((kind,), ()))
        convert.arguments.pack_into(area, offset, *convert.wrap((kind,), (value,), "arguments"))
        return
    if value is None:
        raw = 0
    elif kind == "externref":
        raw = store.objects.number(value)
    elif kind == "funcref" and getattr(value, "store", None) is store and hasattr(value, "reference"):
        raw = value.reference()
    else:
        raise ValueConversionError(where, f"{value!r} is no {kind} of this store")
    _REFERENCE.pack_into(area, offset, raw)


def write_values(
    store: WasmerStore,
    kinds: tuple[str, ...],
    values: tuple[Any, ...],
    area: Any,
    where: FuncType,
    what: str,
) -> None:
    """Convert arguments or results, as `write_value` does each.

    Raises:
        ValueConversionError: their number or one of their types is another.
        EngineError: the store refers to too many objects.
    """
    check_count(kinds, values, where, what)
    for position, (kind, value) in enumerate(zip(kinds, values, strict=True)):
        write_value(store, kind, value, area, position, where)


def read_value(store: WasmerStore, kind: str, area: Any, position: int) -> Any:
    """Convert the value of a slot to Python."""
    offset = position * SLOT_BYTES
    if kind in NUMBERS:
        return marshaller(FuncType((), (kind,))).results.unpack_from(area, offset)[0]
    if kind == "exnref":
        return Reference(kind) if _EXCEPTION.unpack_from(area, offset)[0] else None
    raw = _REFERENCE.unpack_from(area, offset)[0]
    if not raw:
        return None
    return store.objects.find(raw) if kind == "externref" else store.referred_function(raw)


def new_area(slots: int) -> Any:
    """Return slots of their own, all zeros."""
    return ctypes.create_string_buffer(max(slots, 1) * SLOT_BYTES)


def area_at(address: int, slots: int) -> Any:
    """Return slots at an address."""
    return (ctypes.c_char * (slots * SLOT_BYTES)).from_address(address)
