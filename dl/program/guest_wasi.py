"""WASI that a program's threads answer without leaving WebAssembly: see `dl.glue.guest_wasi`."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from dl.engine.code_cache import Compiler
from dl.forks import in_forked_child, renew
from dl.glue.generated import generated
from dl.glue.guest_wasi import (
    ATTENTION,
    PART_BYTES,
    PROVIDE,
    PROVIDE_TYPE,
    READ_CLOCK,
    READ_CLOCK_TYPE,
    SCRATCH_NAMESPACE,
    SET_CLOCK,
    SET_CLOCK_TYPE,
    guest_wasi_module,
)
from dl.glue.names import BASE_NAMESPACE
from dl.glue.resolution import FromNamespace
from dl.records import dataclass
from dl.wasm.records import Import
from dl.wasm.types import Limits, MemoryType

if TYPE_CHECKING:
    from dl.engine.protocol import Engine, EngineInstance, EngineMemory, HostFunctions, Store
    from dl.engine.values import WasiOptions

NAMESPACE = "guest_wasi"
"""Where each group defines its instance."""

_PAGES = 64
_SCRATCH_TYPE = MemoryType(Limits(1, _PAGES, shared=True, is64=False))
_CLOSE_ENOUGH_NS, _MOST_READINGS = 2_000, 10


class Scratch:
    """Where an engine's WASI puts results for the stores of all programs; its beginning holds the latest monotonic time.

    Args:
        engine: the engine.

    Raises:
        EngineError: the engine cannot make the memory.

    Attributes:
        memory: the memory.
    """

    def __init__(self, engine: Engine) -> None:
        self.memory: EngineMemory = engine.shared_memory(_SCRATCH_TYPE)
        self._latest = ctypes.c_uint64.from_address(self.memory.data_address())
        self.set_attention(0, wanted=True)
        self._lock = threading.Lock()  # guards `_free` and `_next`
        self._free: list[int] = []
        self._next = PART_BYTES

    @property
    def parts(self) -> int:
        """How many parts were ever in use at once."""
        return self._next // PART_BYTES - 1

    def take(self) -> int | None:
        """Return the address of a part that no store has; None if there is no more."""
        with self._lock:
            if self._free:
                return self._free.pop()
            if self._next + PART_BYTES > self.memory.data_size() and self.memory.grow(1) is None:
                return None
            part = self._next
            self._next += PART_BYTES
            return part

    def give_back(self, part: int) -> None:
        """Take back a part; its store makes no more calls."""
        with self._lock:
            self._free.append(part)

    def set_attention(self, part: int, *, wanted: bool) -> None:
        """Say whether the host wants the thread of a part's store to call it."""
        ctypes.c_uint32.from_address(self.memory.data_address() + part + ATTENTION).value = wanted

    def latest(self) -> int:
        """Return the latest monotonic time that a thread was told, on the host's clock, nanoseconds."""
        return self._latest.value

    def forked(self) -> None:
        """Make the lock anew, in a forked child."""
        renew(self._lock)


_SCRATCHES: WeakKeyDictionary[Any, Scratch] = WeakKeyDictionary()
_lock = threading.Lock()  # guards `_SCRATCHES`


def _forked() -> None:
    renew(_lock)
    for scratch in _SCRATCHES.values():
        scratch.forked()


in_forked_child(_forked)


def _scratch(engine: Engine) -> Scratch:
    with _lock:
        known = _SCRATCHES.get(engine)
        if known is None:
            known = _SCRATCHES[engine] = Scratch(engine)
        return known


@dataclass(frozen=True)
class _Numbers:
    """What a program's threads answer: the last arguments of `PROVIDE`."""

    sizes: tuple[int, ...]
    resolutions: tuple[int, ...]
    clock_began: int


