"""Externals of a Wasmer store as objects: functions, globals, tables and tags. Memories are in `dl.engine.wasmer.memory`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from dl.engine.native.calls import callable_function, raw_callable
from dl.engine.native.slots import NativeSlots
from dl.engine.native.values import has_references
from dl.engine.wasmer import c
from dl.engine.wasmer.errors import Handle, error_of, made
from dl.engine.wasmer.host import VALUE_TYPES, letter_of, signature_of, take_text
from dl.engine.wasmer.memory import WasmerMemory, external_key
from dl.engine.wasmer.references import new_area, read_value, write_value, write_values
from dl.errors import EngineError
from dl.wasm.types import FuncType, GlobalType

if TYPE_CHECKING:
    from dl.engine.protocol import RawFunction
    from dl.engine.wasmer.store import WasmerStore


class _External(Handle):
    """What all externals but memories have in common.

    Attributes:
        store: the store.
    """

    __slots__ = ("store",)

    def __init__(self, store: WasmerStore, pointer: int) -> None:
        super().__init__(pointer, c.external_delete)
        self.store = store

    @property
    def key(self) -> Hashable:
        return external_key(self.store, self)

    def external(self) -> Handle:
        """Return it as an import."""
        return self


class WasmerFunction(_External):
    """A function of a store."""

    __slots__ = ("_reference",)

    def __init__(self, store: WasmerStore, pointer: int) -> None:
        super().__init__(store, pointer)
        self._reference = 0

    def _function(self) -> Handle:
        return Handle(c.external_function(self.store.context(), self.pointer), c.function_delete)

    def callable(self, kind: FuncType) -> Callable[..., Any]:
        function = self._function()
        if has_references(kind):
            return _referring_callable(self.store, function, kind)
        return callable_function(self.store, c.call_with_arguments, [function.pointer], function, kind)

    def raw(self) -> RawFunction:
        function = self._function()
        return raw_callable(self.store, c.call_with_arguments, [function.pointer], function)

    def type(self) -> FuncType:
        text = take_text(c.external_signature(self.store.context(), self.pointer))
        return signature_of(text.decode(), references=True)

    def reference(self) -> int:
        """Return the reference to it.

        Raises:
            EngineError: the engine makes none.
        """
        if not self._reference:
            failure = ctypes.c_void_p()
            reference: int = c.function_reference(
                self.store.context(), self.pointer, ctypes.addressof(failure)
            )
            if failure.value is not None:
                raise error_of(failure.value)
            self._reference = reference
        return self._reference


def _referring_callable(store: WasmerStore, function: Handle, kind: FuncType) -> Callable[..., Any]:
    """Return a Python callable for a function with references; as `callable_function`."""
    count = max(len(kind.params), len(kind.results))
    call, objects = raw_callable(store, c.call_with_arguments, [function.pointer], function), store.objects

    def invoke(*arguments: Any) -> Any:
        # An area of this call alone: references in it would be overwritten by a recursive call.
        area = new_area(count)
        objects.begin()
        try:
            write_values(store, kind.params, arguments, area, kind, "parameters")
            call(NativeSlots(ctypes.addressof(area), max(count, 1), area))
            values = tuple(read_value(store, text, area, at) for at, text in enumerate(kind.results))
        finally:
            objects.end()
        return values if len(values) > 1 else values[0] if values else None

    return invoke


class WasmerTag(_External):
    """An exception tag of a store."""

    __slots__ = ()


class WasmerGlobal(_External):
    """A global of a store."""

    __slots__ = ()

    def _read(self, area: Any) -> tuple[str, bool]:
        """Read its value; return its type, and whether it can change."""
        mutable = ctypes.c_bool()
        letter = c.global_read(
            self.store.context(), self.pointer, ctypes.addressof(area), ctypes.addressof(mutable)
        )
        return VALUE_TYPES[chr(letter)], mutable.value

    def get(self) -> Any:
        area = new_area(1)
        kind, _ = self._read(area)
        return read_value(self.store, kind, area, 0)

    def set(self, value: Any) -> None:
        area = new_area(1)
        kind, mutable = self._read(area)
        objects = self.store.objects
        objects.begin()
        try:
            write_value(self.store, kind, value, area, 0, FuncType((kind,), ()))
            if not mutable:
                raise EngineError("a global that is immutable cannot be set")
            c.global_write(self.store.context(), self.pointer, ctypes.addressof(area))
        finally:
            objects.end()


class WasmerTable(_External):
    """A table of a store."""

    __slots__ = ()

    def _kind(self) -> str:
        return VALUE_TYPES[chr(c.table_type(self.store.context(), self.pointer))]

    def size(self) -> int:
        return int(c.table_size(self.store.context(), self.pointer))

    def get(self, index: int) -> Any:
        area = new_area(1)
        if not 0 <= index < self.size():
            raise IndexError(index)
        c.table_read(self.store.context(), self.pointer, index, ctypes.addressof(area))
        return read_value(self.store, self._kind(), area, 0)

    def _with_value(self, value: Any, use: Callable[[int], Any]) -> Any:
        """Return what something makes of the address of a slot with a value."""
        area, kind, objects = new_area(1), self._kind(), self.store.objects
        objects.begin()
        try:
            write_value(self.store, kind, value, area, 0, FuncType((kind,), ()))
            return use(ctypes.addressof(area))
        finally:
            objects.end()

    def set(self, index: int, value: Any) -> None:
        if not 0 <= index < self.size():
            raise IndexError(index)
        self._with_value(value, lambda slot: c.table_write(self.store.context(), self.pointer, index, slot))

    def grow(self, count: int, value: Any) -> int | None:
        if count >> 32:
            return None
        former: int = self._with_value(
            value, lambda slot: c.table_grow(self.store.context(), self.pointer, count, slot)
        )
        return None if former < 0 else former


def external_of(store: WasmerStore, pointer: int) -> Any:
    """Return the object for a native external of a store, which it then owns."""
    kind = c.external_kind(pointer)
    if kind == c.EXTERNAL_MEMORY:
        external = Handle(pointer, c.external_delete)
        return WasmerMemory(store, c.external_memory(external.pointer))
    kinds: dict[int, type[_External]] = {
        c.EXTERNAL_FUNCTION: WasmerFunction,
        c.EXTERNAL_GLOBAL: WasmerGlobal,
        c.EXTERNAL_TABLE: WasmerTable,
        c.EXTERNAL_TAG: WasmerTag,
    }
    return kinds[kind](store, pointer)


def new_global(store: WasmerStore, kind: GlobalType, value: Any) -> WasmerGlobal:
    """Create a global of a store.

    Raises:
        ValueConversionError: the value is of another type.
        EngineError: the engine refuses it.
    """
    letter = letter_of(kind.value)
    if letter is None or kind.value == "exnref":
        raise EngineError(f"a global of type {kind.value} cannot be made by the host")
    area = new_area(1)
    store.objects.begin()
    try:
        write_value(store, kind.value, value, area, 0, FuncType((kind.value,), ()))
        pointer = made(c.global_new, store.context(), ord(letter), kind.mutable, ctypes.addressof(area))
    finally:
        store.objects.end()
    return WasmerGlobal(store, pointer)
