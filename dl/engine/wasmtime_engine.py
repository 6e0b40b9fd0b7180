"""The wasmtime adapter: `dl.engine.protocol` over the C API.

What the binding's classes get wrong under threads, and what is done here instead:

* A host function's exception lives in one process-wide variable there, so it reaches the wrong thread. Here it waits
  under the raising thread's identity, and the innermost call into the guest of that thread, the one it interrupts,
  takes it.
* Calls cost tens of microseconds there. Here a call is one foreign call on an argument area that belongs to the
  function object. The area may be shared by recursive calls: the engine reads all arguments before the first guest
  instruction and writes all results after the last.
* A shared memory cannot be imported there (a pointer to a pointer); here the extern is filled by value.

A call into the library releases the GIL, so guest code of several threads runs in parallel.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Any

from dl.engine import wasmtime_c as c
from dl.engine.protocol import Boundary, Capabilities, RawCall, WasiOptions
from dl.engine.values import SLOT_BYTES, marshaller, result_reader
from dl.errors import EngineError, InstantiationError, InvalidModuleError, ProgramExited, TrapError
from dl.wasm.types import FuncType, MemoryType

_PENDING: dict[int, BaseException] = {}
"""Exception of a host function on its way to the caller it interrupts, by thread identity.

A thread only ever touches its own entry, so there is no lock. Invariant: an entry exists only between a host
function's return with a trap and the return of the innermost guest call of the same thread.
"""

_UNLIMITED = -1


def _take_bytes(fill: Callable[[int], object]) -> bytes:
    vec = c.ByteVec()
    fill(ctypes.addressof(vec))
    data = ctypes.string_at(vec.data, vec.size) if vec.size else b""
    c.byte_vec_delete(ctypes.addressof(vec))
    return data


def _error_text(error: int) -> str:
    """Return an error's message, without the engine's own backtrace, and free it."""
    text = _take_bytes(lambda out: c.error_message(error, out)).decode(errors="replace")
    c.error_delete(error)
    return text.strip()


def _check(error: int | None) -> None:
    if error:
        raise EngineError(_error_text(error))


def _frames(collect: Callable[[int], object]) -> tuple[str, ...]:
    vec = c.ByteVec()
    collect(ctypes.addressof(vec))
    pointers = ctypes.cast(vec.data, ctypes.POINTER(ctypes.c_void_p)) if vec.size else ()
    frames = []
    for i in range(vec.size):
        frame = pointers[i]
        function = _frame_text(c.frame_function_name(frame)) or f"function {c.frame_function_index(frame)}"
        frames.append(f"{_frame_text(c.frame_module_name(frame)) or '?'}!{function}")
    c.frame_vec_delete(ctypes.addressof(vec))
    return tuple(frames)


def _frame_text(name_vec: int | None) -> str:
    if not name_vec:
        return ""
    vec = c.ByteVec.from_address(name_vec)
    return ctypes.string_at(vec.data, vec.size).decode(errors="replace") if vec.size else ""


def _raise_ending(error: int | None, trap: int | None) -> None:
    """Turn the end of a guest call into the exception that its caller gets.

    Raises:
        BaseException: what the host function that interrupted the call raised.
        ProgramExited: WASI's ``proc_exit`` was called.
        TrapError: the guest trapped.
        EngineError: the engine failed.
    """
    pending = _PENDING.pop(get_ident(), None)
    if pending is not None:
        if error:
            c.error_delete(error)
        if trap:
            c.trap_delete(trap)
        raise pending
    if trap:
        code = ctypes.c_uint8()
        known = c.trap_code(trap, ctypes.addressof(code))
        text = _take_bytes(lambda out: c.trap_message(trap, out)).decode(errors="replace").rstrip("\0")
        frames = _frames(lambda out: c.trap_trace(trap, out))
        c.trap_delete(trap)
        reason = c.TRAP_CODES.get(code.value, text.splitlines()[0] if text else "trap") if known else text
        raise TrapError(reason, code.value if known else None, frames)
    assert error
    status = ctypes.c_int()
    if c.error_exit_status(error, ctypes.addressof(status)):
        c.error_delete(error)
        raise ProgramExited(status.value)
    frames = _frames(lambda out: c.error_trace(error, out))
    raise TrapError(_error_text(error).splitlines()[0], None, frames)


class WasmtimeModule:
    """Compiled code."""

    def __init__(self, pointer: int, name: str) -> None:
        self.pointer = pointer
        self.name = name

    def __del__(self) -> None:
        c.module_delete(self.pointer)


class WasmtimeSharedMemory:
    """A memory shared by all stores of an engine. Its data never moves."""

    def __init__(self, engine: WasmtimeEngine, kind: MemoryType) -> None:
        pointer = ctypes.c_void_p()
        with _memory_type(kind) as memory_type:
            _check(c.shared_memory_new(engine.pointer, memory_type, ctypes.addressof(pointer)))
        assert pointer.value
        self._engine = engine
        self.pointer: int = pointer.value
        self._data: int = c.shared_memory_data(self.pointer)

    def data_address(self) -> int:
        return self._data

    def data_size(self) -> int:
        size: int = c.shared_memory_data_size(self.pointer)
        return size

    def grow(self, pages: int) -> int | None:
        former = ctypes.c_uint64()
        error = c.shared_memory_grow(self.pointer, pages, ctypes.addressof(former))
        if error:
            c.error_delete(error)
            return None
        return former.value

    def extern(self) -> c.Extern:
        extern = c.Extern(kind=c.EXTERN_SHARED_MEMORY)
        extern.of.shared_memory = self.pointer
        return extern

    def __del__(self) -> None:
        pointer = self.__dict__.get("pointer")
        if pointer:
            c.shared_memory_delete(pointer)


class WasmtimeMemory:
    """A memory of one store. Its data moves only if the engine's reservation of address space is exceeded."""

    def __init__(self, store: WasmtimeStore, extern: c.Extern) -> None:
        self._store = store
        self._extern = extern
        self._memory = ctypes.addressof(extern.of.memory)

    def data_address(self) -> int:
        address: int | None = c.memory_data(self._store.context, self._memory)
        return address or 0

    def data_size(self) -> int:
        size: int = c.memory_data_size(self._store.context, self._memory)
        return size

    def grow(self, pages: int) -> int | None:
        former = ctypes.c_uint64()
        error = c.memory_grow(self._store.context, self._memory, pages, ctypes.addressof(former))
        if error:
            c.error_delete(error)
            return None
        return former.value

    def extern(self) -> c.Extern:
        return self._extern


