"""WASI of a Wasmer store: wasmtime's, working on Wasmer's memory. See `dl.engine.wasmtime.lent`."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from dl.engine.native.callbacks import Callback
from dl.engine.native.entry import entry
from dl.engine.native.pending import interrupt_guest
from dl.engine.preview1 import PREVIEW1
from dl.engine.protocol import EngineMemory
from dl.engine.wasmer import c
from dl.engine.wasmer.errors import check
from dl.engine.wasmer.externals import external_of
from dl.engine.wasmer.host import native_callback, raised, signature_text
from dl.engine.wasmtime.lent import FUNCTIONS, LentWasi
from dl.errors import EngineError

if TYPE_CHECKING:
    from dl.engine.values import WasiOptions
    from dl.engine.wasmer.store import WasmerStore


class StoreWasi:
    """The WASI context of a store, and its functions, made importable there.

    Attributes:
        callbacks: what must live as long as the native store.

    Raises:
        EngineError: an option cannot be passed to the program, or a file or directory cannot be opened.
    """

    def __init__(self, store: WasmerStore, options: WasiOptions) -> None:
        self._lent = [LentWasi(options)]
        self._memories = _Memories(store)
        self.callbacks: list[Any] = []
        for name, kind in FUNCTIONS.items():
            native, address = native_callback(_callback(self._memories, self._lent, name))
            self.callbacks.append(native)
            raw, text = name.encode(), signature_text(kind)
            check(
                c.store_define_host(
                    store.context(), _NAMESPACE, len(_NAMESPACE), raw, len(raw), text, len(text), address
                )
            )

    def renew(self, options: WasiOptions) -> None:
        """Begin the context anew.

        Raises:
            EngineError: as at the beginning; the context is as it was.
        """
        former, self._lent[0] = self._lent[0], LentWasi(options)
        former.close()

    def close(self) -> None:
        """Free the context; open files are closed."""
        self._memories.clear()
        self._lent[0].close()


_NAMESPACE = PREVIEW1.encode()


class _Memories(dict[int, EngineMemory]):
    """The memories of the instances that have called, by the native ones.

    Args:
        store: their store.
    """

    def __init__(self, store: WasmerStore) -> None:
        self._store = weakref.ref(store)

    def __missing__(self, pointer: int) -> EngineMemory:
        store = self._store()
        assert store is not None  # its guest code calls
        known: EngineMemory = external_of(store, c.memory_external(pointer))
        self[pointer] = known
        return known


def _callback(memories: _Memories, lent: list[LentWasi], name: str) -> Callback:
    @entry
    def called(memory: int, _store: int, arguments: int, count: int) -> int | None:
        try:
            if not memory:
                raise EngineError(f"a module calls {name}, and exports no memory as `memory`")
            lent[0].call(name, memories[memory], arguments, count)
        except BaseException as error:  # noqa: BLE001  carried to the caller whose guest call it interrupts
            return interrupt_guest(error, raised)
        return None

    return called
