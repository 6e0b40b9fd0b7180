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
from typing import Any

from dl.engine import wasmtime_c as c
from dl.engine.protocol import Boundary, Capabilities
from dl.engine.wasmtime_errors import error_text
from dl.engine.wasmtime_host import WasmtimeHostFunctions
from dl.engine.wasmtime_memory import WasmtimeSharedMemory, new_shared_memory, probe_module
from dl.engine.wasmtime_store import WasmtimeStore
from dl.errors import InvalidModuleError
from dl.wasm.types import MemoryType


class WasmtimeModule:
    """Compiled code."""

    def __init__(self, pointer: int, name: str) -> None:
        self.pointer = pointer
        self.name = name

    def __del__(self, _delete: Any = c.module_delete) -> None:  # globals may be gone at the interpreter's end
        _delete(self.pointer)


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
        self._max_stack = max_stack
        self.pointer: int = c.engine_new(config)
        self._probe: WasmtimeModule | None = None

    def compile(self, wasm: bytes, name: str) -> WasmtimeModule:
        pointer = ctypes.c_void_p()
        error = c.module_new(self.pointer, wasm, len(wasm), ctypes.addressof(pointer))
        if error:
            raise InvalidModuleError(name, error_text(error))
        assert pointer.value
        return WasmtimeModule(pointer.value, name)

    def shared_memory(self, kind: MemoryType) -> WasmtimeSharedMemory:
        if self._probe is None:
            self._probe = self.compile(probe_module(), "probe")
        return new_shared_memory(self.pointer, kind, self._probe)

    def host_functions(self, boundary: Boundary) -> WasmtimeHostFunctions:
        return WasmtimeHostFunctions(self.pointer, boundary)

    def new_store(self, host: Any) -> WasmtimeStore:
        return WasmtimeStore(
            self.pointer, host, max_stack=self._max_stack, interrupts=self.capabilities.interrupts
        )

    def interrupt(self) -> None:
        c.engine_increment_epoch(self.pointer)

    def __del__(self, _delete: Any = c.engine_delete) -> None:
        pointer = self.__dict__.get("pointer")
        if pointer:
            _delete(pointer)
