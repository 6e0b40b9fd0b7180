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
import os
from typing import TYPE_CHECKING, Any

from dl.engine.capabilities import Capabilities
from dl.engine.native.engine import NativeEngine, code_name
from dl.engine.wasmtime import c
from dl.engine.wasmtime.errors import check, error_text, take_bytes
from dl.engine.wasmtime.host import WasmtimeHostFunctions
from dl.engine.wasmtime.library import library_version
from dl.engine.wasmtime.memory import WasmtimeSharedMemory, new_shared_memory, probe_module
from dl.engine.wasmtime.store import WasmtimeStore
from dl.errors import EngineError
from dl.forks import in_forked_child
from dl.logs import logger
from dl.wasm.encode import name_bytes, section, unsigned
from dl.wasm.types import MemoryType
from memory import Uncopied

if TYPE_CHECKING:
    from dl.engine.protocol import Boundary

log = logger("dl.cache")


class WasmtimeModule(Uncopied):
    """Compiled code.

    Attributes:
        pointer: the native module.
        name: what the code calls itself in stack traces: the beginning of the digest of its content.
        code_bytes: size of the code.
    """

    def __init__(self, pointer: int, name: str) -> None:
        self.pointer = pointer
        self.name = name
        start, end = ctypes.c_void_p(), ctypes.c_void_p()
        c.module_image_range(pointer, ctypes.addressof(start), ctypes.addressof(end))
        self.code_bytes = (end.value or 0) - (start.value or 0)

    def __del__(self, _delete: Any = c.module_delete) -> None:  # globals may be gone at the interpreter's end
        _delete(self.pointer)


_in_child = False
"""Whether this process was forked from one that had loaded this module."""


def _forked() -> None:
    global _in_child  # noqa: PLW0603  it happens to the process
    _in_child = True


in_forked_child(_forked)


_PROFILERS = {"jitdump": 1, "perfmap": 3}
"""Of wasmtime_profiling_strategy_enum."""


def _refusal(profiler: str) -> str:
    """Return why the engine does not write for a profiler."""
    if profiler == "vtune":
        return "profiler vtune is not offered: the engine reports to VTune's own collector, without which nothing is written"
    return f"there is no profiler {profiler}: there are {', '.join(sorted(_PROFILERS))}"


