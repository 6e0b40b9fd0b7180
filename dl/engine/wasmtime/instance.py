"""Instances in a wasmtime store, and what they export."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dl.engine.native.calls import callable_function, raw_callable
from dl.engine.wasmtime import c
from dl.engine.wasmtime.memory import WasmtimeMemory, WasmtimeSharedMemory
from dl.wasm.types import FuncType

if TYPE_CHECKING:
    from dl.engine.protocol import RawFunction
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
        func = c.Func.from_buffer_copy(self.export(name, c.EXTERN_FUNC).of.func)
        return callable_function(self.store, c.call_with_arguments, self._called(func), func, kind)

    def raw_function(self, name: str, *, calls_back: bool = True) -> RawFunction:
        func = c.Func.from_buffer_copy(self.export(name, c.EXTERN_FUNC).of.func)
        return raw_callable(
            self.store, c.call_with_arguments, self._called(func), func, calls_back=calls_back
        )

    def _called(self, func: c.Func) -> tuple[int, int]:
        """Return the addresses by which a call knows a function."""
        return self.store.context(), ctypes.addressof(func)

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
