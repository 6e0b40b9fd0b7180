"""One thread's world of instances in Wasmer."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from threading import get_ident
from typing import TYPE_CHECKING, Any

from dl.engine.import_list import ImportList
from dl.engine.native.entry import entry, need_room
from dl.engine.native.pending import interrupt_guest
from dl.engine.native.store import NativeStore
from dl.engine.native.traps import FindLine, Names, frame_name
from dl.engine.wasmer import c
from dl.engine.wasmer.errors import Handle, check, error_of, made
from dl.engine.wasmer.externals import WasmerFunction, WasmerGlobal, external_of, new_global
from dl.engine.wasmer.host import (
    NO_GUEST_WASI,
    STORES,
    WasmerHostFunctions,
    native_callback,
    raised,
    signature_of,
    take_text,
)
from dl.engine.wasmer.instance import WasmerInstance
from dl.engine.wasmer.listed import listed
from dl.engine.wasmer.memory import WasmerMemory, new_memory
from dl.engine.wasmer.references import Objects
from dl.engine.wasmer.wasi import StoreWasi
from dl.errors import EngineError
from dl.errors.running import DescribeException
from dl.wasm.types import FuncType, GlobalType, MemoryType
from memory import Uncopied

if TYPE_CHECKING:
    from dl.engine.values import WasiOptions
    from dl.engine.wasmer.engine import WasmerEngine


class _OwnedStore(Uncopied):
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
        objects: the Python objects that guest code of the store can refer to.
        function_table: the table that functions of import lists are taken from; None before there is one.
    """

    def __init__(self, engine: WasmerEngine, host: WasmerHostFunctions) -> None:
        super().__init__(engine.max_stack)
        self._engine = engine
        self._host = host
        self._names: Names[Handle] = Names()
        self._wasi: StoreWasi | None = None
        self.objects = Objects(self._objects_in_use, lambda: self.running)
        self.function_table: Handle | None = None
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
        STORES[self._store] = self

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

    def define_number(self, namespace: str, name: str, value: int) -> None:
        raw, raw_name = namespace.encode(), name.encode()
        check(c.store_define_number(self.context(), raw, len(raw), raw_name, len(raw_name), value))

    def external(self, namespace: str, name: str) -> Any:
        raw, raw_name = namespace.encode(), name.encode()
        found = c.store_external(self.context(), raw, len(raw), raw_name, len(raw_name))
        if found is None:
            raise KeyError(f"{namespace}.{name}")
        return external_of(self, found)

    def referred_function(self, reference: int) -> WasmerFunction:
        """Return the function that a reference of this store stands for."""
        return WasmerFunction(self, c.reference_function(self.context(), reference))

    def _objects_in_use(self) -> set[int]:
        """Return the numbers of objects that the store's tables, globals and exceptions hold."""
        raw = take_text(made(c.store_objects, self.context()))
        return {number for (number,) in _NUMBER.iter_unpack(raw)}

    def new_global(self, kind: GlobalType, value: Any) -> WasmerGlobal:
        return new_global(self, kind, value)

    def define_instance(self, namespace: str, instance: Any) -> None:
        raw = namespace.encode()
        check(c.store_define_instance(self.context(), raw, len(raw), instance.pointer))

    def offer_instance(self, namespace: str, instance: Any) -> None:
        self.define_instance(namespace, instance)

    def name_tag(self, instance: Any, name: str) -> None:
        self._names.tags.append((name, instance.tag(name)))

    def find_lines(self, module: Any, find: FindLine) -> None:
        """Do nothing: Wasmer's stacks do not say where in a function they are."""

    def describe_exceptions(self, describe: DescribeException) -> None:
        self._names.describe = describe

    def new_profiler(self) -> Any:
        raise EngineError("Wasmer has no profiler of guest code")

    def instantiate(self, module: Any, name: str, imports: Sequence[Any] | None = None) -> WasmerInstance:
        context = self.context()
        handles = None if imports is None else [one.external() for one in imports]
        given = (
            None
            if handles is None
            else (ctypes.c_void_p * max(len(handles), 1))(*(h.pointer for h in handles))
        )
        address = None if given is None else ctypes.addressof(given)
        return self._made(
            module,
            name,
            lambda: c.instance_new(context, module.pointer, address, len(handles or ()), self.trap_address),
        )

    def read_table_by(self, instance: Any, table: str, reader: str | None) -> None:  # noqa: ARG002  it reads by itself
        self.function_table = instance.table(table)

    def lacks_reader(self, imports: ImportList) -> bool:  # noqa: ARG002  as above
        return False

    def instantiate_listed(
        self, module: Any, name: str, imports: ImportList, generated: Any = None
    ) -> WasmerInstance:
        context = self.context()
        given = listed(self, name, imports, generated)
        return self._made(
            module,
            name,
            lambda: c.instance_listed(context, module.pointer, given.pointer, self.trap_address),
        )

    def _made(self, module: Any, name: str, make: Callable[[], int | None]) -> WasmerInstance:
        """Return the instance of a module that a native call makes, which may run its start function."""
        self._names.modules[module.name] = frame_name(name)
        need_room()
        self._code.add(module)
        if get_ident() != self.thread:
            self.enter_thread()
        self.running += 1
        try:
            pointer = make()
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
        return instance

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

    def renew_wasi(self, wasi: WasiOptions) -> None:
        self.context()
        assert self._wasi is not None
        self._wasi.renew(wasi)

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
        self.function_table = None
        self._handler[0] = _nothing
        self.objects.clear()
        wasi, self._wasi = self._wasi, None
        if wasi is not None:
            wasi.close()

    def __del__(self) -> None:
        # Nothing can run in the store: each call into the guest holds a reference.
        if self.__dict__.get("_store"):
            self._free()


_NO_TABLE = 2
_NUMBER = struct.Struct("=Q")


def _nothing() -> None:
    """Handle no interrupt."""


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