class WasmtimeEngine(NativeEngine):
    """One wasmtime engine.

    Args:
        interrupts: check for interruption at each loop and function entry (about 11 % on tight loops).
        shared_memory, exceptions, tail_calls, table_reflection, serialization, simd, externals, references, stack_inspection,
            memory64, guest_wasi, profiling, type_tests, import_lists: False switches the capability off; the engine can do
            all. See `Capabilities`.
        max_stack: bytes of native stack that guest code may use in a thread, counted from its outermost call into the guest;
            None for 1 MiB, or what the stacks of new threads have room for if that is less.
        profiler: for which profiler of the system it writes down where the code of functions is: `perfmap` or `jitdump`.

    Raises:
        EngineError: it cannot write for this profiler; says why.

    Attributes:
        max_stack: bytes of native stack that guest code may use in a thread.
    """

    name = "wasmtime"

    def __init__(
        self,
        *,
        interrupts: bool = True,
        shared_memory: bool = True,
        exceptions: bool = True,
        tail_calls: bool = True,
        table_reflection: bool = True,
        serialization: bool = True,
        simd: bool = True,
        externals: bool = True,
        references: bool = True,
        stack_inspection: bool = True,
        memory64: bool = True,
        guest_wasi: bool = True,
        profiling: bool = True,
        type_tests: bool = True,
        import_lists: bool = True,
        max_stack: int | None = None,
        profiler: str | None = None,
    ) -> None:
        capabilities = Capabilities(
            shared_memory=shared_memory,
            interrupts=interrupts,
            exceptions=exceptions,
            tail_calls=tail_calls,
            table_reflection=table_reflection,
            serialization=serialization,
            simd=simd,
            externals=externals,
            references=references,
            stack_inspection=stack_inspection,
            memory64=memory64,
            guest_wasi=guest_wasi,
            profiling=profiling,
            type_tests=type_tests,
            import_lists=import_lists,
        )
        super().__init__(capabilities, max_stack)
        if profiler is not None and profiler not in _PROFILERS:
            raise EngineError(_refusal(profiler))
        config = c.config_new()
        c.config_epochs(config, interrupts)
        c.config_threads(config, shared_memory)
        c.config_shared_memory(config, shared_memory)
        c.config_exceptions(config, exceptions)
        c.config_tail_calls(config, tail_calls)
        c.config_simd(config, simd)
        c.config_relaxed_simd(config, simd)
        c.config_memory64(config, memory64)
        c.config_max_stack(config, self.max_stack)
        c.config_profiler(config, _PROFILERS[profiler] if profiler else 0)
        # The library's threads that compile in parallel stay in the parent, and a child would wait for them for ever.
        c.config_parallel(config, not _in_child)
        self.pointer: int = c.engine_new(config)
        self._probes: dict[bool, WasmtimeModule] = {}

    def _version(self) -> str:
        return f"wasmtime {library_version()}"

    def compile(self, wasm: bytes) -> WasmtimeModule:
        pointer = ctypes.c_void_p()
        name = code_name(wasm)
        named = _named(wasm, name)
        error = c.module_new(self.pointer, named, len(named), ctypes.addressof(pointer))
        if error and named is not wasm:
            # The text should describe the module as it was given.
            c.error_delete(error)
            error = c.module_new(self.pointer, wasm, len(wasm), ctypes.addressof(pointer))
        if error:
            raise EngineError(error_text(error))
        assert pointer.value
        return WasmtimeModule(pointer.value, name)

    def serialize(self, module: Any) -> bytes:
        self._check_serialization()

        def fill(out: int) -> None:
            check(c.module_serialize(module.pointer, out))

        return self._named_code(module.name, take_bytes(fill))

    def deserialize(self, code: bytes) -> WasmtimeModule:
        self._check_serialization()
        pointer = ctypes.c_void_p()
        name, native = self._split_code(code)
        check(c.module_deserialize(self.pointer, native, len(native), ctypes.addressof(pointer)))
        assert pointer.value
        return WasmtimeModule(pointer.value, name)

    def map_code(self, file: int, length: int) -> WasmtimeModule | None:
        # The library takes a name only. This one means the file that is open, whatever has become of its own name.
        path = f"/proc/self/fd/{file}"
        if not self.capabilities.serialization or not os.path.exists(path):
            return None
        pointer = ctypes.c_void_p()
        error = c.module_deserialize_file(self.pointer, path.encode(), ctypes.addressof(pointer))
        if error:  # a file system without executable mappings, for one
            log.info("code is not mapped but copied: %s", error_text(error))
            return None
        assert pointer.value
        return WasmtimeModule(pointer.value, self._mapped_name(file, length))

    def shared_memory(self, kind: MemoryType) -> WasmtimeSharedMemory:
        is64 = kind.limits.is64
        if is64 not in self._probes:
            self._probes[is64] = self.compile(probe_module(is64=is64))
        return new_shared_memory(self.pointer, kind, self._probes[is64])

    def host_functions(self, boundary: Boundary) -> WasmtimeHostFunctions:
        return WasmtimeHostFunctions(self, boundary)

    def new_store(self, host: Any) -> WasmtimeStore:
        return WasmtimeStore(self, host)

    def interrupt(self) -> None:
        c.engine_increment_epoch(self.pointer)

    def __del__(self, _delete: Any = c.engine_delete) -> None:
        pointer = self.__dict__.get("pointer")
        if pointer:
            _delete(pointer)


def _named(wasm: bytes, name: str) -> bytes:
    """Give a module the name that stack traces show, whatever its own name section calls it.

    Core specification, appendix "Custom Sections": section `name`, subsection 0. A module may have several such sections,
    and the engine takes the last.
    """
    if not wasm.startswith(b"\0asm\1\0\0\0"):
        return wasm
    text = name.encode()
    module_name = unsigned(len(text)) + text
    return wasm + section(0, name_bytes("name") + b"\0" + unsigned(len(module_name)) + module_name)
