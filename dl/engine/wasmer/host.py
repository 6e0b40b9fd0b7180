"""Python functions as WebAssembly imports in Wasmer."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dl.engine.native.callbacks import Callback, raw_callback, typed_callback
from dl.engine.native.entry import entry
from dl.engine.native.pending import interrupt_guest
from dl.engine.native.values import NUMBERS, has_references, returned_values
from dl.engine.wasmer import c
from dl.engine.wasmer.errors import check
from dl.engine.wasmer.references import area_at, read_value, write_values
from dl.errors import EngineError, ValueConversionError
from dl.wasm.types import FuncType
from memory import Uncopied

if TYPE_CHECKING:
    from dl.engine.protocol import Boundary, EngineMemory, RawFunction
    from dl.engine.wasmer.store import WasmerStore

_LETTERS = {
    "i32": "i",
    "i64": "I",
    "f32": "f",
    "f64": "F",
    "v128": "v",
    "externref": "x",
    "funcref": "r",
    "exnref": "n",
}
_PASSED = ("externref", "funcref")
"""References that cross into Python and back."""
VALUE_TYPES = {letter: name for name, letter in _LETTERS.items()}
"""Value types by the letters that the library knows them by."""


STORES: weakref.WeakValueDictionary[int, WasmerStore] = weakref.WeakValueDictionary()
"""The open stores, by the native one, which is all that a callback gets. Each step on it is atomic."""


def letter_of(kind: str) -> str | None:
    """Return the letter of a value type; None for one that the engine does not have."""
    return _LETTERS.get(kind)


def signature_text(kind: FuncType) -> bytes:
    """Return how the library is told a signature."""
    sides = (kind.params, kind.results)
    return ":".join("".join(_LETTERS.get(one, "?") for one in side) for side in sides).encode()


def signature_of(text: str, *, references: bool = False) -> FuncType:
    """Return the signature that the library tells.

    Args:
        text: what it tells.
        references: whether references are named; else they are `(ref)`.
    """

    def named(letters: str) -> tuple[str, ...]:
        names = (VALUE_TYPES[letter] for letter in letters)
        return tuple(name if references or name in NUMBERS else "(ref)" for name in names)

    params, results = text.split(":")
    return FuncType(named(params), named(results))


def take_text(pointer: int) -> bytes:
    """Return the content of bytes that the library hands out, and free them."""
    data = ctypes.c_void_p()
    size = c.bytes_read(pointer, ctypes.addressof(data))
    content = ctypes.string_at(data.value or 0, size) if size else b""
    c.bytes_delete(pointer)
    return content


def raised() -> int:
    """Return what a callback returns that raised: the library makes the ending."""
    return 1


def native_callback(callback: Callback) -> tuple[Any, int]:
    """Return a native function, to be kept as long as it may be called, and its address."""
    native = c.CALLBACK(callback)
    return native, ctypes.cast(native, ctypes.c_void_p).value or 0


NO_GUEST_WASI = "this engine calls WASI through the host"


class WasmerHostFunctions(Uncopied):
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
        make = self._referring if has_references(kind) else typed_callback
        callback = make(kind, function, self._boundary, raised, blocking=blocking, name=name)
        self._add(namespace, name, kind, callback)

    @staticmethod
    def _referring(
        kind: FuncType,
        function: Callable[..., Any],
        boundary: Boundary,
        make_ending: Callable[[], int],
        *,
        blocking: bool,
        name: str,  # noqa: ARG004  as `typed_callback`
    ) -> Callback:
        """Return the callback of a function some of whose values are references; as `typed_callback`."""
        if any(text not in NUMBERS and text not in _PASSED for text in (*kind.params, *kind.results)):
            raise ValueConversionError(
                kind, "a reference that is neither funcref nor externref cannot cross into Python"
            )
        enter = boundary.enter_host if blocking else None
        leave = boundary.exit_host

        @entry
        def called(_memory: int, context: int, slots: int, count: int) -> int | None:
            try:
                token = enter() if enter else None
                store = STORES[context]
                area = area_at(slots, count)
                given = [read_value(store, text, area, at) for at, text in enumerate(kind.params)]
                values = returned_values(kind, function(*given))
                store.objects.begin()
                try:
                    write_values(store, kind.results, values, area, kind, "results")
                finally:
                    store.objects.end()
                if enter:
                    leave(token)
            except BaseException as error:  # noqa: BLE001  carried to the caller whose guest call it interrupts
                return interrupt_guest(error, make_ending)
            return None

        return called

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
