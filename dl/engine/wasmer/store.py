"""One thread's world of instances in Wasmer."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from threading import get_ident
from typing import TYPE_CHECKING, Any

from dl.engine.native.entry import entry, need_room
from dl.engine.native.pending import interrupt_guest
from dl.engine.native.store import NativeStore
from dl.engine.native.traps import FindLine, Names, frame_name
from dl.engine.protocol import WasiOptions
from dl.engine.wasmer import c
from dl.engine.wasmer.errors import Handle, check, error_of, made
from dl.engine.wasmer.host import NO_GUEST_WASI, WasmerHostFunctions, native_callback, raised, signature_of
from dl.engine.wasmer.instance import NO_EXTERNALS, WasmerInstance
from dl.engine.wasmer.memory import WasmerMemory, new_memory
from dl.engine.wasmer.wasi import StoreWasi
from dl.errors import EngineError
from dl.wasm.types import FuncType, GlobalType, MemoryType

if TYPE_CHECKING:
    from dl.engine.wasmer.engine import WasmerEngine


class _OwnedStore:
    """The native store: deleted with the last reference, so that views of its memory can outlive the store's closing.

    Args:
        pointer: the native store.
        kept: what native code in it refers to.
    """

    def __init__(self, pointer: int, kept: list[Any]) -> None:
        self._pointer = pointer
        self._kept = kept

    def __del__(self, _delete: Any = c.store_delete) -> None:
        # The default is there for the interpreter's end, when modules have lost their names.
        _delete(self._pointer)


class WasmerStore(NativeStore):
    """One thread's instances.

    Args:
        engine: what compiles the store's modules.
        host: the functions that modules can import.

    Raises:
        EngineError: the calling thread's stack is too small for guest code.

    Attributes:
        memory: the memory that WASI works on, alone in a list: what was defined last, or the first one that an instance exports
            as `memory`.
    """

    def __init__(self, engine: WasmerEngine, host: WasmerHostFunctions) -> None:
        super().__init__(engine.max_stack)
        self._engine = engine
        self._host = host
        self._names: Names[Handle] = Names()
        self._wasi: StoreWasi | None = None
        self.memory: list[Any] = []
        self._handler: list[Callable[[], None]] = [lambda: None]
        # The native store keeps instances, and so their code, to its end; who counts code must see it.
        self._code: set[Any] = set()
        self._signatures: dict[int, FuncType] = {}
        reached = address = None
        if engine.capabilities.interrupts:
            reached, address = native_callback(_reached(self._handler, self.deferred))
        self._kept: list[Any] = [host, reached]
        self._store: int = made(c.store_new, engine.pointer, host.pointer, address)
        self._native: _OwnedStore | None = _OwnedStore(self._store, self._kept)

    def limit(self, *, memory_bytes: int, table_elements: int) -> None:
        c.store_limit(self.context(), memory_bytes, table_elements)

    def context(self) -> int:
        if not self._store:
            raise EngineError("the store is closed")
        return self._store

    def native(self) -> object:
        """Return what keeps the native store, and the memories in it, also when this store is closed.

        Raises:
            EngineError: the store is closed.
        """
        self.context()
        return self._native

    def define_memory(self, namespace: str, name: str, memory: Any) -> None:
        memory.define(self.context(), namespace.encode(), name.encode())
        self.memory[:] = [memory]

    def define_number(self, namespace: str, name: str, value: int) -> None:
        raw, raw_name = namespace.encode(), name.encode()
        check(c.store_define_number(self.context(), raw, len(raw), raw_name, len(raw_name), value))

    def external(self, namespace: str, name: str) -> Any:
        raise EngineError(f"cannot give {namespace}.{name} as an object: {NO_EXTERNALS}")

    def new_global(self, kind: GlobalType, value: Any) -> Any:
        raise EngineError(f"cannot make a global of type {kind.value} with value {value!r}: {NO_EXTERNALS}")

    def define_instance(self, namespace: str, instance: Any) -> None:
        raw = namespace.encode()
        check(c.store_define_instance(self.context(), raw, len(raw), instance.pointer))

    def name_tag(self, instance: Any, name: str) -> None:
        self._names.tags.append((name, instance.tag(name)))

    def find_lines(self, module: Any, find: FindLine) -> None:
        """Do nothing: Wasmer's stacks do not say where in a function they are."""

    def instantiate(self, module: Any, name: str, imports: Sequence[Any] | None = None) -> WasmerInstance:
        context = self.context()
        if imports is not None:
            raise EngineError(f"cannot instantiate {name} with a list of imports: {NO_EXTERNALS}")
        self._names.modules[module.name] = frame_name(name)
        need_room()
        self._code.add(module)
        if get_ident() != self.thread:
            self.enter_thread()
        self.running += 1
        try:
            pointer = c.instance_new(context, module.pointer, self.trap_address)
        except BaseException as interruption:
            self.discard_ending(interruption)
            raise
        finally:
            self.running -= 1
        instance = None if pointer is None else WasmerInstance(self, pointer)
        if self.trap.value is not None:
            failure = self.take_trap(None)
            if failure is not None:
                raise error_of(failure, self._names, name)
        assert instance is not None
        if self._wasi is not None and not self.memory:
            self._look_for_memory(instance)
        return instance

    def _look_for_memory(self, instance: WasmerInstance) -> None:
        try:
            self.memory[:] = [instance.memory("memory")]
        except KeyError:
            return

    def raise_ending(self, error: int | None) -> None:
        failure = self.take_trap(error)
        if failure is not None:
            raise error_of(failure, self._names)

    def free_ending(self, error: int | None, trap: int | None) -> None:
        for failure in (error, trap):
            if failure is not None:
                c.failure_delete(failure)

    def runs(self, modules: Sequence[Any]) -> bool:  # noqa: ARG002  the engine shows no stack that did not trap
        return True

    def new_memory(self, kind: MemoryType) -> WasmerMemory:
        return new_memory(self, kind)

    def _entry(self, instance: Any, name: str, index: int) -> c.Entry | None:
        if not self._engine.capabilities.table_reflection:
            raise EngineError("this engine cannot look into tables: it was made without table reflection")
        entry, raw = c.Entry(), name.encode()
        found = c.table_entry(self.context(), instance.pointer, raw, len(raw), index, ctypes.addressof(entry))
        if found == _NO_TABLE:
            raise KeyError(name)
        return entry if found else None

    def table_entry(self, instance: Any, name: str, index: int) -> object:
        entry = self._entry(instance, name, index)
        return None if entry is None else (entry.code, entry.trampoline, entry.signature)

    def function_type(self, instance: Any, name: str, index: int) -> FuncType | None:
        entry = self._entry(instance, name, index)
        if entry is None:
            return None
        # The engine numbers signatures by their content.
        known = self._signatures.get(entry.signature)
        if known is None:
            raw = name.encode()
            text = made(c.table_signature, self.context(), instance.pointer, raw, len(raw), index)
            known = self._signatures[entry.signature] = signature_of(take_text(text).decode())
        return known

    def enable_wasi(self, wasi: WasiOptions) -> None:
        self.context()
        self._wasi = StoreWasi(self, wasi)
        self._kept.append(self._wasi.callbacks)

    def instantiate_with_wasi(self, module: Any, name: str) -> WasmerInstance:
        raise EngineError(f"cannot instantiate {name} ({module.name}) with WASI: {NO_GUEST_WASI}")

    def provide_wasi(self) -> None:
        raise EngineError(f"cannot give a store WASI of its own: {NO_GUEST_WASI}")

    def on_interrupt(self, handler: Callable[[], None]) -> None:
        self.context()
        self._handler[0] = handler

    def close(self) -> None:
        if not self._store:
            return
        self.begin_closing()
        self._free()

    def _free(self) -> None:
        self._store = 0
        self._native = None  # and with it the native store, unless there are views of its memory
        self._kept = []
        self._code.clear()
        self._names.tags.clear()
        self._handler[0] = _nothing
        self.memory.clear()
        wasi, self._wasi = self._wasi, None
        if wasi is not None:
            wasi.close()

    def __del__(self) -> None:
        # Nothing can run in the store: each call into the guest holds a reference.
        if self.__dict__.get("_store"):
            self._free()


_NO_TABLE = 2


def _nothing() -> None:
    """Handle no interrupt."""


def take_text(pointer: int) -> bytes:
    """Return the content of bytes that the library hands out, and free them."""
    data = ctypes.c_void_p()
    size = c.bytes_read(pointer, ctypes.addressof(data))
    content = ctypes.string_at(data.value or 0, size) if size else b""
    c.bytes_delete(pointer)
    return content


def _reached(
    handler: list[Callable[[], None]], deferred: list[BaseException]
) -> Callable[[int, int, int, int], int | None]:
    """Return the callback of a store's checks. It knows the handler by a list, so that it need not be made again."""

    @entry
    def reached(_env: int, _caller: int, _slots: int, _count: int) -> int | None:
        try:
            if deferred:
                raise deferred.pop()
            handler[0]()
        except BaseException as error:  # noqa: BLE001  carried to the caller whose guest call it interrupts
            return interrupt_guest(error, raised)
        return None

    return reached