class _ExportedSharedMemory:
    """A shared memory reached through an instance's export; freed with the store that exports it."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    def data_address(self) -> int:
        address: int = c.shared_memory_data(self._pointer)
        return address

    def data_size(self) -> int:
        size: int = c.shared_memory_data_size(self._pointer)
        return size

    def grow(self, pages: int) -> int | None:
        former = ctypes.c_uint64()
        error = c.shared_memory_grow(self._pointer, pages, ctypes.addressof(former))
        if error:
            c.error_delete(error)
            return None
        return former.value

    def extern(self) -> c.Extern:
        extern = c.Extern(kind=c.EXTERN_SHARED_MEMORY)
        extern.of.shared_memory = self._pointer
        return extern

    def __del__(self) -> None:
        c.shared_memory_delete(self._pointer)


class _memory_type:  # noqa: N801  used as a context manager only
    def __init__(self, kind: MemoryType) -> None:
        limits = kind.limits
        pointer = ctypes.c_void_p()
        _check(
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
        self._pointer: int = pointer.value

    def __enter__(self) -> int:
        return self._pointer

    def __exit__(self, *_: object) -> None:
        c.memorytype_delete(self._pointer)


class WasmtimeInstance:
    """An instance, valid as long as its store."""

    __slots__ = ("raw", "store")

    def __init__(self, store: WasmtimeStore, raw: c.Instance) -> None:
        self.store = store
        self.raw = raw

    def _export(self, name: str, *kinds: int) -> c.Extern:
        extern = c.Extern()
        raw_name = name.encode()
        found = c.instance_export(
            self.store.context, ctypes.addressof(self.raw), raw_name, len(raw_name), ctypes.addressof(extern)
        )
        if not found or extern.kind not in kinds:
            raise KeyError(name)
        return extern

    def function(self, name: str, kind: FuncType) -> Callable[..., Any]:
        return self.store.callable(self._export(name, c.EXTERN_FUNC).of.func, kind)

    def raw_function(self, name: str) -> RawCall:
        return self.store.raw_callable(self._export(name, c.EXTERN_FUNC).of.func)

    def memory(self, name: str) -> WasmtimeMemory | _ExportedSharedMemory:
        extern = self._export(name, c.EXTERN_MEMORY, c.EXTERN_SHARED_MEMORY)
        if extern.kind == c.EXTERN_MEMORY:
            return WasmtimeMemory(self.store, extern)
        return _ExportedSharedMemory(extern.of.shared_memory)

    def table(self, name: str) -> c.Extern:
        return self._export(name, c.EXTERN_TABLE)

    def global_value(self, name: str) -> int:
        extern = self._export(name, c.EXTERN_GLOBAL)
        value = c.Val()
        c.global_get(self.store.context, ctypes.addressof(extern.of.global_), ctypes.addressof(value))
        if value.kind == c.VALUE_KINDS["i32"]:
            return int(value.of.i32) & 0xFFFFFFFF
        if value.kind == c.VALUE_KINDS["i64"]:
            return int(value.of.i64) & 0xFFFFFFFFFFFFFFFF
        raise KeyError(name)


class WasmtimeHostFunctions:
    """Host functions of one program, kept in a native linker that each new store clones.

    Guarded by `_lock`: the native linker and the list of definitions. A store made earlier catches up by index when
    it next instantiates (`definitions` only grows).
    """

    def __init__(self, engine: WasmtimeEngine, boundary: Boundary) -> None:
        self._lock = threading.Lock()
        self._engine = engine
        self._boundary = boundary
        self.definitions: list[tuple[bytes, bytes, int, int]] = []
        self._callbacks: list[Any] = []
        self._func_types: list[int] = []
        self._linker = _new_linker(engine)

    def define(
        self,
        namespace: str,
        name: str,
        kind: FuncType,
        function: Callable[..., Any],
        *,
        blocking: bool = True,
    ) -> None:
        convert = marshaller(kind)
        unpack, pack, pack_checked = (
            convert.arguments.unpack_from,
            convert.results.pack_into,
            convert.pack_results,
        )
        view = (ctypes.c_char * (convert.slots * SLOT_BYTES)).from_address
        single = len(kind.results) == 1 and kind.results[0] != "v128"
        pending, message = _PENDING, f"{namespace}.{name} raised".encode()

        def plain(_env: int, _caller: int, arguments: int, _slots: int) -> int | None:
            try:
                area = view(arguments)
                value = function(*unpack(area))
                if single:
                    try:
                        pack(area, 0, value)
                    except (struct.error, OverflowError, TypeError):
                        pack_checked(area, value)
                else:
                    pack_checked(area, value)
            except BaseException as error:  # noqa: BLE001  carried to the caller whose guest call it interrupts
                pending[get_ident()] = error
                trap: int = c.trap_new(message, len(message))
                return trap
            return None

        if not blocking:
            self._add(namespace, name, kind, plain)
            return
        enter, leave = self._boundary.enter_host, self._boundary.exit_host

        def guarded(_env: int, _caller: int, arguments: int, _slots: int) -> int | None:
            try:
                token = enter()
                area = view(arguments)
                value = function(*unpack(area))
                if single:
                    try:
                        pack(area, 0, value)
                    except (struct.error, OverflowError, TypeError):
                        pack_checked(area, value)
                else:
                    pack_checked(area, value)
                leave(token)
            except BaseException as error:  # noqa: BLE001  carried to the caller whose guest call it interrupts
                pending[get_ident()] = error
                trap: int = c.trap_new(message, len(message))
                return trap
            return None

        self._add(namespace, name, kind, guarded)

    def define_raw(self, namespace: str, name: str, kind: FuncType, function: RawCall) -> None:
        enter, leave, pending = self._boundary.enter_host, self._boundary.exit_host, _PENDING
        message = f"{namespace}.{name} raised".encode()

        def raw(_env: int, _caller: int, arguments: int, slots: int) -> int | None:
            try:
                token = enter()
                function(arguments, slots)
                leave(token)
            except BaseException as error:  # noqa: BLE001  carried to the caller whose guest call it interrupts
                pending[get_ident()] = error
                trap: int = c.trap_new(message, len(message))
                return trap
            return None

        self._add(namespace, name, kind, raw)

    def _add(self, namespace: str, name: str, kind: FuncType, callback: Callable[..., Any]) -> None:
        native = c.HOST_CALLBACK(callback)
        definition = (
            namespace.encode(),
            name.encode(),
            _function_type(self._engine, kind),
            ctypes.cast(native, ctypes.c_void_p).value or 0,
        )
        with self._lock:
            self._callbacks.append(native)
            self._func_types.append(definition[2])
            _define_function(self._linker, definition)
            self.definitions.append(definition)

    def clone(self) -> tuple[int, int]:
        """Return a native linker with all definitions, and how many they are."""
        with self._lock:
            linker: int = c.linker_clone(self._linker)
            return linker, len(self.definitions)

    def __del__(self) -> None:
        if "_linker" in self.__dict__:
            c.linker_delete(self._linker)
            for kind in self._func_types:
                c.functype_delete(kind)


def _new_linker(engine: WasmtimeEngine) -> int:
    linker: int = c.linker_new(engine.pointer)
    c.linker_allow_shadowing(linker, True)
    return linker


def _define_function(linker: int, definition: tuple[bytes, bytes, int, int]) -> None:
    namespace, name, kind, callback = definition
    _check(
        c.linker_define_function(
            linker, namespace, len(namespace), name, len(name), kind, callback, None, None
        )
    )


def _value_type(engine: WasmtimeEngine, name: str) -> int:
    kind = c.VALUE_KINDS[name]
    if name == "v128":
        extended = ctypes.create_string_buffer(bytes([kind]), 64)
        v128: int = c.valtype_extended(engine.pointer, ctypes.addressof(extended))
        return v128
    pointer: int = c.valtype_new(kind)
    return pointer


def _function_type(engine: WasmtimeEngine, kind: FuncType) -> int:
    vectors = []
    for types in (kind.params, kind.results):
        values = (ctypes.c_void_p * max(len(types), 1))(*(_value_type(engine, t) for t in types))
        vec = c.ByteVec()
        c.valtype_vec_new(ctypes.addressof(vec), len(types), ctypes.addressof(values))
        vectors.append(vec)
    pointer: int = c.functype_new(ctypes.addressof(vectors[0]), ctypes.addressof(vectors[1]))
    return pointer


class WasmtimeStore:
    """One thread's instances."""

    def __init__(self, engine: WasmtimeEngine, host: WasmtimeHostFunctions) -> None:
        self._engine = engine
        self._host = host
        self._linker, self._host_known = host.clone()
        self._store: int = c.store_new(engine.pointer, None, None)
        self.context: int = c.store_context(self._store)
        # A store refuses the 10,001st instance unless told otherwise, and never frees one by itself.
        c.store_limiter(self._store, _UNLIMITED, _UNLIMITED, 1 << 31, 1 << 31, 1 << 31)
        self._trap = ctypes.c_void_p()
        self._trap_address = ctypes.addressof(self._trap)
        self._interrupt_callback: Any = None
        self._kept: list[Any] = []
        if engine.capabilities.interrupts:
            c.context_set_epoch_deadline(self.context, 1)
            self.on_interrupt(lambda: None)

    def define_memory(self, namespace: str, name: str, memory: Any) -> None:
        extern = memory.extern()
        self._kept.append(memory)
        raw_namespace, raw_name = namespace.encode(), name.encode()
        _check(
            c.linker_define(
                self._linker,
                self.context,
                raw_namespace,
                len(raw_namespace),
                raw_name,
                len(raw_name),
                ctypes.addressof(extern),
            )
        )

    def define_instance(self, namespace: str, instance: Any) -> None:
        raw = namespace.encode()
        _check(
            c.linker_define_instance(
                self._linker, self.context, raw, len(raw), ctypes.addressof(instance.raw)
            )
        )

    def instantiate(self, module: Any) -> WasmtimeInstance:
        for definition in self._host.definitions[self._host_known :]:
            _define_function(self._linker, definition)
            self._host_known += 1
        raw = c.Instance()
        error = c.linker_instantiate(
            self._linker, self.context, module.pointer, ctypes.addressof(raw), self._trap_address
        )
        trap = self._trap.value
        if error or trap:
            self._trap.value = None
            if error and get_ident() not in _PENDING and not _has_trace(error):
                raise InstantiationError(module.name, _error_text(error).splitlines()[0])
            _raise_ending(error, trap)
        return WasmtimeInstance(self, raw)

    def new_memory(self, kind: MemoryType) -> WasmtimeMemory:
        extern = c.Extern(kind=c.EXTERN_MEMORY)
        with _memory_type(kind) as memory_type:
            _check(c.memory_new(self.context, memory_type, ctypes.addressof(extern.of.memory)))
        return WasmtimeMemory(self, extern)

    def table_size(self, instance: Any, name: str) -> int:
        extern = instance.table(name)
        size: int = c.table_size(self.context, ctypes.addressof(extern.of.table))
        return size

    def _table_function(self, instance: Any, name: str, index: int) -> c.Func | None:
        extern = instance.table(name)
        value = c.Val()
        found = c.table_get(self.context, ctypes.addressof(extern.of.table), index, ctypes.addressof(value))
        if not found or not value.of.func.store_id:
            return None
        func = c.Func.from_buffer_copy(value.of.func)
        return func

    def table_entry(self, instance: Any, name: str, index: int) -> object:
        func = self._table_function(instance, name, index)
        if func is None:
            return None
        # VMFuncRef: the address of the array-call entry, then that of the native entry, the type's index and the
        # instance. Compiled code is shared by all stores, so the first three are equal for the same function.
        return struct.unpack("<QQI", ctypes.string_at(func.private, 20))

    def function_at(self, instance: Any, name: str, index: int, kind: FuncType) -> Callable[..., Any] | None:
        func = self._table_function(instance, name, index)
        return None if func is None else self.callable(func, kind)

    def callable(self, func: c.Func, kind: FuncType) -> Callable[..., Any]:
        """Return a Python callable for a function of this store."""
        convert = marshaller(kind)
        func = c.Func.from_buffer_copy(func)
        area = ctypes.create_string_buffer(convert.slots * SLOT_BYTES)
        pack, read = convert.arguments.pack_into, result_reader(kind)
        wrap, parameters, slots = convert.wrap, kind.params, convert.slots
        call, context, trap, trap_address = c.function_call, self.context, self._trap, self._trap_address
        func_address, area_address = ctypes.addressof(func), ctypes.addressof(area)
        checked = "v128" in parameters

        def invoke(*arguments: Any, _keep: object = func) -> Any:
            if checked:
                arguments = wrap(parameters, arguments, "arguments")
            try:
                pack(area, 0, *arguments)
            except (struct.error, OverflowError, TypeError):
                pack(area, 0, *wrap(parameters, arguments, "arguments"))
            error = call(context, func_address, area_address, slots, trap_address)
            if error is not None or trap.value is not None:
                ended, trap.value = trap.value, None
                _raise_ending(error, ended)
            return read(area)

        return invoke

    def raw_callable(self, func: c.Func) -> RawCall:
        """Return a callable on raw slots for a function of this store."""
        func = c.Func.from_buffer_copy(func)
        call, context, trap, trap_address = c.function_call, self.context, self._trap, self._trap_address
        func_address = ctypes.addressof(func)

        def invoke(area: int, slots: int, _keep: object = func) -> None:
            error = call(context, func_address, area, slots, trap_address)
            if error is not None or trap.value is not None:
                ended, trap.value = trap.value, None
                _raise_ending(error, ended)

        return invoke

    def enable_wasi(self, wasi: WasiOptions) -> None:
        _check(c.linker_define_wasi(self._linker))
        config, kept = _wasi_config(wasi)
        self._kept.extend(kept)
        _check(c.context_set_wasi(self.context, config))

    def on_interrupt(self, handler: Callable[[], None]) -> None:
        context, pending = self.context, _PENDING
        store_u64 = ctypes.c_uint64.from_address

        def reached(_context: int, _data: int, delta: int, kind: int) -> int | None:
            try:
                # The handler may instantiate modules in this store; with the deadline still in the past, their
                # start functions would be interrupted in turn.
                c.context_set_epoch_deadline(context, 1 << 40)
                handler()
                store_u64(delta).value = 1
                ctypes.c_uint8.from_address(kind).value = 0
            except BaseException as error:  # noqa: BLE001  carried to the caller whose guest call it interrupts
                pending[get_ident()] = error
                c.context_set_epoch_deadline(context, 1)
                failed: int = c.error_new(b"interrupted")
                return failed
            return None

        self._interrupt_callback = c.EPOCH_CALLBACK(reached)
        c.store_epoch_callback(
            self._store, ctypes.cast(self._interrupt_callback, ctypes.c_void_p).value, None, None
        )

    def close(self) -> None:
        store, self._store = self._store, 0
        if store:
            c.linker_delete(self._linker)
            c.store_delete(store)
            self._kept.clear()
            self._interrupt_callback = None

    def __del__(self) -> None:
        if self.__dict__.get("_store"):
            self.close()


