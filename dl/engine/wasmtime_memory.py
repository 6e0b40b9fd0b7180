"""Linear memories of wasmtime: of one store, or shared by all stores of an engine."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dl.engine import wasmtime_c as c
from dl.engine.wasmtime_errors import check
from dl.wasm.types import MemoryType

if TYPE_CHECKING:
    from dl.engine.wasmtime_store import WasmtimeStore


class WasmtimeSharedMemory:
    """A memory shared by all stores of an engine. Its data never moves, and lives as long as anything refers to it.

    Args:
        pointer: a reference to the native memory, which this object then owns.
    """

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer
        self._data: int = c.shared_memory_data(pointer)

    def data_address(self) -> int:
        return self._data

    def data_size(self) -> int:
        size: int = c.shared_memory_data_size(self._pointer)
        return size

    def grow(self, pages: int) -> int | None:
        former = ctypes.c_uint64()
        error = c.shared_memory_grow(self._pointer, pages, ctypes.addressof(former))
        return _former_size(error, former)

    def extern(self) -> c.Extern:
        """Return the memory as an import; valid as long as this object."""
        extern = c.Extern(kind=c.EXTERN_SHARED_MEMORY)
        extern.of.shared_memory = self._pointer
        return extern

    def __del__(self) -> None:
        c.shared_memory_delete(self._pointer)


class WasmtimeMemory:
    """A memory of one store. Its data moves only if the engine's reservation of address space is exceeded."""

    def __init__(self, store: WasmtimeStore, extern: c.Extern) -> None:
        self._store = store
        self._extern = extern
        self._memory = ctypes.addressof(extern.of.memory)

    def data_address(self) -> int:
        address: int | None = c.memory_data(self._store.context(), self._memory)
        return address or 0

    def data_size(self) -> int:
        size: int = c.memory_data_size(self._store.context(), self._memory)
        return size

    def grow(self, pages: int) -> int | None:
        former = ctypes.c_uint64()
        error = c.memory_grow(self._store.context(), self._memory, pages, ctypes.addressof(former))
        return _former_size(error, former)

    def extern(self) -> c.Extern:
        """Return the memory as an import."""
        return self._extern


def _former_size(error: int | None, former: ctypes.c_uint64) -> int | None:
    if error:
        c.error_delete(error)
        return None
    return former.value


@contextmanager
def _memory_type(kind: MemoryType) -> Iterator[int]:
    limits = kind.limits
    pointer = ctypes.c_void_p()
    check(
        c.memorytype_new(
            limits.minimum,
            limits.maximum is not None,
            limits.maximum or 0,
            limits.is64,
            limits.shared,
            16,
            ctypes.addressof(pointer),
        )
    )
    assert pointer.value
    try:
        yield pointer.value
    finally:
        c.memorytype_delete(pointer.value)


def new_shared_memory(engine: int, kind: MemoryType) -> WasmtimeSharedMemory:
    """Create a shared memory.

    Raises:
        EngineError: the engine refuses the type or the size.
    """
    pointer = ctypes.c_void_p()
    with _memory_type(kind) as memory_type:
        check(c.shared_memory_new(engine, memory_type, ctypes.addressof(pointer)))
    assert pointer.value
    return WasmtimeSharedMemory(pointer.value)


def new_memory(store: WasmtimeStore, kind: MemoryType) -> WasmtimeMemory:
    """Create a memory of one store.

    Raises:
        EngineError: the engine refuses the type or the size.
    """
    extern = c.Extern(kind=c.EXTERN_MEMORY)
    with _memory_type(kind) as memory_type:
        check(c.memory_new(store.context(), memory_type, ctypes.addressof(extern.of.memory)))
    return WasmtimeMemory(store, extern)
