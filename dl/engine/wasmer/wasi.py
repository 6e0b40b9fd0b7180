"""WASI of a Wasmer store: wasmtime's, working on Wasmer's memory. See `dl.engine.wasmtime.lent`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dl.engine.native.callbacks import Callback
from dl.engine.native.entry import entry
from dl.engine.native.pending import interrupt_guest
from dl.engine.preview1 import PREVIEW1
from dl.engine.protocol import EngineMemory, WasiOptions
from dl.engine.wasmer import c
from dl.engine.wasmer.errors import check
from dl.engine.wasmer.host import native_callback, raised, signature_text
from dl.engine.wasmtime.lent import FUNCTIONS, LentWasi
from dl.errors import EngineError

if TYPE_CHECKING:
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
        self.callbacks: list[Any] = []
        for name, kind in FUNCTIONS.items():
            native, address = native_callback(_callback(store.memory, self._lent, name))
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
        self._lent[0].close()


_NAMESPACE = PREVIEW1.encode()


def _callback(memory: list[EngineMemory], lent: list[LentWasi], name: str) -> Callback:
    @entry
    def called(_env: int, _caller: int, arguments: int, count: int) -> int | None:
        try:
            if not memory:
                raise EngineError(
                    f"the program calls {name} before it has a memory that is exported as `memory`"
                )
            lent[0].call(name, memory[0], arguments, count)
        except BaseException as error:  # noqa: BLE001  carried to the caller whose guest call it interrupts
            return interrupt_guest(error, raised)
        return None

    return called
