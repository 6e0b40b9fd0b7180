"""Externals of a wasmtime store as objects: functions, globals, tables and tags. Memories are in `dl.engine.wasmtime.memory`.

What identifies an external, beside its store: of a memory, table, global or tag the defining instance and the index in it; of a
function what the engine's `VMFuncRef` holds, since each importing instance has a `VMFuncRef` of its own for it.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Hashable
from threading import get_ident
from typing import TYPE_CHECKING, Any

from dl.engine.native.calls import callable_function, raw_callable
from dl.engine.native.entry import need_room
from dl.engine.native.values import has_references
from dl.engine.wasmtime import c
from dl.engine.wasmtime.errors import check
from dl.engine.wasmtime.host import described_type, value_type
from dl.engine.wasmtime.memory import WasmtimeMemory, WasmtimeSharedMemory
from dl.engine.wasmtime.references import read_value, release, write_value, write_values
from dl.errors import EngineError
from dl.wasm.types import FuncType, GlobalType

if TYPE_CHECKING:
    from dl.engine.protocol import RawFunction
    from dl.engine.wasmtime.store import WasmtimeStore

_FUNC_REF = struct.Struct("<QQI4xQ")
"""`VMFuncRef`: the address of the array-call entry, that of the native entry, the type's index, the instance."""


class WasmtimeFunction:
    """A function of a store."""

    __slots__ = ("func", "store")

    def __init__(self, store: WasmtimeStore, func: c.Func) -> None:
        self.store = store
        self.func = func

    @property
    def key(self) -> Hashable:
        # Without the native entry: that of a host function is filled in when it is first needed.
        entry, _, kind, instance = _FUNC_REF.unpack(ctypes.string_at(self.func.private, _FUNC_REF.size))
        return "func", entry, kind, instance

    def extern(self) -> c.Extern:
        """Return it as an import."""
        extern = c.Extern(kind=c.EXTERN_FUNC)
        extern.of.func = self.func
        return extern

    def _called(self) -> tuple[int, int]:
        """Return the addresses by which a call knows the function."""
        return self.store.context(), ctypes.addressof(self.func)

    def callable(self, kind: FuncType) -> Callable[..., Any]:
        if has_references(kind):
            return _checked_callable(self.store, self.func, kind)
        return callable_function(self.store, c.call_with_arguments, self._called(), self.func, kind)

    def raw(self) -> RawFunction:
        return raw_callable(self.store, c.call_with_arguments, self._called(), self.func)

    def type(self) -> FuncType:
        native = c.function_type(self.store.context(), ctypes.addressof(self.func))
        try:
            return described_type(native, references=True)
        finally:
            c.functype_delete(native)


def _checked_callable(store: WasmtimeStore, func: c.Func, kind: FuncType) -> Callable[..., Any]:
    """Return a Python callable for a function with references; as `callable_function`, through the engine's checked call."""
    params, results = len(kind.params), len(kind.results)
    func_address = ctypes.addressof(func)

    def invoke(*arguments: Any, _keep: object = func) -> Any:
        # Areas of this call alone: values in them refer to objects, and a recursive call would overwrite those.
        given, returned = (c.Val * max(params, 1))(), (c.Val * max(results, 1))()
        need_room()
        if get_ident() != store.thread:
            store.enter_thread()
        write_values(store, kind.params, arguments, given, kind, "parameters")
        store.running += 1
        try:
            error = c.function_call_checked(
                store.context(),
                func_address,
                ctypes.addressof(given),
                params,
                ctypes.addressof(returned),
                results,
                store.trap_address,
            )
        except BaseException as interruption:
            store.discard_ending(interruption)
            raise
        finally:
            store.running -= 1
            for position in range(params):
                release(given[position])
        if error is not None or store.trap.value is not None:
            store.raise_ending(error)
        values = tuple(read_value(store, returned[position]) for position in range(results))
        return values if results > 1 else values[0] if values else None

    return invoke


class _Indexed:
    """What all externals but functions have in common."""

    __slots__ = ("_extern", "store")

    def __init__(self, store: WasmtimeStore, extern: c.Extern) -> None:
        self.store = store
        self._extern = extern

    def extern(self) -> c.Extern:
        """Return it as an import."""
        return self._extern


class WasmtimeTag(_Indexed):
    """An exception tag of a store."""

    __slots__ = ()

    @property
    def key(self) -> Hashable:
        tag = self._extern.of.tag
        return "tag", tag.head.p1, tag.p2


