"""One thread's world of instances in wasmtime."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import Any

from dl.engine import wasmtime_c as c
from dl.engine.protocol import WasiOptions
from dl.engine.wasmtime_errors import (
    check,
    interrupt_guest_by_error,
    raise_ending,
    raise_instantiation_ending,
)
from dl.engine.wasmtime_host import WasmtimeHostFunctions, define_function
from dl.engine.wasmtime_instance import WasmtimeInstance, callable_function
from dl.engine.wasmtime_memory import WasmtimeMemory, new_memory
from dl.engine.wasmtime_wasi import wasi_config
from dl.errors import EngineError
from dl.wasm.types import FuncType, MemoryType

_UNLIMITED = -1


class WasmtimeStore:
    """One thread's instances.

    Args:
        engine: the native engine.
        host: the functions that modules can import.
        interrupts: whether the engine's code checks for interruption.

    Attributes:
        call: the engine's function for calling a guest function; once the store is closed, one that raises.
        trap: where that function puts a trap.
        trap_address: address of `trap`.
    """

    def __init__(self, engine: int, host: WasmtimeHostFunctions, *, interrupts: bool) -> None:
        self._host = host
        self._linker, self._host_known = host.clone()
        self._store: int = c.store_new(engine, None, None)
        self._context: int = c.store_context(self._store)
        # A store refuses the 10,001st instance unless told otherwise, and never frees one by itself.
        c.store_limiter(self._store, _UNLIMITED, _UNLIMITED, 1 << 31, 1 << 31, 1 << 31)
        self.call: Callable[..., int | None] = c.function_call
        self.trap = ctypes.c_void_p()
        self.trap_address = ctypes.addressof(self.trap)
        self._interrupt_callback: Any = None
        self._kept: list[Any] = []
        if interrupts:
            c.context_set_epoch_deadline(self._context, 1)
            self.on_interrupt(lambda: None)

    def context(self) -> int:
        """Return the native context.

        Raises:
            EngineError: the store is closed.
        """
        if not self._store:
            raise EngineError("the store is closed")
        return self._context

    def define_memory(self, namespace: str, name: str, memory: Any) -> None:
        extern = memory.extern()
        raw_namespace, raw_name = namespace.encode(), name.encode()
        check(
            c.linker_define(
                self._linker,
                self.context(),
                raw_namespace,
                len(raw_namespace),
                raw_name,
                len(raw_name),
                ctypes.addressof(extern),
            )
        )

    def define_instance(self, namespace: str, instance: Any) -> None:
        raw = namespace.encode()
        check(
            c.linker_define_instance(
                self._linker, self.context(), raw, len(raw), ctypes.addressof(instance.raw)
            )
        )

    def instantiate(self, module: Any) -> WasmtimeInstance:
        context = self.context()
        for definition in self._host.definitions[self._host_known :]:
            define_function(self._linker, definition)
            self._host_known += 1
        raw = c.Instance()
        error = c.linker_instantiate(
            self._linker, context, module.pointer, ctypes.addressof(raw), self.trap_address
        )
        if error or self.trap.value:
            trap, self.trap.value = self.trap.value, None
            raise_instantiation_ending(module.name, error, trap)
        return WasmtimeInstance(self, raw)

    def raise_ending(self, error: int | None) -> None:
        """Raise what a guest call ended with; see `dl.engine.wasmtime_errors.raise_ending`."""
        trap, self.trap.value = self.trap.value, None
        raise_ending(error, trap)

    def new_memory(self, kind: MemoryType) -> WasmtimeMemory:
        return new_memory(self, kind)

    def table_size(self, instance: Any, name: str) -> int:
        extern = instance.table(name)
        size: int = c.table_size(self.context(), ctypes.addressof(extern.of.table))
        return size

    def _table_function(self, instance: Any, name: str, index: int) -> c.Func | None:
        extern = instance.table(name)
        value = c.Val()
        found = c.table_get(self.context(), ctypes.addressof(extern.of.table), index, ctypes.addressof(value))
        if not found or value.kind != c.VAL_FUNCREF or not value.of.func.store_id:
            return None
        return c.Func.from_buffer_copy(value.of.func)

    def table_entry(self, instance: Any, name: str, index: int) -> object:
        func = self._table_function(instance, name, index)
        if func is None:
            return None
        # VMFuncRef: the address of the array-call entry, then that of the native entry, the type's index and the
        # instance. Compiled code is shared by all stores, so the first three are equal for the same function.
        return struct.unpack("<QQI", ctypes.string_at(func.private, 20))

    def function_at(self, instance: Any, name: str, index: int, kind: FuncType) -> Callable[..., Any] | None:
        func = self._table_function(instance, name, index)
        return None if func is None else callable_function(self, func, kind)

    def enable_wasi(self, wasi: WasiOptions) -> None:
        context = self.context()
        check(c.linker_define_wasi(self._linker))
        config, kept = wasi_config(wasi)
        self._kept.extend(kept)
        check(c.context_set_wasi(context, config))

    def on_interrupt(self, handler: Callable[[], None]) -> None:
        context = self.context()
        store_u64, store_u8 = ctypes.c_uint64.from_address, ctypes.c_uint8.from_address

        def reached(_context: int, _data: int, delta: int, kind: int) -> int | None:
            try:
                # The handler may instantiate modules in this store; with the deadline still in the past, their
                # start functions would be interrupted in turn.
                c.context_set_epoch_deadline(context, 1 << 40)
                handler()
                store_u64(delta).value = 1
                store_u8(kind).value = 0
            except BaseException as error:  # noqa: BLE001  carried to the caller whose guest call it interrupts
                c.context_set_epoch_deadline(context, 1)
                return interrupt_guest_by_error(error)
            return None

        callback = c.EPOCH_CALLBACK(reached)
        c.store_epoch_callback(self._store, ctypes.cast(callback, ctypes.c_void_p).value, None, None)
        self._interrupt_callback = callback

    def close(self) -> None:
        store, self._store = self._store, 0
        if store:
            self.call = _closed
            c.linker_delete(self._linker)
            c.store_delete(store)
            self._kept.clear()
            self._interrupt_callback = None

    def __del__(self) -> None:
        if self.__dict__.get("_store"):
            self.close()


def _closed(*_: object) -> int | None:
    raise EngineError("the store is closed")