def _has_trace(error: int) -> bool:
    status = ctypes.c_int()
    return bool(c.error_exit_status(error, ctypes.addressof(status))) or bool(
        _frames(lambda out: c.error_trace(error, out))
    )


def _string_array(texts: Sequence[str]) -> Any:
    return (ctypes.c_char_p * max(len(texts), 1))(*(text.encode() for text in texts))


def _wasi_config(wasi: WasiOptions) -> tuple[int, list[Any]]:
    """Return a native WASI configuration and the Python objects it points to."""
    config: int = c.wasi_new()
    kept: list[Any] = []
    for text in (*wasi.args, *(part for pair in wasi.env for part in pair)):
        if "\0" in text:
            raise EngineError(f"a NUL byte in {text!r} cannot be passed to the program")
    arguments = _string_array(wasi.args)
    names, values = (_string_array([pair[i] for pair in wasi.env]) for i in (0, 1))
    c.wasi_argv(config, len(wasi.args), ctypes.addressof(arguments))
    c.wasi_env(config, len(wasi.env), ctypes.addressof(names), ctypes.addressof(values))
    if wasi.stdin is None:
        c.wasi_stdin_inherit(config)
    elif isinstance(wasi.stdin, bytes):
        vec = c.ByteVec()
        c.byte_vec_new(ctypes.addressof(vec), len(wasi.stdin), wasi.stdin)
        c.wasi_stdin_bytes(config, ctypes.addressof(vec))
    elif not c.wasi_stdin_file(config, str(wasi.stdin).encode()):
        raise EngineError(f"cannot read standard input from {wasi.stdin}")
    outputs = (
        ("stdout", wasi.stdout, c.wasi_stdout_inherit, c.wasi_stdout_file, c.wasi_stdout_custom),
        ("stderr", wasi.stderr, c.wasi_stderr_inherit, c.wasi_stderr_file, c.wasi_stderr_custom),
    )
    for name, target, inherit, to_file, to_custom in outputs:
        if target is None:
            inherit(config)
        elif callable(target):
            callback = _output_callback(target)
            kept.append(callback)
            to_custom(config, ctypes.cast(callback, ctypes.c_void_p).value, None, None)
        elif not to_file(config, str(target).encode()):
            raise EngineError(f"cannot write {name} to {target}")
    for guest, host in wasi.preopens:
        if not c.wasi_preopen(config, host.encode(), guest.encode(), True):
            raise EngineError(f"cannot open directory {host} for the program's {guest}")
    return config, kept


