"""Instances in a wasmtime store, and the functions they export as Python callables.

The binding's way of calling costs tens of microseconds. Here a call is one foreign call on an argument area that belongs
to the function object. The area may be shared by recursive calls: the engine reads all arguments before the first guest
instruction and writes all results after the last.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from threading import get_ident
from typing import TYPE_CHECKING, Any

from dl.engine.protocol import RawFunction
from dl.engine.wasmtime import c
from dl.engine.wasmtime.entry import need_room
from dl.engine.wasmtime.memory import WasmtimeMemory, WasmtimeSharedMemory
from dl.engine.wasmtime.values import SLOT_BYTES, marshaller, result_reader
from dl.wasm.types import FuncType

if TYPE_CHECKING:
    from dl.engine.wasmtime.store import WasmtimeStore


class WasmtimeInstance:
    """An instance, valid as long as its store is open."""

    __slots__ = ("raw", "store")

    def __init__(self, store: WasmtimeStore, raw: c.Instance) -> None:
        self.store = store
        self.raw = raw

    def export(self, name: str, *kinds: int) -> c.Extern:
        """Return an export of one of some kinds, or of any; a shared memory in it is a reference of its own, to be freed."""
        extern = c.Extern()
        raw_name = name.encode()
        found = c.instance_export(
            self.store.context(),
            ctypes.addressof(self.raw),
            raw_name,
            len(raw_name),
            ctypes.addressof(extern),
        )
        if found and kinds and extern.kind not in kinds:
            if extern.kind == c.EXTERN_SHARED_MEMORY:
                c.shared_memory_delete(extern.of.shared_memory)
            found = False
        if not found:
            raise KeyError(name)
        return extern

    def function(self, name: str, kind: FuncType) -> Callable[..., Any]:
        return callable_function(self.store, self.export(name, c.EXTERN_FUNC).of.func, kind)

    def raw_function(self, name: str) -> RawFunction:
        return raw_callable(self.store, self.export(name, c.EXTERN_FUNC).of.func)

    def memory(self, name: str) -> WasmtimeMemory | WasmtimeSharedMemory:
        extern = self.export(name, c.EXTERN_MEMORY, c.EXTERN_SHARED_MEMORY)
        if extern.kind == c.EXTERN_MEMORY:
            return WasmtimeMemory(self.store, extern)
        return WasmtimeSharedMemory(extern.of.shared_memory)

    def table(self, name: str) -> c.Extern:
        """Return an exported table.

        Raises:
            KeyError: no table of that name is exported.
        """
        return self.export(name, c.EXTERN_TABLE)

    def tag(self, name: str) -> c.Extern:
        """Return an exported exception tag.

        Raises:
            KeyError: no tag of that name is exported.
        """
        return self.export(name, c.EXTERN_TAG)

    def external(self, name: str) -> Any:
        return self.store.external_of(self.export(name))

    def global_value(self, name: str) -> int:
        extern = self.export(name, c.EXTERN_GLOBAL)
        value = c.Val()
        c.global_get(self.store.context(), ctypes.addressof(extern.of.global_), ctypes.addressof(value))
        if value.kind == c.VALUE_KINDS["i32"]:
            return int(value.of.i32) & 0xFFFFFFFF
        if value.kind == c.VALUE_KINDS["i64"]:
            return int(value.of.i64) & 0xFFFFFFFFFFFFFFFF
        c.val_unroot(ctypes.addressof(value))
        raise KeyError(name)


def callable_function(store: WasmtimeStore, func: c.Func, kind: FuncType) -> Callable[..., Any]:
    """Return a Python callable on typed values for a function of a store.

    Raises:
        ValueConversionError: the signature has values that Python code cannot hold.
    """
    convert = marshaller(kind)
    func = c.Func.from_buffer_copy(func)
    area = ctypes.create_string_buffer(convert.slots * SLOT_BYTES)
    pack, read = convert.arguments.pack_into, result_reader(kind)
    wrap, parameters, slots = convert.wrap, kind.params, convert.slots
    call, context, trap, trap_address = c.function_call, store.context(), store.trap, store.trap_address
    func_address, area_address = ctypes.addressof(func), ctypes.addressof(area)
    checked = "v128" in parameters

    def invoke(*arguments: Any, _keep: object = func) -> Any:
        if checked:
            arguments = wrap(parameters, arguments, "arguments")
        try:
            pack(area, 0, *arguments)
        except (struct.error, OverflowError, TypeError):
            pack(area, 0, *wrap(parameters, arguments, "arguments"))
        need_room()
        if get_ident() != store.thread:
            store.enter_thread()
        store.running += 1
        try:
            error = call(context, func_address, area_address, slots, trap_address)
        except BaseException as interruption:
            store.discard_ending(interruption)
            raise
        finally:
            store.running -= 1
        if error is not None or trap.value is not None:
            store.raise_ending(error)
        return read(area)

    return invoke


def raw_callable(store: WasmtimeStore, func: c.Func) -> RawFunction:
    """Return a callable on slots for a function of a store.

    What surrounds the call is written out here as above: one more Python call would make each a tenth slower.
    """
    func = c.Func.from_buffer_copy(func)
    call, context, trap, trap_address = c.function_call, store.context(), store.trap, store.trap_address
    func_address = ctypes.addressof(func)

    def invoke(slots: Any, _keep: object = func) -> None:
        need_room()
        if get_ident() != store.thread:
            store.enter_thread()
        store.running += 1
        try:
            error = call(context, func_address, slots.address, slots.count, trap_address)
        except BaseException as interruption:
            store.discard_ending(interruption)
            raise
        finally:
            store.running -= 1
        if error is not None or trap.value is not None:
            store.raise_ending(error)

    return invoke
