"""WASI of wasmtime for a program that runs on another engine.

wasmtime lets an embedder provide linear memories. A store of ours has an instance for each memory that WASI is asked to work
on, a forwarder whose memory is provided: it is the other engine's, byte for byte. The forwarder's functions call those of WASI,
which work on the memory that the calling instance exports. So programs see the same files, errors and texts on both engines.
Source: ``wasmtime.h``, ``wasmtime_config_host_memory_creator_set``.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from typing import TYPE_CHECKING, Any

from dl.engine.native.entry import entry
from dl.engine.native.traps import Names
from dl.engine.preview1 import FUNCTIONS as PREVIEW1_FUNCTIONS
from dl.engine.preview1 import PREVIEW1, signature
from dl.engine.wasmtime import c
from dl.engine.wasmtime.errors import check, free_ending, raise_ending, raise_instantiation_ending
from dl.engine.wasmtime.wasi import wasi_config
from dl.errors import EngineError
from dl.forks import in_forked_child, renew
from dl.wasm.encode import ModuleBuilder, call, local_get
from dl.wasm.types import Limits, MemoryType
from memory import ADDRESS_SPACE_BYTES, PAGE_BYTES, Uncopied

if TYPE_CHECKING:
    from dl.engine.protocol import EngineMemory
    from dl.engine.values import WasiOptions

FUNCTIONS = PREVIEW1_FUNCTIONS | {"proc_exit": signature("i:"), "sched_yield": signature(":i")}
"""Every function of preview 1."""

_MOST_PAGES = ADDRESS_SPACE_BYTES // PAGE_BYTES
_STACK_BYTES = 64 << 10
"""Of the forwarder, which only calls the host."""

_Finalizer: Any = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_GetMemory: Any = ctypes.CFUNCTYPE(
    ctypes.c_size_t, ctypes.c_size_t, ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t)
)
_GrowMemory: Any = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t)


class _LinearMemory(ctypes.Structure):
    """``wasmtime_linear_memory_t``."""

    _fields_ = (
        ("env", ctypes.c_size_t),
        ("get_memory", _GetMemory),
        ("grow_memory", _GrowMemory),
        ("finalizer", _Finalizer),
    )


_NewMemory: Any = ctypes.CFUNCTYPE(
    ctypes.c_size_t,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_size_t,
    ctypes.c_size_t,
    ctypes.c_size_t,
    ctypes.POINTER(_LinearMemory),
)


class _MemoryCreator(ctypes.Structure):
    """``wasmtime_memory_creator_t``."""

    _fields_ = (("env", ctypes.c_void_p), ("new_memory", _NewMemory), ("finalizer", _Finalizer))


class _Place:
    """Where the bytes of a lent memory are, and how many wasmtime has been told of."""

    __slots__ = ("address", "size")

    def __init__(self, address: int, size: int) -> None:
        self.address = address
        self.size = size


_places: dict[int, _Place] = {}
"""Places by their number, for the callbacks. Each entry is written and read by the thread that uses its context."""

_making = threading.local()
"""The number of the place whose memory the calling thread instantiates."""


# What these do cannot fail, and is no call; a signal that arrives at their start is handled by whatever Python code runs next,
# which needs the `try` for CPython 3.10: see `entry`.
@entry
def _get_memory(number: int, size: Any, capacity: Any) -> int:
    try:
        place = _places[number]
        size[0], capacity[0] = place.size, ADDRESS_SPACE_BYTES
        return place.address
    finally:
        pass


@entry
def _grow_memory(number: int, size: int) -> int:
    try:
        _places[number].size = size
        return 0
    finally:
        pass


@entry
def _nothing(_env: int) -> None:
    try:
        pass
    finally:
        pass


@entry
def _new_memory(
    _env: int, _kind: int, _minimum: int, _maximum: int, _reserved: int, _guard: int, out: Any
) -> int:
    try:
        memory = out[0]
        memory.env, memory.get_memory, memory.grow_memory = _making.number, _GET, _GROW
        memory.finalizer = _DONE
        return 0
    finally:
        pass


_GET, _GROW, _DONE = _GetMemory(_get_memory), _GrowMemory(_grow_memory), _Finalizer(_nothing)
_CREATOR = _MemoryCreator(None, _NewMemory(_new_memory), _DONE)


class _Lender:
    """The process's engine for lent WASI, with the code of the forwarder."""

    def __init__(self) -> None:
        config = c.config_new()
        c.config_max_stack(config, _STACK_BYTES)
        c.config_parallel(config, False)
        c.config_host_memory_creator(config, ctypes.addressof(_CREATOR))
        self.engine: int = c.engine_new(config)
        wasm, module = _forwarder(), ctypes.c_void_p()
        check(c.module_new(self.engine, wasm, len(wasm), ctypes.addressof(module)))
        self.module = module.value


_lock = threading.Lock()
_lender: _Lender | None = None
"""Made when first needed; guarded by `_lock`."""

_numbers = itertools.count(1)  # not an iterator over a range: without a GIL that gives two threads one number


def _forked() -> None:
    global _lender  # noqa: PLW0603  the parent's is of no use in a child
    renew(_lock)
    _lender = None


in_forked_child(_forked)


def _the_lender() -> _Lender:
    global _lender  # noqa: PLW0603  one for the process
    with _lock:
        if _lender is None:
            _lender = _Lender()
        return _lender


