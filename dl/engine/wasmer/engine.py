"""The Wasmer adapter: `dl.engine.protocol` over the library of `wasix-dl-wasmer`, which compiles with Cranelift.

A call into the library releases the GIL, so guest code of several threads runs in parallel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dl.engine.capabilities import Capabilities
from dl.engine.native.engine import NativeEngine, code_name
from dl.engine.wasmer import c
from dl.engine.wasmer.errors import made
from dl.engine.wasmer.host import WasmerHostFunctions, take_text
from dl.engine.wasmer.memory import WasmerSharedMemory, new_shared_memory
from dl.engine.wasmer.store import WasmerStore
from dl.errors import EngineError
from dl.forks import in_forked_child
from dl.wasm.types import MemoryType
from memory import Uncopied

if TYPE_CHECKING:
    from dl.engine.protocol import Boundary

_LEAST_CODE = 64
"""Bytes of serialized code are more than this."""


class WasmerModule(Uncopied):
    """Compiled code.

    Attributes:
        pointer: the native module.
        name: what the code calls itself in stack traces: the beginning of the digest of its content.
        code_bytes: size of the code of its functions.
        checked: whether the code looks for interrupts: it has a loop, or a function with two calls.
    """

    def __init__(self, pointer: int, name: str) -> None:
        self.pointer = pointer
        self.name = name
        self.code_bytes: int = max(c.module_bytes(pointer), 1)
        self.checked: bool = c.module_is_checked(pointer)

    def __del__(self, _delete: Any = c.module_delete) -> None:  # globals may be gone at the interpreter's end
        _delete(self.pointer)


_in_child = False
"""Whether this process was forked from one that had loaded this module."""


def _forked() -> None:
    global _in_child  # noqa: PLW0603  it happens to the process
    _in_child = True


in_forked_child(_forked)


class WasmerEngine(NativeEngine):
    """One Wasmer engine.

    Args:
        interrupts: have code that may compute for long look for interrupts.
        shared_memory, exceptions, table_reflection, serialization, simd, externals, references, import_lists: False switches
            the capability off; the engine can do all of them. See `Capabilities`.
        max_stack: bytes of stack that one call into the guest may use, and bytes of native stack that a thread's calls into
            the guest and out of it may use together; None for 1 MiB, or what the stacks of new threads have room for if that
            is less.

    Attributes:
        max_stack: bytes of stack.
    """

    name = "wasmer"

    def __init__(
        self,
        *,
        interrupts: bool = True,
        shared_memory: bool = True,
        exceptions: bool = True,
        table_reflection: bool = True,
        serialization: bool = True,
        simd: bool = True,
        externals: bool = True,
        references: bool = True,
        import_lists: bool = True,
        max_stack: int | None = None,
    ) -> None:
        capabilities = Capabilities(
            shared_memory=shared_memory,
            interrupts=interrupts,
            exceptions=exceptions,
            tail_calls=False,
            table_reflection=table_reflection,
            serialization=serialization,
            simd=simd,
            externals=externals,
            references=references and externals,
            import_lists=import_lists,
        )
        super().__init__(capabilities, max_stack)
        able = (
            (c.CAN_INTERRUPT, interrupts),
            (c.CAN_SHARE, shared_memory),
            (c.CAN_THROW, exceptions),
            (c.CAN_SIMD, simd),
            (c.FORKED, _in_child),
        )
        bits = sum(bit for bit, wanted in able if wanted)
        self.pointer = made(c.engine_new, bits, self.max_stack)

    def _version(self) -> str:
        return f"wasmer {c.VERSION}, interface {c.INTERFACE}"

    def compile(self, wasm: bytes) -> WasmerModule:
        name = code_name(wasm)
        raw = name.encode()
        return WasmerModule(made(c.module_new, self.pointer, wasm, len(wasm), raw, len(raw)), name)

    def serialize(self, module: Any) -> bytes:
        self._check_serialization()
        return self._named_code(module.name, take_text(made(c.module_serialize, module.pointer)))

    def deserialize(self, code: bytes) -> WasmerModule:
        self._check_serialization()
        name, native = self._split_code(code)
        if len(native) < _LEAST_CODE:
            raise EngineError("these bytes are no code: they are too few")
        pointer = made(c.module_deserialize, self.pointer, native, len(native))
        return WasmerModule(pointer, name)

    def shared_memory(self, kind: MemoryType) -> WasmerSharedMemory:
        return new_shared_memory(self.pointer, kind)

    def host_functions(self, boundary: Boundary) -> WasmerHostFunctions:
        return WasmerHostFunctions(boundary)

    def new_store(self, host: Any) -> WasmerStore:
        return WasmerStore(self, host)

    def interrupt(self) -> None:
        c.engine_interrupt(self.pointer)

    def __del__(self, _delete: Any = c.engine_delete) -> None:
        pointer = self.__dict__.get("pointer")
        if pointer:
            _delete(pointer)
