"""WASI preview 1, the engine's own, for programs that may not export their memory and may share it.

The engine's functions work on the memory that the calling instance exports. So they are reached through a forwarder,
a generated module that imports the program's memory, exports it, and calls them:

* memory that is not shared: the forwarder lives in the program's one store;
* shared memory: one store of its own owns the WASI context, so that files, directory and arguments are the process's
  and not a thread's; the threads' stores reach it through a host call, one at a time.

What concerns no descriptor (`NATIVE`) is bound to the forwarder where the stores are the same, and never leaves WebAssembly
there; a static main module that exports its memory calls the engine directly, until there is a forwarder. All else goes
through the descriptors of `dl.wasix.files.files`, which call `WasiCalls`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from dl.engine.code_cache import Compiler
from dl.engine.preview1 import FUNCTIONS, PREVIEW1, UNSTABLE, WASIX
from dl.errors import LinkerUsageError, TrapError
from dl.glue.forwarder import CLOCK, forwarder_module
from dl.glue.generated import generated
from dl.glue.names import BASE_NAMESPACE
from dl.glue.resolution import FromNamespace
from dl.logs import logger
from dl.program.host_symbols import SystemFunction
from dl.wasm.records import Import
from dl.wasm.types import MemoryType

if TYPE_CHECKING:
    from dl.engine.protocol import (
        CompiledModule,
        EngineInstance,
        EngineMemory,
        HostFunctions,
        RawFunction,
        Slots,
        Store,
    )
    from dl.engine.values import WasiOptions
    from dl.program.host_symbols import HostSymbols

log = logger("dl.threads")

_FORWARDED = "wasi"
_CLOSE_SECONDS = 2.0
_CLOCK = "clock_time_get"

NATIVE = (
    "args_get",
    "args_sizes_get",
    "environ_get",
    "environ_sizes_get",
    "random_get",
)
"""Functions that concern no descriptor and never wait."""


_INVALID, _OUTSIDE_MEMORY = 28, 78
_TRAPS = {
    "Invalid enum value": _INVALID,
    "Invalid flag value": _INVALID,
    "number too small to fit": _INVALID,
    "number too large to fit": _INVALID,
    "Pointer not aligned": _INVALID,
    "Pointer out of bounds": _OUTSIDE_MEMORY,
    "Pointer overflow": _OUTSIDE_MEMORY,
}
"""Errnos for traps by which the engine's WASI refuses arguments, by how their text begins (wiggle's `GuestError`)."""


CALL_OUTPUT = frozenset(("fd_close", "fd_datasync", "fd_sync", "fd_write"))
"""Functions that may call an output callable: what writes to a stream, and what might write what is left."""


class WasiCalls:
    """The functions of a program's WASI context, for host code.

    Attributes:
        lock: held around every call: one at a time. The engine's WASI calls nothing of ours but the output callbacks of a
            user, which must not call into the program: a call inside of a call raises. Nothing is waited for under it.
        running: whether a call is under way; of the holder of the lock.
    """

    def __init__(self, forwarder: EngineInstance) -> None:
        self.lock = threading.RLock()
        self.running = False
        self._forwarder = forwarder
        self._raw: dict[str, RawFunction] = {}
        self._typed: dict[str, Callable[..., int]] = {}

    def raw(self, name: str) -> RawFunction:
        """Return a function that works on slots; call it under `lock`."""
        known = self._raw.get(name)
        if known is None:
            function = self._forwarder.raw_function(name, calls_back=name in CALL_OUTPUT)
            known = self._raw[name] = self._answering(function)
        return known

    def call(self, name: str, *arguments: int) -> int:
        """Call a function under `lock` and return its errno.

        Args:
            name: its name.
            arguments: each as wide as its signature says.
        """
        function = self._typed.get(name)
        if function is None:
            function = self._typed[name] = self._forwarder.function(name, FUNCTIONS[name])
        self._begin()
        try:
            return function(*arguments)
        except TrapError as trap:
            return _errno_of(trap)
        finally:
            self.running = False

    def _begin(self) -> None:
        if self.running:
            raise LinkerUsageError(
                "an output callback calls functions of the program, which use WASI in turn"
            )
        self.running = True

    def _answering(self, function: RawFunction) -> RawFunction:
        """Make a function of the engine's answer with an errno where it traps because of its arguments."""

        def call(slots: Slots) -> None:
            if self.running:
                self._begin()
            self.running = True
            try:
                function(slots)
            except TrapError as trap:
                slots.set_32(0, _errno_of(trap))
            finally:
                self.running = False

        return call