def _forwarder() -> bytes:
    build = ModuleBuilder()
    imported = {name: build.import_(PREVIEW1, name, kind) for name, kind in FUNCTIONS.items()}
    memory = build.memory(MemoryType(Limits(0, _MOST_PAGES, shared=False, is64=False)))
    build.export("memory", "memory", memory)
    for name, kind in FUNCTIONS.items():
        arguments = b"".join(local_get(position) for position in range(len(kind.params)))
        build.export(name, "func", build.function(kind, arguments + call(imported[name])))
    return build.build()


class _Forwarder:
    """A forwarder's instance: the functions of WASI over one memory.

    Args:
        context: the store's context.
        linker: has the functions of WASI.
        module: the forwarder's code.
        memory: the memory.
    """

    def __init__(self, context: int, linker: int, module: int | None, memory: EngineMemory) -> None:
        self._context = context
        self.number = next(_numbers)
        place = _places[self.number] = _Place(memory.data_address(), memory.data_size())
        instance, trap = c.Instance(), ctypes.c_void_p()
        _making.number = self.number
        error = c.linker_instantiate(
            linker, context, module, ctypes.addressof(instance), ctypes.addressof(trap)
        )
        if error or trap.value:
            del _places[self.number]
            raise_instantiation_ending("wasi", context, error, trap.value, Names())
        assert place.size == memory.data_size()
        self._memory = self._export(instance, "memory")
        self.functions = {name: self._export(instance, name) for name in FUNCTIONS}

    def _export(self, instance: c.Instance, name: str) -> c.Extern:
        extern, raw = c.Extern(), name.encode()
        found = c.instance_export(
            self._context, ctypes.addressof(instance), raw, len(raw), ctypes.addressof(extern)
        )
        assert found
        return extern

    def follow(self, size: int) -> None:
        """Have wasmtime know how large the memory has become."""
        place = _places[self.number]
        if size != place.size:
            former = ctypes.c_uint64()
            pages = (size - place.size) // PAGE_BYTES
            check(
                c.memory_grow(
                    self._context, ctypes.addressof(self._memory.of.memory), pages, ctypes.addressof(former)
                )
            )


class LentWasi(Uncopied):
    """A WASI context. Used by one thread at a time.

    Args:
        options: what the program sees of the host.

    Raises:
        EngineError: an option cannot be passed to the program, or a file or directory cannot be opened.
    """

    def __init__(self, options: WasiOptions) -> None:
        self._deferred: list[BaseException] = []
        self._config, self._kept = wasi_config(options, self._deferred.append)
        self._store = 0
        self._context = 0
        self._linker = 0
        self._forwarders: dict[int, _Forwarder] = {}
        self._trap = ctypes.c_void_p()

    def _forwarder(self, memory: EngineMemory) -> _Forwarder:
        """Return the forwarder over a memory, which is known by the address of its data: that never moves."""
        address = memory.data_address()
        known = self._forwarders.get(address)
        if known is None:
            lender = _the_lender()
            if not self._store:
                self._start(lender)
            known = _Forwarder(self._context, self._linker, lender.module, memory)
            self._forwarders[address] = known
        return known

    def _start(self, lender: _Lender) -> None:
        if not self._config:
            raise EngineError("the store is closed")
        self._store = c.store_new(lender.engine, None, None)
        self._context = c.store_context(self._store)
        config, self._config = self._config, 0
        check(c.context_set_wasi(self._context, config))
        self._linker = c.linker_new(lender.engine)
        check(c.linker_define_wasi(self._linker))

    def _take_trap(self) -> int | None:
        trap, self._trap.value = self._trap.value, None
        return trap

    def call(self, name: str, memory: EngineMemory, slots: int, count: int) -> None:
        """Call a function of WASI.

        Args:
            name: its name.
            memory: the memory of the instance that calls; its data does not move.
            slots: address of its arguments' slots, which get the result.
            count: how many slots there are; 0 if the function has neither arguments nor results.

        Raises:
            BaseException: what an output callable raised.
            EngineError: the context is closed.
            ProgramExited: the function is `proc_exit`.
            TrapError: WASI refuses an argument.
        """
        forwarder = self._forwarder(memory)
        forwarder.follow(memory.data_size())
        function = forwarder.functions[name]
        error = c.function_call(
            self._context,
            ctypes.addressof(function.of.func),
            slots,
            count,
            ctypes.addressof(self._trap),
        )
        trap = self._take_trap()
        if self._deferred:
            free_ending(error, trap)
            deferred = self._deferred.pop()
            self._deferred.clear()
            raise deferred
        if error or trap:
            raise_ending(self._context, error, trap, Names())

    def close(self) -> None:
        """Free the context; open files are closed. Idempotent."""
        self._free()

    def _free(
        self,
        _delete_store: Any = c.store_delete,
        _delete_linker: Any = c.linker_delete,
        _delete_config: Any = c.wasi_delete,
        _known: Any = _places,
    ) -> None:
        # The defaults are there for the interpreter's end, when modules have lost their names.
        store, self._store = self._store, 0
        linker, self._linker = self._linker, 0
        config, self._config = self._config, 0
        if store:
            _delete_store(store)
        if linker:
            _delete_linker(linker)
        if config:
            _delete_config(config)
        for forwarder in self._forwarders.values():
            _known.pop(forwarder.number, None)
        self._forwarders.clear()

    def __del__(self) -> None:
        if "_trap" in self.__dict__:
            self._free()
