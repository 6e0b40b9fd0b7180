"""Python functions as WebAssembly imports."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from dl.engine.native.callbacks import raw_callback, typed_callback
from dl.engine.native.entry import entry
from dl.engine.native.pending import interrupt_guest
from dl.engine.native.values import NUMBERS, has_references, returned_values
from dl.engine.wasmtime import c
from dl.engine.wasmtime.errors import check
from dl.engine.wasmtime.references import STORES, read_value, write_values
from dl.errors import ValueConversionError
from dl.records import NamedTuple
from dl.wasm.types import FuncType
from memory import Uncopied

if TYPE_CHECKING:
    from dl.engine.protocol import Boundary, RawFunction
    from dl.engine.wasmtime.engine import WasmtimeEngine


class Definition(NamedTuple):
    """A host function.

    Attributes:
        namespace, name: what it is imported by, encoded.
        kind: its native type.
        callback: its native callback.
        checked: whether its values may be references.
        of_store: makes the callback of one store, with its own boundary; None if the one callback serves all stores.
    """

    namespace: bytes
    name: bytes
    kind: int
    callback: int
    checked: bool
    of_store: Callable[[Boundary], Any] | None


class WasmtimeHostFunctions(Uncopied):
    """Host functions of one program, kept in a native linker that each new store clones.

    `_lock` guards the native linkers and the list of definitions. A store made earlier catches up by index when it next
    instantiates (`definitions` only grows).

    Args:
        engine: what compiles the modules that import the functions.
        boundary: what happens around each function that may block.
    """

    def __init__(self, engine: WasmtimeEngine, boundary: Boundary) -> None:
        self._lock = threading.Lock()
        self._engine = engine
        self._boundary = boundary
        self._new_boundary: Callable[[], Boundary] | None = getattr(boundary, "own", None)
        self.definitions: list[Definition] = []
        self._callbacks: list[Any] = []
        self._func_types: list[int] = []
        self._linker: int = c.linker_new(engine.pointer)
        c.linker_allow_shadowing(self._linker, True)
        self._wasi_linker = 0  # made by `offer_wasi`
        self._kept: list[Any] = []

    def define(
        self,
        namespace: str,
        name: str,
        kind: FuncType,
        function: Callable[..., Any],
        *,
        blocking: bool = True,
    ) -> None:
        if has_references(kind):
            self._define_checked(namespace, name, kind, function, blocking=blocking)
            return

        def callback(boundary: Boundary) -> Callable[..., Any]:
            ending = _trap_maker(namespace, name)
            return typed_callback(kind, function, boundary, ending, blocking=blocking, name=name)

        self._add(
            namespace,
            name,
            kind,
            callback(self._boundary),
            of_store=callback if self._new_boundary is not None else None,
        )

    def _define_checked(
        self, namespace: str, name: str, kind: FuncType, function: Callable[..., Any], *, blocking: bool
    ) -> None:
        """Define a function some of whose values are references."""
        if any(text not in c.VALUE_KINDS for text in (*kind.params, *kind.results)):
            raise ValueConversionError(
                kind, "a reference that is neither funcref nor externref cannot cross into Python"
            )
        enter = self._boundary.enter_host if blocking else None
        leave, make_trap = self._boundary.exit_host, _trap_maker(namespace, name)
        params, results = (c.Val * len(kind.params)).from_address, (c.Val * len(kind.results)).from_address

        @entry
        def called(
            _env: int, caller: int, arguments: int, _count: int, returned: int, _results: int
        ) -> int | None:
            try:
                token = enter() if enter else None
                store = STORES[c.caller_context(caller)]
                area = params(arguments) if kind.params else ()
                given = [read_value(store, value, owned=False) for value in area]
                values = returned_values(kind, function(*given))
                if values:
                    write_values(store, kind.results, values, results(returned), kind, "results")
                if enter:
                    leave(token)
            except BaseException as error:  # noqa: BLE001  carried to the caller whose guest call it interrupts
                return interrupt_guest(error, make_trap)
            return None

        self._add(namespace, name, kind, called, checked=True)

    def define_raw(self, namespace: str, name: str, kind: FuncType, function: RawFunction) -> None:
        ending = _trap_maker(namespace, name)
        self._add(namespace, name, kind, raw_callback(kind, function, self._boundary, ending))

    def _add(
        self,
        namespace: str,
        name: str,
        kind: FuncType,
        callback: Callable[..., Any],
        *,
        checked: bool = False,
        of_store: Callable[[Boundary], Callable[..., Any]] | None = None,
    ) -> None:
        native = (c.CHECKED_CALLBACK if checked else c.HOST_CALLBACK)(callback)
        definition = Definition(
            namespace.encode(),
            name.encode(),
            _function_type(self._engine.pointer, kind),
            ctypes.cast(native, ctypes.c_void_p).value or 0,
            checked,
            None if of_store is None else lambda boundary: c.HOST_CALLBACK(of_store(boundary)),
        )
        with self._lock:
            # First, so that the callback and the type outlive the native linker whatever happens next.
            self._callbacks.append(native)
            self._func_types.append(definition.kind)
            define_function(self._linker, definition)
            if self._wasi_linker:
                define_function(self._wasi_linker, definition)
            self.definitions.append(definition)

    def offer_wasi(self, namespace: str, memory: Any) -> None:
        with self._lock:
            assert not self._wasi_linker
            self._kept.append(memory)
            self._wasi_linker = c.linker_new(self._engine.pointer)
            c.linker_allow_shadowing(self._wasi_linker, True)
            check(c.linker_define_wasi(self._wasi_linker))
            for definition in self.definitions:
                define_function(self._wasi_linker, definition)
            # What is defined must belong to some store, though a shared memory belongs to none.
            store = c.store_new(self._engine.pointer, None, None)
            try:
                define_extern(self._wasi_linker, c.store_context(store), namespace, "memory", memory.extern())
            finally:
                c.store_delete(store)

    def instantiate_with_wasi(
        self, context: int, memories: Iterable[tuple[str, str, c.Extern]], instantiate: Callable[[int], Any]
    ) -> Any:
        """Instantiate a module that imports WASI; see `Store.instantiate_with_wasi`.

        All stores of the program share one native linker: to copy WASI's 50 functions into that of each would take longer than
        making the instance. So each store puts its memories there in turn.

        Args:
            context: the store's context.
            memories: namespace, name and native form of the store's memories.
            instantiate: instantiates it with a native linker, and runs nothing of the program.
        """
        with self._lock:
            for namespace, name, extern in memories:
                define_extern(self._wasi_linker, context, namespace, name, extern)
            return instantiate(self._wasi_linker)

    def clone(self) -> tuple[int, int]:
        """Return a native linker with all definitions, and how many they are."""
        with self._lock:
            linker: int = c.linker_clone(self._linker)
            return linker, len(self.definitions)

    def new_boundary(self) -> Boundary | None:
        """Return a boundary for the functions of one store; None if stores use the program's, and its callbacks."""
        return None if self._new_boundary is None else self._new_boundary()

    def __del__(self, _delete_linker: Any = c.linker_delete, _delete_type: Any = c.functype_delete) -> None:
        # The defaults are there for the interpreter's end, when modules have lost their names.
        if "_linker" in self.__dict__:
            _delete_linker(self._linker)
            if self._wasi_linker:
                _delete_linker(self._wasi_linker)
            for kind in self._func_types:
                _delete_type(kind)