def _errno_of(trap: TrapError) -> int:
    """Return the errno for a trap by which WASI refuses arguments; raise any other."""
    errno = next((errno for text, errno in _TRAPS.items() if trap.reason.startswith(text)), None)
    if errno is None:
        raise trap
    return errno


def direct_wasi(host: HostSymbols) -> None:
    """Let modules call what concerns no descriptor directly: each must export its memory."""
    _bind_native(host, PREVIEW1)


def forwarded_wasi(host: HostSymbols) -> None:
    """Let modules call what concerns no descriptor through the forwarder in their own store."""
    _bind_native(host, _FORWARDED)


def _bind_native(host: HostSymbols, source: str) -> None:
    functions = {
        name: SystemFunction(FUNCTIONS[name], binding=FromNamespace(source, name)) for name in NATIVE
    }
    _add(host, functions)


def _add(host: HostSymbols, functions: dict[str, SystemFunction]) -> None:
    for namespace in (PREVIEW1, UNSTABLE, WASIX):
        known = host.system.get(namespace, {})
        host.system[namespace] = known | functions


def add_forwarder(compiler: Compiler, store: Store, memory: MemoryType, host: HostSymbols) -> WasiCalls:
    """Instantiate the forwarder in a store that has a WASI context and whose memory is defined.

    From here on modules reach the clocks through it, which leave WebAssembly only for the CPU times: the system interface's
    own function costs ten times as much, and programs ask for the time often.
    """
    kind = FUNCTIONS[_CLOCK]
    clock = host.bind_system(PREVIEW1, _CLOCK, kind, "the linker")
    forwarder = store.instantiate(_forwarder(compiler, memory, clock), _FORWARDED)
    store.define_instance(_FORWARDED, forwarder)
    if clock is not None:
        _add(host, {_CLOCK: SystemFunction(kind, binding=FromNamespace(_FORWARDED, CLOCK))})
    return WasiCalls(forwarder)


def _forwarder(compiler: Compiler, memory: MemoryType, clock: FromNamespace | None = None) -> CompiledModule:
    entry = Import(BASE_NAMESPACE, "memory", "memory", memory, 0)
    return generated(
        compiler,
        ("wasi forwarder", memory, clock),
        _FORWARDED,
        lambda: forwarder_module(FUNCTIONS.items(), entry, PREVIEW1, clock),
    )


class SharedWasi:
    """The WASI context of a program whose threads share memory, in a store of its own.

    Attributes:
        calls: its functions.
    """

    def __init__(
        self,
        compiler: Compiler,
        functions: HostFunctions,
        options: WasiOptions,
        memory: EngineMemory,
        kind: MemoryType,
    ) -> None:
        self._store = compiler.engine.new_store(functions)
        self._store.enable_wasi(options)
        self._store.define_memory(BASE_NAMESPACE, "memory", memory)
        forwarder = self._store.instantiate(_forwarder(compiler, kind), _FORWARDED)
        self.calls = WasiCalls(forwarder)

    def install(self, host: HostSymbols) -> None:
        """Let modules call what concerns no descriptor in this context."""
        _add(
            host,
            {
                name: SystemFunction(FUNCTIONS[name], raw=self._locked(self.calls.raw(name)))
                for name in NATIVE
            },
        )

    def _locked(self, function: RawFunction) -> RawFunction:
        lock = self.calls.lock

        def call(slots: Slots) -> None:
            with lock:
                function(slots)

        return call

    def renew(self, options: WasiOptions) -> None:
        """Begin the context anew; see `Store.renew_wasi`."""
        with self.calls.lock:
            self._store.renew_wasi(options)

    def close(self) -> None:
        """Free the context; open files are closed.

        Unless a thread is still in a call, such as one whose output callback does not return, or one that opens a file of the
        host whose file system does not answer: then with that call's end.
        """
        calls = self.calls
        taken = calls.lock.acquire(timeout=_CLOSE_SECONDS)
        try:
            if taken and not calls.running:
                self._store.close()
                return
        finally:
            if taken:
                calls.lock.release()
        log.warning("the WASI context stays: a call into it does not return")