class GuestWasi:
    """A program's side: the code, and what it answers.

    Args:
        compiler: compiles the module.
        functions: the program's host functions.
        memory: type of its memory.
        host: what answers the rest, for each name of `dl.glue.guest_wasi.ANSWERED`.
        options: the program's arguments and environment.
        resolutions: those of the four clocks, nanoseconds.
        clock_began: when its monotonic clock began, on the host's.

    Raises:
        EngineError: the engine cannot make the scratch memory.

    Attributes:
        is_asked: whether a thread has what it answers.
    """

    def __init__(
        self,
        compiler: Compiler,
        functions: HostFunctions,
        memory: MemoryType,
        host: Mapping[str, FromNamespace],
        options: WasiOptions,
        resolutions: tuple[int, ...],
        clock_began: int,
    ) -> None:
        self.scratch = _scratch(compiler.engine)
        functions.offer_wasi(SCRATCH_NAMESPACE, self.scratch.memory)
        entry = Import(BASE_NAMESPACE, "memory", "memory", memory, 0)
        self._code = generated(
            compiler,
            (NAMESPACE, memory, tuple(host.items())),
            NAMESPACE,
            lambda: guest_wasi_module(_SCRATCH_TYPE, entry, host),
        )
        self.numbers = _Numbers(_sizes(options), resolutions, clock_began)
        self.is_asked = False

    def renew(self, options: WasiOptions) -> bool:
        """Answer for other arguments and another environment, unless a thread has been answered; return whether that is so.

        No thread of the program runs meanwhile.
        """
        if self.is_asked:
            return False
        self.numbers = _Numbers(_sizes(options), self.numbers.resolutions, self.numbers.clock_began)
        return True

    def monotonic_ns(self) -> int:
        """Return the host's monotonic clock, but nothing earlier than what a thread of the guest was told."""
        return max(time.monotonic_ns(), self.scratch.latest())

    def in_store(self, store: Store) -> StoreWasi:
        """Make the instance of a store, and define it there."""
        instance = store.instantiate_with_wasi(self._code, NAMESPACE)
        store.define_instance(NAMESPACE, instance)
        return StoreWasi(self, store, instance)


def _sizes(options: WasiOptions) -> tuple[int, ...]:
    variables = [f"{name}={value}" for name, value in options.env]
    return len(options.args), _bytes_of(options.args), len(variables), _bytes_of(variables)


def _bytes_of(texts: tuple[str, ...] | list[str]) -> int:
    return sum(len(text.encode()) + 1 for text in texts)


class StoreWasi:
    """A store's side. Used by the thread that uses the store.

    Attributes:
        offset: how far the engine's monotonic clock is behind the host's, nanoseconds, once the store tells the time.
    """

    offset = 0

    def __init__(self, program: GuestWasi, store: Store, instance: EngineInstance) -> None:
        self._program = program
        self._store = store
        self._instance = instance
        self._part: int | None = None
        self._has_clock = False
        self._lock = threading.Lock()  # guards `_wanted`, and what the part says of it
        self._wanted = False

    def set_attention(self, *, wanted: bool) -> None:
        """Say whether the thread's next call has to go to the host; from any thread."""
        with self._lock:
            self._wanted = wanted
            if self._part is not None:
                self._program.scratch.set_attention(self._part, wanted=wanted)

    def provide(self) -> bool:
        """Have the store answer, from its next call on; return whether it can."""
        if self._part is not None:
            return True
        part = self._program.scratch.take()
        if part is None:
            return False
        numbers = self._program.numbers
        self._program.is_asked = True
        with self._lock:
            self._part = part
            self._program.scratch.set_attention(part, wanted=self._wanted)
        try:
            self._store.provide_wasi()
            self._instance.function(PROVIDE, PROVIDE_TYPE)(
                part, *numbers.sizes, *numbers.resolutions, numbers.clock_began
            )
        except BaseException:
            self.close()
            raise
        return True

    def provide_clock(self) -> None:
        """Have the store tell real and monotonic time as well.

        The engine's clock is compared with the host's: what lies between two readings of the host's, at most. The later bound
        is taken, so that nobody who was told to wait until a time is told an earlier one afterwards.
        """
        if self._has_clock or not self.provide():
            return
        read = self._instance.function(READ_CLOCK, READ_CLOCK_TYPE)
        best, offset = 1 << 62, 0
        for _ in range(_MOST_READINGS):
            before = time.monotonic_ns()
            engine = read()
            after = time.monotonic_ns()
            if after - before < best:
                best, offset = after - before, after - engine
                if best < _CLOSE_ENOUGH_NS:
                    break
        self.set_clock(offset)

    def set_clock(self, offset: int) -> None:
        """Have the store tell the time by the engine's clock, which is so many nanoseconds behind the host's."""
        self._instance.function(SET_CLOCK, SET_CLOCK_TYPE)(offset)
        self.offset = offset
        self._has_clock = True

    def close(self) -> None:
        """Give back the store's part, before the store is closed; idempotent."""
        with self._lock:
            part, self._part = self._part, None
        if part is not None:
            self._program.scratch.give_back(part)
