"""Linear memories of wasmtime: of one store, or shared by all stores of an engine."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dl.engine.wasmtime import c
from dl.engine.wasmtime.errors import check
from dl.errors import EngineError
from dl.wasm.encode import ModuleBuilder
from dl.wasm.types import Limits, MemoryType, TableType
from memory import ADDRESS_SPACE_BYTES, PAGE_BYTES, MemoryMovesError, Uncopied

if TYPE_CHECKING:
    from dl.engine.wasmtime.store import WasmtimeStore


PROBE_NAMESPACE = "probe"

_MOST_PAGES_64 = 1 << 48
_MOST_PAGES = ADDRESS_SPACE_BYTES // PAGE_BYTES


class WasmtimeSharedMemory(Uncopied):
    """A memory shared by all stores of an engine. Its data never moves, and lives as long as anything refers to it.

    Args:
        pointer: a reference to the native memory, which this object then owns.
        probe: code of `probe_module`; None for a memory that an instance defines, which other instances then cannot import.
    """

    def __init__(self, pointer: int, probe: Any = None) -> None:
        self._pointer = pointer
        self.probe = probe
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

    def pin(self) -> object:
        """Return this object: the native memory, which never moves, lives as long as it."""
        return self

    def extern(self) -> c.Extern:
        """Return the memory as an import; valid as long as this object."""
        extern = c.Extern(kind=c.EXTERN_SHARED_MEMORY)
        extern.of.shared_memory = self._pointer
        return extern

    def __del__(self, _delete: Any = c.shared_memory_delete) -> None:
        _delete(self._pointer)


class WasmtimeMemory(Uncopied):
    """A memory of one store. Its data does not move: the engine reserves 4 GiB of address space, all it can grow to."""

    def __init__(self, store: WasmtimeStore, extern: c.Extern) -> None:
        self._store = store
        self._extern = extern
        self._memory = ctypes.addressof(extern.of.memory)

    @property
    def key(self) -> Hashable:
        memory = self._extern.of.memory
        return "memory", memory.head.p1, memory.p2

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

    def pin(self) -> object:
        """Return what keeps the native store, and so the memory; it does not move within the engine's reservation.

        Raises:
            MemoryMovesError: the host's address space is too small to reserve what a memory can grow to.
        """
        if sys.maxsize < ADDRESS_SPACE_BYTES:
            raise MemoryMovesError
        return self._store.native()

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


def probe_module(*, is64: bool) -> bytes:
    """Generate a module that imports any shared memory of one address width, and exports a table; see `owned_memory`."""
    build = ModuleBuilder()
    most = _MOST_PAGES_64 if is64 else _MOST_PAGES
    build.import_(PROBE_NAMESPACE, "memory", MemoryType(Limits(0, most, shared=True, is64=is64)))
    table = build.table(TableType("funcref", Limits(0, 0, shared=False, is64=False)))
    build.export("table", "table", table)
    return build.build()


def owned_memory(context: int, probe: c.Extern, memory: WasmtimeSharedMemory) -> c.Extern:
    """Return a shared memory as one instance of the store owns it, to be imported in place of the memory itself.

    Each import of a `wasmtime_sharedmemory_t` makes a hidden instance in the store that owns the memory. With two
    of them, an access outside the memory's bounds finds two owners for its address, and a failed assertion ends the
    process (wasmtime 50, `StoreOpaque::wasm_fault`). So the memory is imported as such once, by the probe; all others
    get a reference to the memory of the hidden instance that was made for it. Instances are numbered in the order in
    which they are made, an instance's imports before itself, and a reference is the store, the instance's number and the index
    in it: those of the probe's table lead to those of the memory.

    Args:
        context: the store's context.
        probe: the table of an instance of `probe_module` in that store, whose memory import was `memory`.
        memory: the memory.

    Raises:
        EngineError: the reference leads elsewhere, so the engine is not the one this was written for.
    """
    table = probe.of.table
    extern = c.Extern(kind=c.EXTERN_MEMORY)
    extern.of.memory.head.store_id = table.head.store_id
    extern.of.memory.head.p1 = table.head.p1 - 1
    if c.memory_data(context, ctypes.addressof(extern.of.memory)) != memory.data_address():
        raise EngineError("this version of wasmtime does not number instances as expected")
    return extern


def new_shared_memory(engine: int, kind: MemoryType, probe: Any) -> WasmtimeSharedMemory:
    """Create a shared memory.

    Args:
        engine: the native engine.
        kind: its type.
        probe: code of `probe_module`.

    Raises:
        EngineError: the engine refuses the type or the size.
    """
    pointer = ctypes.c_void_p()
    with _memory_type(kind) as memory_type:
        check(c.shared_memory_new(engine, memory_type, ctypes.addressof(pointer)))
    assert pointer.value
    return WasmtimeSharedMemory(pointer.value, probe)


def new_memory(store: WasmtimeStore, kind: MemoryType) -> WasmtimeMemory:
    """Create a memory of one store.

    Raises:
        EngineError: the engine refuses the type or the size.
    """
    extern = c.Extern(kind=c.EXTERN_MEMORY)
    with _memory_type(kind) as memory_type:
        check(c.memory_new(store.context(), memory_type, ctypes.addressof(extern.of.memory)))
    return WasmtimeMemory(store, extern)
