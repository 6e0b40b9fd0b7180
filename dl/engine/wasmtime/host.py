"""Python functions as WebAssembly imports."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from dl.engine.native.callbacks import raw_callback, typed_callback
from dl.engine.protocol import Boundary, RawFunction
from dl.engine.wasmtime import c
from dl.engine.wasmtime.errors import check
from dl.wasm.types import FuncType

if TYPE_CHECKING:
    from dl.engine.wasmtime.engine import WasmtimeEngine


class WasmtimeHostFunctions:
    """Host functions of one program, kept in a native linker that each new store clones.

    `_lock` guards the native linker and the list of definitions. A store made earlier catches up by index when it next
    instantiates (`definitions` only grows).

    Args:
        engine: what compiles the modules that import the functions.
        boundary: what happens around each function that may block.
    """

    def __init__(self, engine: WasmtimeEngine, boundary: Boundary) -> None:
        self._lock = threading.Lock()
        self._engine = engine
        self._boundary = boundary
        self.definitions: list[tuple[bytes, bytes, int, int]] = []
        self._callbacks: list[Any] = []
        self._func_types: list[int] = []
        self._linker: int = c.linker_new(engine.pointer)
        c.linker_allow_shadowing(self._linker, True)

    def define(
        self,
        namespace: str,
        name: str,
        kind: FuncType,
        function: Callable[..., Any],
        *,
        blocking: bool = True,
    ) -> None:
        ending = _trap_maker(namespace, name)
        self._add(
            namespace,
            name,
            kind,
            typed_callback(kind, function, self._boundary, ending, blocking=blocking, name=name),
        )

    def define_raw(self, namespace: str, name: str, kind: FuncType, function: RawFunction) -> None:
        ending = _trap_maker(namespace, name)
        self._add(namespace, name, kind, raw_callback(kind, function, self._boundary, ending))

    def _add(self, namespace: str, name: str, kind: FuncType, callback: Callable[..., Any]) -> None:
        native = c.HOST_CALLBACK(callback)
        definition = (
            namespace.encode(),
            name.encode(),
            _function_type(self._engine.pointer, kind),
            ctypes.cast(native, ctypes.c_void_p).value or 0,
        )
        with self._lock:
            # First, so that the callback and the type outlive the native linker whatever happens next.
            self._callbacks.append(native)
            self._func_types.append(definition[2])
            define_function(self._linker, definition)
            self.definitions.append(definition)

    def clone(self) -> tuple[int, int]:
        """Return a native linker with all definitions, and how many they are."""
        with self._lock:
            linker: int = c.linker_clone(self._linker)
            return linker, len(self.definitions)

    def __del__(self, _delete_linker: Any = c.linker_delete, _delete_type: Any = c.functype_delete) -> None:
        # The defaults are there for the interpreter's end, when modules have lost their names.
        if "_linker" in self.__dict__:
            _delete_linker(self._linker)
            for kind in self._func_types:
                _delete_type(kind)


_NUMBERS = ("i32", "i64", "f32", "f64", "v128")
"""Value types that are not references, by their `wasmtime_valtype_kind_t`."""


def _trap_maker(namespace: str, name: str) -> Callable[[], int]:
    message = f"{namespace}.{name} raised".encode()
    return partial(c.trap_new, message, len(message))


def define_function(linker: int, definition: tuple[bytes, bytes, int, int]) -> None:
    """Add an entry of `WasmtimeHostFunctions.definitions` to a native linker."""
    namespace, name, kind, callback = definition
    check(
        c.linker_define_function(
            linker, namespace, len(namespace), name, len(name), kind, callback, None, None
        )
    )


def _value_type(engine: int, name: str) -> int:
    kind = c.VALUE_KINDS[name]
    if name == "v128":
        extended = ctypes.create_string_buffer(bytes([kind]), 64)
        v128: int = c.valtype_extended(engine, ctypes.addressof(extended))
        return v128
    pointer: int = c.valtype_new(kind)
    return pointer


def described_type(function_type: int) -> FuncType:
    """Return the signature that a native function type stands for."""
    return FuncType(
        _described(c.functype_params(function_type)), _described(c.functype_results(function_type))
    )


def _described(types: int) -> tuple[str, ...]:
    vec = c.ByteVec.from_address(types)
    names = []
    for value_type in (ctypes.c_void_p * vec.size).from_address(vec.data) if vec.size else ():
        description = ctypes.create_string_buffer(64)
        c.valtype_described(value_type, ctypes.addressof(description))
        kind = description.raw[0]
        names.append(_NUMBERS[kind] if kind < len(_NUMBERS) else "(ref)")
        c.valtype_description_delete(ctypes.addressof(description))
    return tuple(names)


def _function_type(engine: int, kind: FuncType) -> int:
    vectors = []
    for types in (kind.params, kind.results):
        values = (ctypes.c_void_p * max(len(types), 1))(*(_value_type(engine, t) for t in types))
        vec = c.ByteVec()
        c.valtype_vec_new(ctypes.addressof(vec), len(types), ctypes.addressof(values))
        vectors.append(vec)
    pointer: int = c.functype_new(ctypes.addressof(vectors[0]), ctypes.addressof(vectors[1]))
    return pointer
