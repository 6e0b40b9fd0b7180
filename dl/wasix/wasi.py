"""WASI preview 1, the engine's own, for programs that may not export their memory and may share it.

The engine's functions work on the memory that the calling instance exports. So modules reach them through a forwarder,
a generated module that imports the program's memory, exports it, and calls them:

* memory that is not shared: the forwarder lives in the program's one store, and a call never leaves WebAssembly;
* shared memory: one store of its own owns the WASI context, so that files, directory and arguments are the process's
  and not a thread's; the threads' stores reach it through a host call, one at a time;
* a static main module that exports its memory calls the engine directly.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from dl.bindings import BASE_NAMESPACE, FromNamespace
from dl.engine.protocol import (
    CompiledModule,
    Engine,
    EngineMemory,
    HostFunctions,
    RawCall,
    Store,
    WasiOptions,
)
from dl.glue import forwarder_module
from dl.host import SystemFunction
from dl.images import compiled
from dl.wasix.preview1 import FUNCTIONS, NAMESPACE
from dl.wasm.module import Import
from dl.wasm.types import MemoryType

if TYPE_CHECKING:
    from dl.host import HostSymbols

_FORWARDED = "wasi"


def direct_wasi(host: HostSymbols) -> None:
    """Let modules call the engine's WASI themselves: each must export its memory."""
    system = host.system.setdefault(NAMESPACE, {})
    system |= {
        name: SystemFunction(kind, binding=FromNamespace(NAMESPACE, name)) for name, kind in FUNCTIONS.items()
    }


def forwarded_wasi(host: HostSymbols) -> None:
    """Let modules call WASI through the forwarder in their own store."""
    system = host.system.setdefault(NAMESPACE, {})
    system |= {
        name: SystemFunction(kind, binding=FromNamespace(_FORWARDED, name))
        for name, kind in FUNCTIONS.items()
    }


def add_forwarder(engine: Engine, store: Store, memory: MemoryType) -> None:
    """Instantiate the forwarder in a store that has a WASI context and whose memory is defined."""
    store.define_instance(_FORWARDED, store.instantiate(_forwarder(engine, memory)))


def _forwarder(engine: Engine, memory: MemoryType) -> CompiledModule:
    entry = Import(BASE_NAMESPACE, "memory", "memory", memory, 0)
    return compiled(
        engine,
        ("wasi forwarder", memory),
        "wasi",
        lambda: forwarder_module(FUNCTIONS.items(), entry, NAMESPACE),
    )


class SharedWasi:
    """The WASI context of a program whose threads share memory.

    `_lock` guards the store: one call at a time. It is a leaf: the engine's WASI calls nothing of ours but the output
    callbacks of a user, which must not call into the program.
    """

    def __init__(
        self,
        engine: Engine,
        functions: HostFunctions,
        options: WasiOptions,
        memory: EngineMemory,
        kind: MemoryType,
    ) -> None:
        self._lock = threading.Lock()
        self._store = engine.new_store(functions)
        self._store.enable_wasi(options)
        self._store.define_memory(BASE_NAMESPACE, "memory", memory)
        self._forwarder = self._store.instantiate(_forwarder(engine, kind))

    def install(self, host: HostSymbols) -> None:
        """Let modules call WASI through this context."""
        system = host.system.setdefault(NAMESPACE, {})
        system |= {
            name: SystemFunction(kind, raw=self._locked(self._forwarder.raw_function(name)))
            for name, kind in FUNCTIONS.items()
        }

    def _locked(self, function: RawCall) -> RawCall:
        lock = self._lock

        def call(area: int, slots: int) -> None:
            with lock:
                function(area, slots)

        return call

    def close(self) -> None:
        """Free the context; open files are closed."""
        with self._lock:
            self._store.close()