def _trap_maker(namespace: str, name: str) -> Callable[[], int]:
    message = f"{namespace}.{name} raised".encode()
    return partial(c.trap_new, message, len(message))


def define_extern(linker: int, context: int, namespace: str, name: str, extern: c.Extern) -> None:
    """Add an external of a store to a native linker."""
    raw_namespace, raw_name = namespace.encode(), name.encode()
    check(
        c.linker_define(
            linker,
            context,
            raw_namespace,
            len(raw_namespace),
            raw_name,
            len(raw_name),
            ctypes.addressof(extern),
        )
    )


def define_function(linker: int, definition: Definition, boundary: Boundary | None = None) -> Any:
    """Add an entry of `WasmtimeHostFunctions.definitions` to a native linker.

    Args:
        linker: the native linker.
        definition: the entry.
        boundary: that of the store whose linker it is, if it has one of its own.

    Returns:
        What must live as long as the linker's functions may be called: the store's own callback, or None.
    """
    namespace, name, kind, callback, checked, of_store = definition
    native = None
    if boundary is not None and of_store is not None:
        native = of_store(boundary)
        callback = ctypes.cast(native, ctypes.c_void_p).value or 0
    define = c.linker_define_checked if checked else c.linker_define_function
    check(define(linker, namespace, len(namespace), name, len(name), kind, callback, None, None))
    return native


def value_type(engine: int, name: str) -> int:
    """Make a native value type, which the caller owns."""
    kind = c.VALUE_KINDS[name]
    if name == "v128":
        extended = ctypes.create_string_buffer(bytes([kind]), 64)
        v128: int = c.valtype_extended(engine, ctypes.addressof(extended))
        return v128
    pointer: int = c.valtype_new(kind)
    return pointer


_OTHER = "(ref)"
_TOPS = (
    "externref",
    "externref",
    "funcref",
    "funcref",
    "funcref",
    *["anyref"] * 8,
    "exnref",
    "exnref",
    "exnref",
)
"""The top of the hierarchy of each kind of heap type, by `wasmtime_heaptype_kind_t`."""

_HEAP_KIND = 16
"""Where a native value type has the kind of its heap type, bytes from its beginning."""


def described_type(function_type: int, *, references: bool = False) -> FuncType:
    """Return the signature that a native function type stands for.

    Args:
        function_type: the native type.
        references: whether references are named by the tops of their hierarchies; else by some text in parentheses.
    """
    return FuncType(
        _described(c.functype_params(function_type), references=references),
        _described(c.functype_results(function_type), references=references),
    )


def _described(types: int, *, references: bool) -> tuple[str, ...]:
    vec = c.ByteVec.from_address(types)
    names = []
    for value_type in (ctypes.c_void_p * vec.size).from_address(vec.data) if vec.size else ():
        description = ctypes.create_string_buffer(64)
        c.valtype_described(value_type, ctypes.addressof(description))
        kind = description.raw[0]
        if kind < len(NUMBERS):
            names.append(NUMBERS[kind])
        else:
            names.append(_TOPS[description.raw[_HEAP_KIND]] if references else _OTHER)
        c.valtype_description_delete(ctypes.addressof(description))
    return tuple(names)


def _function_type(engine: int, kind: FuncType) -> int:
    vectors = []
    for types in (kind.params, kind.results):
        values = (ctypes.c_void_p * max(len(types), 1))(*(value_type(engine, t) for t in types))
        vec = c.ByteVec()
        c.valtype_vec_new(ctypes.addressof(vec), len(types), ctypes.addressof(values))
        vectors.append(vec)
    pointer: int = c.functype_new(ctypes.addressof(vectors[0]), ctypes.addressof(vectors[1]))
    return pointer
