"""Python functions as WebAssembly imports in Wasmer."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

from dl.engine.native.callbacks import Callback, raw_callback, typed_callback
from dl.engine.protocol import Boundary, EngineMemory, RawFunction
from dl.engine.wasmer import c
from dl.engine.wasmer.errors import check
from dl.errors import EngineError
from dl.wasm.types import FuncType

_LETTERS = {"i32": "i", "i64": "I", "f32": "f", "f64": "F", "v128": "v"}
_TYPES = {letter: name for name, letter in _LETTERS.items()}


def signature_text(kind: FuncType) -> bytes:
    """Return how the library is told a signature of numbers and vectors."""
    sides = (kind.params, kind.results)
    return ":".join("".join(_LETTERS.get(one, "?") for one in side) for side in sides).encode()


def signature_of(text: str) -> FuncType:
    """Return the signature that the library tells; what is no number or vector is `(ref)`."""
    params, results = text.split(":")
    return FuncType(
        tuple(_TYPES.get(letter, "(ref)") for letter in params),
        tuple(_TYPES.get(letter, "(ref)") for letter in results),
    )


def raised() -> int:
    """Return what a callback returns that raised: the library makes the ending."""
    return 1


def native_callback(callback: Callback) -> tuple[Any, int]:
    """Return a native function, to be kept as long as it may be called, and its address."""
    native = c.CALLBACK(callback)
    return native, ctypes.cast(native, ctypes.c_void_p).value or 0


NO_GUEST_WASI = "this engine calls WASI through the host"


class WasmerHostFunctions:
    """Host functions of one program. Each store makes those that its modules import.

    `_lock` guards the list of callbacks; the library guards its own table.

    Args:
        boundary: what happens around each function that may block.

    Attributes:
        pointer: the native set.
    """

    def __init__(self, boundary: Boundary) -> None:
        self._lock = threading.Lock()
        self._boundary = boundary
        self._callbacks: list[Any] = []
        self.pointer: int = c.host_new()

    def offer_wasi(self, namespace: str, memory: EngineMemory) -> None:
        raise EngineError(
            f"cannot offer WASI and {namespace}.memory of {memory.data_size()} bytes: {NO_GUEST_WASI}"
        )

    def define(
        self,
        namespace: str,
        name: str,
        kind: FuncType,
        function: Callable[..., Any],
        *,
        blocking: bool = True,
    ) -> None:
        self._add(
            namespace,
            name,
            kind,
            typed_callback(kind, function, self._boundary, raised, blocking=blocking, name=name),
        )

    def define_raw(self, namespace: str, name: str, kind: FuncType, function: RawFunction) -> None:
        self._add(namespace, name, kind, raw_callback(kind, function, self._boundary, raised))

    def _add(self, namespace: str, name: str, kind: FuncType, callback: Callback) -> None:
        native, address = native_callback(callback)
        raw_namespace, raw_name, raw_kind = namespace.encode(), name.encode(), signature_text(kind)
        with self._lock:
            # First, so that the callback outlives the native set whatever happens next.
            self._callbacks.append(native)
            check(
                c.host_define(
                    self.pointer,
                    raw_namespace,
                    len(raw_namespace),
                    raw_name,
                    len(raw_name),
                    raw_kind,
                    len(raw_kind),
                    address,
                )
            )

    def __del__(self, _delete: Any = c.host_delete) -> None:
        # The default is there for the interpreter's end, when modules have lost their names.
        if "pointer" in self.__dict__:
            _delete(self.pointer)
