"""Instances in a Wasmer store, and what they export."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dl.engine.native.calls import callable_function, raw_callable
from dl.engine.wasmer import c
from dl.engine.wasmer.errors import Handle, error_of
from dl.engine.wasmer.externals import external_of
from dl.engine.wasmer.memory import WasmerMemory, WasmerSharedMemory
from dl.wasm.types import FuncType
from memory import Uncopied

if TYPE_CHECKING:
    from dl.engine.protocol import RawFunction
    from dl.engine.wasmer.store import WasmerStore


class WasmerInstance(Uncopied):
    """An instance, valid as long as its store is open.

    Attributes:
        store: the store.
        pointer: the native instance's handle.
    """

    __slots__ = ("pointer", "store")

    def __init__(self, store: WasmerStore, pointer: int) -> None:
        self.store = store
        self.pointer = pointer

    def _export(self, find: Callable[..., int | None], name: str) -> int:
        self.store.context()
        raw = name.encode()
        found = find(self.pointer, raw, len(raw))
        if found is None:
            raise KeyError(name)
        return found

    def _function(self, name: str) -> Handle:
        raw = name.encode()
        found = c.instance_function(self.store.context(), self.pointer, raw, len(raw))
        if found is None:
            raise KeyError(name)
        return Handle(found, c.function_delete)

    def function(self, name: str, kind: FuncType) -> Callable[..., Any]:
        function = self._function(name)
        return callable_function(self.store, c.call_with_arguments, [function.pointer], function, kind)

    def raw_function(self, name: str, *, calls_back: bool = True) -> RawFunction:
        function = self._function(name)
        del calls_back  # WASI is Python here, so whatever calls it calls back
        return raw_callable(self.store, c.call_with_arguments, [function.pointer], function)

    def memory(self, name: str) -> WasmerMemory | WasmerSharedMemory:
        own = WasmerMemory(self.store, pointer := self._export(c.instance_memory, name))
        failure = ctypes.c_void_p()
        shared = c.memory_shared(self.store.context(), pointer, ctypes.addressof(failure))
        if failure.value is not None:
            raise error_of(failure.value)
        return own if shared is None else WasmerSharedMemory(shared)

    def table(self, name: str) -> Handle:
        """Return an exported table.

        Raises:
            KeyError: no table of that name is exported.
        """
        found = Handle(self._export(c.instance_external, name), c.external_delete)
        if c.external_kind(found.pointer) != c.EXTERNAL_TABLE:
            raise KeyError(name)
        return found

    def tag(self, name: str) -> Handle:
        """Return an exported exception tag.

        Raises:
            KeyError: no tag of that name is exported.
        """
        return Handle(self._export(c.instance_tag, name), c.tag_delete)

    def external(self, name: str) -> Any:
        return external_of(self.store, self._export(c.instance_external, name))

    def global_value(self, name: str) -> int:
        value, raw = ctypes.c_uint64(), name.encode()
        if not c.instance_global(self.store.context(), self.pointer, raw, len(raw), ctypes.addressof(value)):
            raise KeyError(name)
        return value.value

    def __del__(self, _delete: Any = c.instance_delete) -> None:
        _delete(self.pointer)