def _output_callback(write: Callable[[bytes], object]) -> Any:
    def received(_data: int, address: int, size: int) -> int:
        try:
            write(ctypes.string_at(address, size))
        except Exception as error:  # noqa: BLE001  WASI reports it to the program as an errno
            return -(getattr(error, "errno", None) or 5)
        return size

    return c.OUTPUT_CALLBACK(received)


class WasmtimeEngine:
    """One wasmtime engine.

    Args:
        interrupts: check for interruption at each loop and function entry (about 11 % on tight loops).
        max_stack: bytes of native stack that guest code may use in a thread.
    """

    name = "wasmtime"

    def __init__(self, *, interrupts: bool = True, max_stack: int = 1 << 20) -> None:
        self.capabilities = Capabilities(shared_memory=True, interrupts=interrupts, exceptions=True)
        config = c.config_new()
        c.config_epochs(config, interrupts)
        c.config_threads(config, True)
        c.config_shared_memory(config, True)
        c.config_exceptions(config, True)
        c.config_max_stack(config, max_stack)
        self.pointer: int = c.engine_new(config)

    def compile(self, wasm: bytes, name: str) -> WasmtimeModule:
        pointer = ctypes.c_void_p()
        error = c.module_new(self.pointer, wasm, len(wasm), ctypes.addressof(pointer))
        if error:
            raise InvalidModuleError(name, _error_text(error))
        assert pointer.value
        return WasmtimeModule(pointer.value, name)

    def shared_memory(self, kind: MemoryType) -> WasmtimeSharedMemory:
        return WasmtimeSharedMemory(self, kind)

    def host_functions(self, boundary: Boundary) -> WasmtimeHostFunctions:
        return WasmtimeHostFunctions(self, boundary)

    def new_store(self, host: Any) -> WasmtimeStore:
        return WasmtimeStore(self, host)

    def interrupt(self) -> None:
        c.engine_increment_epoch(self.pointer)

    def __del__(self) -> None:
        pointer = self.__dict__.get("pointer")
        if pointer:
            c.engine_delete(pointer)
