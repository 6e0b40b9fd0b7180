"""One thread's world of instances in wasmtime."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from threading import get_ident
from typing import TYPE_CHECKING, Any

from dl.engine.import_list import ImportList
from dl.engine.native.entry import entry, need_room
from dl.engine.native.pending import interrupt_guest
from dl.engine.native.store import DEFERRED, NativeStore
from dl.engine.native.traps import FindLine, Names, frame_name
from dl.engine.wasmtime import c
from dl.engine.wasmtime.errors import (
    check,
    free_ending,
    raise_ending,
    raise_instantiation_ending,
)
from dl.engine.wasmtime.host import (
    Definition,
    WasmtimeHostFunctions,
    define_extern,
    define_function,
    described_type,
)
from dl.engine.wasmtime.instance import WasmtimeInstance
from dl.engine.wasmtime.listed import TableReader, externals, new_number
from dl.engine.wasmtime.memory import (
    PROBE_NAMESPACE,
    WasmtimeMemory,
    WasmtimeSharedMemory,
    new_memory,
    owned_memory,
)
from dl.engine.wasmtime.offered import OfferedInstances
from dl.engine.wasmtime.references import STORES
from dl.engine.wasmtime.wasi import wasi_config
from dl.errors import EngineError, InstantiationError
from dl.errors.running import DescribeException
from dl.wasm.types import FuncType, GlobalType, MemoryType
from memory import Uncopied

if TYPE_CHECKING:
    from dl.engine.values import WasiOptions
    from dl.engine.wasmtime.engine import WasmtimeEngine
    from dl.engine.wasmtime.externals import WasmtimeGlobal
    from dl.engine.wasmtime.stack import WasmtimeProfiler

_UNLIMITED = -1


class _OwnedStore(Uncopied):
    """The native store: deleted with the last reference, so that views of its memory can outlive the store's closing.

    Args:
        pointer: the native store.

    Attributes:
        kept: what native code in it refers to.
    """

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer
        self.kept: list[Any] = []

    def __del__(self, _delete: Any = c.store_delete) -> None:
        # The default is there for the interpreter's end, when modules have lost their names.
        _delete(self._pointer)


_OWN_SHARED_MEMORY = "a shared memory that an instance defines cannot be imported by others; have it imported (--import-memory)"


class WasmtimeStore(NativeStore):
    """One thread's instances.

    Args:
        engine: what compiles the store's modules.
        host: the functions that modules can import.

    Raises:
        EngineError: the calling thread's stack is too small for guest code.

    Attributes:
        table_reader: what takes functions from the program's table; None before there is one.
    """

    def __init__(self, engine: WasmtimeEngine, host: WasmtimeHostFunctions) -> None:
        super().__init__(engine.max_stack)
        self._engine = engine
        self._host = host
        self._linker, self._host_known = host.clone()
        self._store: int = c.store_new(engine.pointer, None, None)
        self._native: _OwnedStore | None = _OwnedStore(self._store)
        self._context: int = c.store_context(self._store)
        STORES[self._context] = self
        self.limit(memory_bytes=_UNLIMITED, table_elements=_UNLIMITED)
        self._names: Names[c.Extern] = Names()
        self._offered = OfferedInstances()
        self._interrupt_callback: Any = None
        self.table_reader: TableReader | None = None
        self._memories: dict[tuple[str, str], c.Extern] = {}
        self._known: dict[str, dict[str, c.Extern]] = {}  # what was looked up, until its namespace gets more
        self._kept = self._native.kept
        self._boundary = host.new_boundary()
        if self._boundary is not None:
            for definition in host.definitions[: self._host_known]:
                if definition.of_store is not None:
                    self._define_host_function(definition)
        # The native store keeps instances, and so their code, to its end; who counts code must see it.
        self._code: set[Any] = set()
        self._function_types: dict[int, FuncType] = {}
        if engine.capabilities.interrupts:
            c.context_set_epoch_deadline(self._context, 1)
            self.on_interrupt(lambda: None)

    def limit(self, *, memory_bytes: int, table_elements: int) -> None:
        # By default a store refuses the 10,001st instance, and it never frees one by itself.
        c.store_limiter(self._store, memory_bytes, table_elements, 1 << 31, 1 << 31, 1 << 31)

    def context(self) -> int:
        if not self._store:
            raise EngineError("the store is closed")
        return self._context

    def native(self) -> object:
        """Return what keeps the native store, and the memories in it, also when this store is closed.

        Raises:
            EngineError: the store is closed.
        """
        self.context()
        return self._native

    def runs(self, modules: Sequence[Any]) -> bool:
        from dl.engine.wasmtime.stack import is_on_stack  # noqa: PLC0415  few programs close libraries

        self.context()
        return not self._engine.capabilities.stack_inspection or is_on_stack(
            self._engine.pointer, self._store, [module.pointer for module in modules]
        )

    def define_memory(self, namespace: str, name: str, memory: Any) -> None:
        extern = memory.extern()
        if isinstance(memory, WasmtimeSharedMemory):
            if memory.probe is None:
                raise EngineError(_OWN_SHARED_MEMORY)
            self._define(PROBE_NAMESPACE, "memory", extern)
            extern = owned_memory(
                self.context(), self.instantiate(memory.probe, PROBE_NAMESPACE).table("table"), memory
            )
        self._memories[namespace, name] = extern
        self._define(namespace, name, extern)

    def _define(self, namespace: str, name: str, extern: c.Extern) -> None:
        self._known.pop(namespace, None)
        define_extern(self._linker, self.context(), namespace, name, extern)

    def define_number(self, namespace: str, name: str, value: int) -> None:
        self._define(namespace, name, new_number(self.context(), value, mutable=False))

    def define_instance(self, namespace: str, instance: Any) -> None:
        self._known.pop(namespace, None)
        raw = namespace.encode()
        check(
            c.linker_define_instance(
                self._linker, self.context(), raw, len(raw), ctypes.addressof(instance.raw)
            )
        )

    def offer_instance(self, namespace: str, instance: Any) -> None:
        self.context()  # a closed store refuses
        if not self._offered.offer(namespace, instance):
            self.define_instance(namespace, instance)

    def _define_offered(self, namespace: str, name: str) -> bool:
        """Make an export of an offered instance importable, with all others if there were many; return whether it has it."""
        instance = self._offered.waiting(namespace)
        if instance is None:
            return False
        if not self._offered.enters_one(namespace):
            self._offered.take(namespace)
            self.define_instance(namespace, instance)
            return True
        try:
            extern = instance.export(name)
        except KeyError:
            return False
        self._define(namespace, name, extern)
        return True

    def name_tag(self, instance: Any, name: str) -> None:
        self._names.tags.append((name, instance.tag(name)))

    def _define_host_functions(self) -> None:
        """Make importable what the program's host functions have got since."""
        for definition in self._host.definitions[self._host_known :]:
            self._known.pop(definition.namespace.decode(), None)
            self._define_host_function(definition)
            self._host_known += 1

    def _define_host_function(self, definition: Definition) -> None:
        own = define_function(self._linker, definition, self._boundary)
        if own is not None:
            self._kept.append(own)

    def external(self, namespace: str, name: str) -> Any:
        self._define_host_functions()
        offered = self._offered.waiting(namespace)
        return self.external_of(
            self._importable(namespace, name) if offered is None else offered.export(name)
        )

    def _importable(self, namespace: str, name: str) -> c.Extern:
        raw_namespace, raw_name = namespace.encode(), name.encode()
        extern = c.Extern()
        if not c.linker_get(
            self._linker,
            self.context(),
            raw_namespace,
            len(raw_namespace),
            raw_name,
            len(raw_name),
            ctypes.addressof(extern),
        ):
            raise KeyError(f"{namespace}.{name}")
        return extern

    def known_extern(self, namespace: str, name: str) -> c.Extern:
        """Return what was defined or offered under a namespace and a name, in its native form; stays the store's.

        Raises:
            KeyError: nothing was.
        """
        memory = self._memories.get((namespace, name))
        if memory is not None:
            return memory
        offered = self._offered.waiting(namespace)
        if offered is not None:
            return offered.export(name)
        known = self._known.setdefault(namespace, {})
        extern = known.get(name)
        if extern is None:
            extern = known[name] = self._importable(namespace, name)
        return extern

    def read_table_by(self, instance: Any, table: str, reader: str | None) -> None:
        self.table_reader = TableReader(self, instance, table, reader)

    def lacks_reader(self, imports: ImportList) -> bool:
        return imports.needs_reader and (self.table_reader is None or not self.table_reader.reads_chunks)

    def instantiate_listed(
        self, module: Any, name: str, imports: ImportList, generated: Any = None
    ) -> WasmtimeInstance:
        context = self.context()
        self._names.modules[module.name] = frame_name(name)
        self._define_host_functions()
        try:
            given = externals(self, name, imports, generated)
        except KeyError as error:
            raise InstantiationError(name, f"unknown import {error.args[0]}") from None
        raw = c.Instance()
        out, address = ctypes.addressof(raw), given.buffer_info()[0]
        self._make(
            module,
            name,
            lambda: c.instance_new(context, module.pointer, address, imports.count, out, self.trap_address),
        )
        return WasmtimeInstance(self, raw)

    def external_of(self, extern: c.Extern) -> Any:
        """Return the object for a native external; see `dl.engine.wasmtime.externals.external_of`."""
        from dl.engine.wasmtime.externals import external_of  # noqa: PLC0415  few programs have objects for externals

        return external_of(self, extern)

    def new_global(self, kind: GlobalType, value: Any) -> WasmtimeGlobal:
        from dl.engine.wasmtime.externals import new_global  # noqa: PLC0415  as above

        return new_global(self, self._engine.pointer, kind, value)

    def find_lines(self, module: Any, find: FindLine) -> None:
        self._names.lines[module.name] = find

    def describe_exceptions(self, describe: DescribeException) -> None:
        self._names.describe = describe

    def new_profiler(self) -> WasmtimeProfiler:
        from dl.engine.wasmtime.stack import WasmtimeProfiler  # noqa: PLC0415  few programs are measured

        names = [(self._names.modules.get(module.name, module.name), module.pointer) for module in self._code]
        return WasmtimeProfiler(self._engine.pointer, self._store, names, lambda: len(self._code))

    def instantiate(self, module: Any, name: str, imports: Sequence[Any] | None = None) -> WasmtimeInstance:
        context = self.context()
        self._names.modules[module.name] = frame_name(name)
        self._define_host_functions()
        if any(isinstance(one, WasmtimeSharedMemory) for one in imports or ()):
            raise EngineError(_OWN_SHARED_MEMORY)  # it would get a second owner: see `owned_memory`
        given = (
            None if imports is None else (c.Extern * max(len(imports), 1))(*(one.extern() for one in imports))
        )
        raw = c.Instance()
        out = ctypes.addressof(raw)

        def make() -> int | None:
            error: int | None
            if given is None:
                error = c.linker_instantiate(self._linker, context, module.pointer, out, self.trap_address)
                while error and self._offered and (wanted := self._offered.wanted(error)):
                    if not self._define_offered(*wanted):
                        break
                    c.error_delete(error)
                    error = c.linker_instantiate(
                        self._linker, context, module.pointer, out, self.trap_address
                    )
            else:
                error = c.instance_new(
                    context,
                    module.pointer,
                    ctypes.addressof(given),
                    len(imports or ()),
                    out,
                    self.trap_address,
                )
            return error

        self._make(module, name, make)
        return WasmtimeInstance(self, raw)

    def instantiate_with_wasi(self, module: Any, name: str) -> WasmtimeInstance:
        context = self.context()
        self._names.modules[module.name] = frame_name(name)
        raw = c.Instance()

        def native(linker: int) -> int | None:
            error: int | None = c.linker_instantiate(
                linker, context, module.pointer, ctypes.addressof(raw), self.trap_address
            )
            return error

        memories = [(*key, extern) for key, extern in self._memories.items()]
        self._make(module, name, lambda: self._host.instantiate_with_wasi(context, memories, native))
        return WasmtimeInstance(self, raw)

    def _make(self, module: Any, name: str, make: Callable[[], int | None]) -> None:
        """Have an instance of a module made by a native call, which may run its start function."""
        need_room()
        self._code.add(module)
        if get_ident() != self.thread:
            self.enter_thread()
        self.running += 1
        try:
            error = make()
        except BaseException as interruption:
            self.discard_ending(interruption)
            raise
        finally:
            self.running -= 1
        if error is not None or self.trap.value is not None:
            trap = self.take_trap(error)
            if error or trap:
                raise_instantiation_ending(name, self._context, error, trap, self._names)

    def raise_ending(self, error: int | None) -> None:
        trap = self.take_trap(error)
        if error or trap:
            raise_ending(self._context, error, trap, self._names)

    def free_ending(self, error: int | None, trap: int | None) -> None:
        free_ending(error, trap)

    def _defer(self, error: BaseException) -> None:
        """Raise an exception in the program soon, from a callback that cannot unwind the guest.

        At the next check for interruption, or when the innermost guest call ends, which then looks as if it had left a trap.
        """
        self.deferred.append(error)
        self.trap.value = DEFERRED
        self._engine.interrupt()

    def new_memory(self, kind: MemoryType) -> WasmtimeMemory:
        return new_memory(self, kind)

    def _table_function(self, instance: Any, name: str, index: int) -> c.Func | None:
        if not self._engine.capabilities.table_reflection:
            raise EngineError("this engine cannot look into tables: it was made without table reflection")
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

    def function_type(self, instance: Any, name: str, index: int) -> FuncType | None:
        func = self._table_function(instance, name, index)
        if func is None:
            return None
        # A function lives as long as the store, so its address stands for it.
        known = self._function_types.get(func.private)
        if known is None:
            native = c.function_type(self.context(), ctypes.addressof(func))
            known = self._function_types[func.private] = described_type(native)
            c.functype_delete(native)
        return known

    def enable_wasi(self, wasi: WasiOptions) -> None:
        self.renew_wasi(wasi)
        check(c.linker_define_wasi(self._linker))

    def renew_wasi(self, wasi: WasiOptions) -> None:
        context = self.context()
        config, kept = wasi_config(wasi, self._defer)
        self._kept.extend(kept)
        check(c.context_set_wasi(context, config))

    def provide_wasi(self) -> None:
        check(c.context_set_wasi(self.context(), c.wasi_new()))

    def on_interrupt(self, handler: Callable[[], None]) -> None:
        context, deferred = self.context(), self.deferred
        store_u64, store_u8 = ctypes.c_uint64.from_address, ctypes.c_uint8.from_address

        def make_error() -> int:
            c.context_set_epoch_deadline(context, 1)
            failed: int = c.error_new(b"interrupted")
            return failed

        @entry
        def reached(_context: int, _data: int, delta: int, kind: int) -> int | None:
            try:
                # The handler may instantiate modules in this store; with the deadline still in the past, their
                # start functions would be interrupted in turn.
                c.context_set_epoch_deadline(context, 1 << 40)
                if deferred:
                    raise deferred.pop()
                handler()
                store_u64(delta).value = 1
                store_u8(kind).value = 0
            except BaseException as error:  # noqa: BLE001  carried to the caller whose guest call it interrupts
                return interrupt_guest(error, make_error)
            return None

        callback = c.EPOCH_CALLBACK(reached)
        c.store_epoch_callback(self._store, ctypes.cast(callback, ctypes.c_void_p).value, None, None)
        self._interrupt_callback = callback

    def close(self) -> None:
        if not self._store:
            return
        self.begin_closing()
        self._free()

    def _free(self, _delete_linker: Any = c.linker_delete) -> None:
        # The default is there for the interpreter's end, when modules have lost their names.
        self._store = 0
        _delete_linker(self._linker)
        self._kept = []
        self._native = None  # and with it the native store, unless there are views of its memory
        self._code.clear()
        self._offered = OfferedInstances()
        self.table_reader = None
        self._interrupt_callback = None

    def __del__(self) -> None:
        # Nothing can run in the store: each call into the guest holds a reference.
        if self.__dict__.get("_store"):
            self._free()
