"""Linear memories of Wasmer: of one store, or shared by all stores of an engine. Neither ever moves."""

from __future__ import annotations

import ctypes
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from dl.engine.wasmer import c
from dl.engine.wasmer.errors import Handle, check, made
from dl.errors import EngineError
from dl.wasm.types import MemoryType
from memory import ADDRESS_SPACE_BYTES, PAGE_BYTES, Uncopied

if TYPE_CHECKING:
    from dl.engine.wasmer.store import WasmerStore

_MOST_PAGES = ADDRESS_SPACE_BYTES // PAGE_BYTES


class WasmerSharedMemory(Uncopied):
    """A memory shared by all stores of an engine. Its data lives as long as anything refers to it.

    Args:
        pointer: a reference to the native memory, which this object then owns.
    """

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer
        self._data: int = c.shared_data(pointer)

    def data_address(self) -> int:
        return self._data

    def data_size(self) -> int:
        size: int = c.shared_size(self._pointer)
        return size

    def grow(self, pages: int) -> int | None:
        return _former_size(c.shared_grow(self._pointer, min(pages, _MOST_PAGES + 1)))

    def pin(self) -> object:
        """Return this object: the native memory, which never moves, lives as long as it."""
        return self

    def define(self, store: int, namespace: bytes, name: bytes) -> None:
        """Make the memory importable in a store."""
        check(c.store_define_shared(store, namespace, len(namespace), name, len(name), self._pointer))

    def __del__(self, _delete: Any = c.shared_delete) -> None:
        _delete(self._pointer)


class WasmerMemory(Uncopied):
    """A memory in one store, which other stores may share."""

    def __init__(self, store: WasmerStore, pointer: int) -> None:
        self._store = store
        self._pointer = pointer

    @property
    def key(self) -> Hashable:
        return external_key(self._store, self.external())

    def external(self) -> Handle:
        """Return it as an import."""
        return Handle(c.memory_external(self._pointer), c.external_delete)

    def data_address(self) -> int:
        address: int = c.memory_data(self._store.context(), self._pointer)
        return address

    def data_size(self) -> int:
        size: int = c.memory_size(self._store.context(), self._pointer)
        return size

    def grow(self, pages: int) -> int | None:
        return _former_size(c.memory_grow(self._store.context(), self._pointer, min(pages, _MOST_PAGES + 1)))

    def pin(self) -> object:
        """Return what keeps the native store, and so the memory, which never moves."""
        return self._store.native()

    def define(self, store: int, namespace: bytes, name: bytes) -> None:
        """Make the memory importable in its store."""
        check(c.store_define_memory(store, namespace, len(namespace), name, len(name), self._pointer))

    def __del__(self, _delete: Any = c.memory_delete) -> None:
        _delete(self._pointer)


def external_key(store: WasmerStore, external: Handle) -> Hashable:
    """Return what identifies an external in its store."""
    numbers = (ctypes.c_uint64 * 2)()
    c.external_key(store.context(), external.pointer, ctypes.addressof(numbers))
    return c.external_kind(external.pointer), *numbers


def _former_size(pages: int) -> int | None:
    return None if pages < 0 else pages


def _check_type(kind: MemoryType) -> None:
    limits = kind.limits
    if limits.is64:
        raise EngineError("the engine has no memories with 64-bit addresses")
    if limits.shared and limits.maximum is None:
        raise EngineError("a shared memory needs a maximum")
    if max(limits.minimum, limits.maximum or 0) > _MOST_PAGES:
        raise EngineError(f"a memory has at most {_MOST_PAGES} pages")


def new_shared_memory(engine: int, kind: MemoryType) -> WasmerSharedMemory:
    """Create a shared memory.

    Raises:
        EngineError: the engine refuses the type or the size.
    """
    _check_type(kind)
    return WasmerSharedMemory(made(c.shared_new, engine, kind.limits.minimum, kind.limits.maximum))


def new_memory(store: WasmerStore, kind: MemoryType) -> WasmerMemory:
    """Create a memory of one store.

    Raises:
        EngineError: the engine refuses the type or the size.
    """
    _check_type(kind)
    maximum = -1 if kind.limits.maximum is None else kind.limits.maximum
    return WasmerMemory(store, made(c.memory_new, store.context(), kind.limits.minimum, maximum))
