"""One thread's world of instances in wasmtime."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from threading import get_ident
from typing import TYPE_CHECKING, Any

from dl.engine.protocol import WasiOptions
from dl.engine.wasmtime import c, stacks
from dl.engine.wasmtime.entry import entry, need_room
from dl.engine.wasmtime.errors import (
    Names,
    check,
    discard_ending,
    interrupt_guest,
    raise_ending,
    raise_instantiation_ending,
)
from dl.engine.wasmtime.externals import WasmtimeGlobal, external_of, new_global
from dl.engine.wasmtime.host import WasmtimeHostFunctions, define_function, described_type
from dl.engine.wasmtime.instance import WasmtimeInstance
from dl.engine.wasmtime.memory import (
    PROBE_NAMESPACE,
    WasmtimeMemory,
    WasmtimeSharedMemory,
    new_memory,
    owned_memory,
)
from dl.engine.wasmtime.references import STORES
from dl.engine.wasmtime.wasi import wasi_config
from dl.errors import EngineError
from dl.wasm.types import FuncType, GlobalType, MemoryType

if TYPE_CHECKING:
    from dl.engine.wasmtime.engine import WasmtimeEngine

_UNLIMITED = -1

_DEFERRED = 1
"""Stands for a trap, which is a pointer, when a call is to end with a deferred exception."""


class WasmtimeStore:
    """One thread's instances.

    Args:
        engine: what compiles the store's modules.
        host: the functions that modules can import.

    Raises:
        EngineError: the calling thread's stack is too small for guest code.

    Attributes:
        thread: the thread that used the store last, as `threading.get_ident` numbers it; -1 once the store is closed.
            Whoever runs guest code first compares it with its own and calls `enter_thread` if it differs.
        running: calls into the guest that are under way, one inside the other. Whoever runs guest code keeps it.
        trap: where a call puts a trap.
        trap_address: address of `trap`.
    """

    def __init__(self, engine: WasmtimeEngine, host: WasmtimeHostFunctions) -> None:
        _check_stack(engine.max_stack)
        self._engine = engine
        self._host = host
        self._linker, self._host_known = host.clone()
        self._store: int = c.store_new(engine.pointer, None, None)
        self._context: int = c.store_context(self._store)
        STORES[self._context] = self
        self.limit(memory_bytes=_UNLIMITED, table_elements=_UNLIMITED)
        self.thread = get_ident()
        self.running = 0
        self.trap = ctypes.c_void_p()
        self.trap_address = ctypes.addressof(self.trap)
        self._deferred: list[BaseException] = []
        self._names = Names()
        self._interrupt_callback: Any = None
        self._kept: list[Any] = []
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
        """Return the native context.

        Raises:
            EngineError: the store is closed.
        """
        if not self._store:
            raise EngineError("the store is closed")
        return self._context

    def define_memory(self, namespace: str, name: str, memory: Any) -> None:
        extern = memory.extern()
        if isinstance(memory, WasmtimeSharedMemory):
            if memory.probe is None:
                raise EngineError(
                    "a shared memory that an instance defines cannot be imported by others; have it imported (wasm-ld "
                    "--import-memory)"
                )
            self._define(PROBE_NAMESPACE, "memory", extern)
            extern = owned_memory(
                self.context(), self.instantiate(memory.probe, PROBE_NAMESPACE).table("table"), memory
            )
        self._define(namespace, name, extern)

    def _define(self, namespace: str, name: str, extern: c.Extern) -> None:
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

    def name_tag(self, instance: Any, name: str) -> None:
        self._names.tags.append((name, instance.tag(name)))

    def _define_host_functions(self) -> None:
        """Make importable what the program's host functions have got since."""
        for definition in self._host.definitions[self._host_known :]:
            define_function(self._linker, definition)
            self._host_known += 1

    def external(self, namespace: str, name: str) -> Any:
        self._define_host_functions()
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
        return external_of(self, extern)

    def external_of(self, extern: c.Extern) -> Any:
        """Return the object for a native external; see `dl.engine.wasmtime.externals.external_of`."""
        return external_of(self, extern)

    def new_global(self, kind: GlobalType, value: Any) -> WasmtimeGlobal:
        return new_global(self, self._engine.pointer, kind, value)

    def instantiate(self, module: Any, name: str, imports: Sequence[Any] | None = None) -> WasmtimeInstance:
        context = self.context()
        self._names.modules[module.name] = _frame_name(name)
        self._define_host_functions()
        given = (
            None if imports is None else (c.Extern * max(len(imports), 1))(*(one.extern() for one in imports))
        )
        raw = c.Instance()
        need_room()
        self._code.add(module)
        if get_ident() != self.thread:
            self.enter_thread()
        self.running += 1
        try:
            if given is None:
                error = c.linker_instantiate(
                    self._linker, context, module.pointer, ctypes.addressof(raw), self.trap_address
                )
            else:
                error = c.instance_new(
                    context,
                    module.pointer,
                    ctypes.addressof(given),
                    len(imports or ()),
                    ctypes.addressof(raw),
                    self.trap_address,
                )
        except BaseException as interruption:
            self.discard_ending(interruption)
            raise
        finally:
            self.running -= 1
        if error is not None or self.trap.value is not None:
            trap = self._take_trap(error)
            if error or trap:
                raise_instantiation_ending(name, context, error, trap, self._names)
        return WasmtimeInstance(self, raw)

    def enter_thread(self) -> None:
        """Make the calling thread the one that uses the store.

        Raises:
            EngineError: the store is closed, runs guest code of another thread, or the thread's stack is too small.
        """
        self.context()
        if self.running:
            raise EngineError("the store runs guest code in another thread; it serves one thread at a time")
        _check_stack(self._engine.max_stack)
        self.thread = get_ident()

    def raise_ending(self, error: int | None) -> None:
        """Raise what a guest call ended with; see `dl.engine.wasmtime.errors.raise_ending`."""
        trap = self._take_trap(error)
        if error or trap:
            raise_ending(self._context, error, trap, self._names)

    def discard_ending(self, interruption: BaseException) -> None:
        """Forget what a guest call ended with, because Python code was interrupted as the call returned."""
        self._deferred.clear()
        trap = self.trap.value if self.trap.value != _DEFERRED else None
        self.trap.value = None
        interruption.__context__ = discard_ending(None, trap) or interruption.__context__

    def _take_trap(self, error: int | None) -> int | None:
        """Return the trap that a call left; raise the deferred exception that made the call end, if there is one."""
        # The engine leaves the stand-in where it is when the next check for interruption ended the call.
        trap = self.trap.value if self.trap.value != _DEFERRED else None
        self.trap.value = None
        if self._deferred:
            deferred = self._deferred.pop()
            self._deferred.clear()
            discard_ending(error, trap)
            raise deferred
        return trap

    def _defer(self, error: BaseException) -> None:
        """Raise an exception in the program soon, from a callback that cannot unwind the guest.

        At the next check for interruption, or when the innermost guest call ends, which then looks as if it had left a trap.
        """
        self._deferred.append(error)
        self.trap.value = _DEFERRED
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
        context = self.context()
        config, kept = wasi_config(wasi, self._defer)
        self._kept.extend(kept)
        check(c.context_set_wasi(context, config))
        check(c.linker_define_wasi(self._linker))

    def on_interrupt(self, handler: Callable[[], None]) -> None:
        context, deferred = self.context(), self._deferred
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
        if self.running:
            raise EngineError(
                "the store runs guest code; it can be closed when the call into the guest has ended"
            )
        self.thread = -1
        self._free()

    def _free(self, _delete_linker: Any = c.linker_delete, _delete_store: Any = c.store_delete) -> None:
        # The defaults are there for the interpreter's end, when modules have lost their names.
        store, self._store = self._store, 0
        _delete_linker(self._linker)
        _delete_store(store)
        self._code.clear()
        self._kept.clear()
        self._interrupt_callback = None

    def __del__(self) -> None:
        # Nothing can run in the store: each call into the guest holds a reference.
        if self.__dict__.get("_store"):
            self._free()


@lru_cache(maxsize=4096)
def _frame_name(name: str) -> str:
    """Return how a module's name appears in a stack trace: without directories, and printable."""
    return (os.path.basename(name) or name).encode(errors="replace").decode()


def _check_stack(max_stack: int) -> None:
    """Refuse threads whose stack guest code could overflow: that would end the process."""
    size = stacks.this_thread()
    if size is not None and size < max_stack + stacks.HOST_RESERVE:
        raise EngineError(
            f"this thread's stack of {size} bytes is too small: guest code may use {max_stack} and Python needs "
            f"{stacks.HOST_RESERVE}; call threading.stack_size() before starting threads"
        )
