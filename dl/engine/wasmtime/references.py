"""Values with references, between Python and `wasmtime_val_t`: slower than the slots of `dl.engine.native.slots`.

An external reference carries a number, by which `_OBJECTS` knows the Python object until the engine's collector has seen that
nothing refers to it any longer. Null is None.
"""

from __future__ import annotations

import ctypes
import itertools
import weakref
from typing import TYPE_CHECKING, Any

from dl.engine.native.entry import entry
from dl.engine.native.values import NUMBERS, check_count, marshaller
from dl.engine.values import Reference
from dl.engine.wasmtime import c
from dl.errors import EngineError, ValueConversionError
from dl.wasm.types import FuncType

if TYPE_CHECKING:
    from dl.engine.wasmtime.store import WasmtimeStore

STORES: weakref.WeakValueDictionary[int, WasmtimeStore] = weakref.WeakValueDictionary()
"""The open stores, by the address of their context, which is all that a callback gets. Each step on it is atomic."""

_OBJECTS: dict[int, Any] = {}
"""What external references refer to, by number. Each step on it is atomic."""

_numbers = itertools.count(1)

_KINDS = {
    "funcref": c.VAL_FUNCREF,
    "externref": c.VAL_EXTERNREF,
    "anyref": c.VAL_ANYREF,
    "exnref": c.VAL_EXNREF,
}
_NAMES = {number: name for name, number in _KINDS.items()}
_NUMBER_KINDS = {name: number for number, name in enumerate(NUMBERS)}


@entry
def _finalized(number: int, _objects: dict[int, Any] = _OBJECTS) -> None:
    # Without a call: after each one the interpreter handles signals, and what a handler raises could not leave from here.
    # So it waits for the next Python code. The default is there for the interpreter's end, when modules have lost their names.
    try:  # noqa: SIM105  `entry` wants it
        del _objects[number]
    except KeyError:  # the engine had no room for the reference, and `write_value` took the object back
        pass


_FINALIZE = c.FINALIZER(_finalized)
_FINALIZER = ctypes.cast(_FINALIZE, ctypes.c_void_p).value


def write_value(store: WasmtimeStore, kind: str, value: Any, out: c.Val, where: FuncType) -> None:
    """Convert a Python value.

    Args:
        store: where it is used.
        kind: its value type.
        value: the value.
        out: what to fill in; if it refers to something, `release` gives it back.
        where: for messages.

    Raises:
        ValueConversionError: it is not of this type.
    """
    if kind in _NUMBER_KINDS:
        convert = marshaller(FuncType((kind,), ()))
        out.kind = _NUMBER_KINDS[kind]
        out.of.bits[:] = convert.arguments.pack(*convert.wrap((kind,), (value,), "arguments"))
        return
    out.kind = _KINDS.get(kind, c.VAL_ANYREF)
    out.of.reference.store_id = 0
    if value is None:
        return
    if kind == "externref":
        number = next(_numbers)
        _OBJECTS[number] = value
        reference = ctypes.addressof(out.of.reference)
        if not c.externref_new(store.context(), number, _FINALIZER, reference):
            _OBJECTS.pop(number, None)
            raise EngineError("the engine has no room for another external reference")
    elif kind == "funcref" and getattr(value, "store", None) is store and hasattr(value, "func"):
        out.of.func = value.func
    else:
        raise ValueConversionError(where, f"{value!r} is no {kind} of this store")


def read_value(store: WasmtimeStore, value: c.Val, *, owned: bool = True) -> Any:
    """Convert a value to Python; give back what it refers to if it is owned, which the arguments of a callback are not."""
    if value.kind < len(NUMBERS):
        return marshaller(FuncType((), (NUMBERS[value.kind],))).results.unpack(bytes(value.of.bits))[0]
    if not value.of.reference.store_id:
        return None
    if value.kind == c.VAL_FUNCREF:
        from dl.engine.wasmtime.externals import WasmtimeFunction  # noqa: PLC0415  each needs the other

        return WasmtimeFunction(store, c.Func.from_buffer_copy(value.of.func))
    try:
        if value.kind == c.VAL_EXTERNREF:
            number = c.externref_data(store.context(), ctypes.addressof(value.of.reference))
            return _OBJECTS.get(number, Reference("externref"))
        return Reference(_NAMES.get(value.kind, "(ref)"))
    finally:
        if owned:
            release(value)


def release(value: c.Val) -> None:
    """Give back what a value refers to."""
    if (
        value.kind not in _NUMBER_KINDS.values()
        and value.kind != c.VAL_FUNCREF
        and value.of.reference.store_id
    ):
        c.val_unroot(ctypes.addressof(value))
        value.of.reference.store_id = 0


def write_values(
    store: WasmtimeStore,
    kinds: tuple[str, ...],
    values: tuple[Any, ...],
    area: Any,
    where: FuncType,
    what: str,
) -> None:
    """Convert arguments or results into an array of `c.Val`.

    Raises:
        ValueConversionError: their number or one of their types is another; nothing is left to give back.
    """
    check_count(kinds, values, where, what)
    done = 0
    try:
        for kind, value in zip(kinds, values, strict=True):
            write_value(store, kind, value, area[done], where)
            done += 1
    except BaseException:
        for position in range(done):
            release(area[position])
        raise