class WasmtimeGlobal(_Indexed):
    """A global of a store."""

    __slots__ = ()

    @property
    def key(self) -> Hashable:
        found = self._extern.of.global_
        return "global", found.p1, found.p2, found.p3

    def get(self) -> Any:
        value = c.Val()
        address = ctypes.addressof(self._extern.of.global_)
        c.global_get(self.store.context(), address, ctypes.addressof(value))
        return read_value(self.store, value)

    def set(self, value: Any) -> None:
        # The kind of the value that it has is that of its type.
        present, new = c.Val(), c.Val()
        address = ctypes.addressof(self._extern.of.global_)
        c.global_get(self.store.context(), address, ctypes.addressof(present))
        kind = _kind_name(present.kind)
        release(present)
        write_value(self.store, kind, value, new, FuncType((kind,), ()))
        try:
            check(c.global_set(self.store.context(), address, ctypes.addressof(new)))
        finally:
            release(new)


class WasmtimeTable(_Indexed):
    """A table of a store."""

    __slots__ = ()

    @property
    def key(self) -> Hashable:
        table = self._extern.of.table
        return "table", table.head.p1, table.p2

    def _address(self) -> int:
        return ctypes.addressof(self._extern.of.table)

    def size(self) -> int:
        return int(c.table_size(self.store.context(), self._address()))

    def get(self, index: int) -> Any:
        value = c.Val()
        if not c.table_get(self.store.context(), self._address(), index, ctypes.addressof(value)):
            raise IndexError(index)
        return read_value(self.store, value)

    def _value(self, value: Any) -> c.Val:
        new = c.Val()
        kind = "externref" if self._holds_externals() else "funcref"
        write_value(self.store, kind, value, new, FuncType((kind,), ()))
        return new

    def _holds_externals(self) -> bool:
        """Whether its elements are external references: asked of an operation that changes nothing if the type is right."""
        probe, former = c.Val(), ctypes.c_uint64()
        probe.kind = c.VAL_EXTERNREF
        error = c.table_grow(
            self.store.context(), self._address(), 0, ctypes.addressof(probe), ctypes.addressof(former)
        )
        if error:
            c.error_delete(error)
        return not error

    def set(self, index: int, value: Any) -> None:
        if not 0 <= index < self.size():
            raise IndexError(index)
        new = self._value(value)
        try:
            check(c.table_set(self.store.context(), self._address(), index, ctypes.addressof(new)))
        finally:
            release(new)

    def grow(self, count: int, value: Any) -> int | None:
        new, former = self._value(value), ctypes.c_uint64()
        try:
            error = c.table_grow(
                self.store.context(),
                self._address(),
                count,
                ctypes.addressof(new),
                ctypes.addressof(former),
            )
        finally:
            release(new)
        if error:
            c.error_delete(error)
            return None
        return former.value


def _kind_name(number: int) -> str:
    names = {
        c.VAL_FUNCREF: "funcref",
        c.VAL_EXTERNREF: "externref",
        c.VAL_ANYREF: "anyref",
        c.VAL_EXNREF: "exnref",
    }
    return names.get(number) or ("i32", "i64", "f32", "f64", "v128")[number]


def external_of(store: WasmtimeStore, extern: c.Extern) -> Any:
    """Return the object for a native external of a store."""
    if extern.kind == c.EXTERN_FUNC:
        return WasmtimeFunction(store, c.Func.from_buffer_copy(extern.of.func))
    if extern.kind == c.EXTERN_SHARED_MEMORY:
        return WasmtimeSharedMemory(extern.of.shared_memory)
    kinds = {c.EXTERN_GLOBAL: WasmtimeGlobal, c.EXTERN_TABLE: WasmtimeTable, c.EXTERN_TAG: WasmtimeTag}
    return kinds.get(extern.kind, WasmtimeMemory)(store, extern)


def new_global(store: WasmtimeStore, engine: int, kind: GlobalType, value: Any) -> WasmtimeGlobal:
    """Create a global of a store.

    Raises:
        ValueConversionError: the value is of another type.
        EngineError: the engine refuses it.
    """
    if kind.value not in c.VALUE_KINDS:
        raise EngineError(f"a global of type {kind.value} cannot be made by the host")
    native = c.globaltype_new(value_type(engine, kind.value), kind.mutable)
    first, extern = c.Val(), c.Extern(kind=c.EXTERN_GLOBAL)
    try:
        write_value(store, kind.value, value, first, FuncType((kind.value,), ()))
        try:
            address = ctypes.addressof(extern.of.global_)
            check(c.global_new(store.context(), native, ctypes.addressof(first), address))
        finally:
            release(first)
    finally:
        c.globaltype_delete(native)
    return WasmtimeGlobal(store, extern)
