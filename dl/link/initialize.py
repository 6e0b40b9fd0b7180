"""The last phase of a load: relocations, then constructors, in the opening thread, once, with no lock held.

So a constructor may itself open libraries or start threads. A second opener of the same module waits until it is ready; the
constructing thread does not wait for itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from dl.dlfcn import MAIN_HANDLE
from dl.errors import (
    DlError,
    InitializationError,
    LinkerUsageError,
    SymbolNotFoundError,
    TrapError,
    UnresolvedCallError,
)
from dl.groups.entry import Group
from dl.groups.libc_threads import INIT_FIRST, has_threads
from dl.groups.registry import Groups
from dl.link.order import dependencies_first
from dl.logs import logger
from dl.modules.linked_module import LinkedModule, breadth_first
from dl.program.events import EventKind
from dl.program.main_module import CONSTRUCTORS, INITIALIZE, START
from dl.wasm.types import FuncType
from threads import found_in, recording

log = logger("dl.link")

_NOTHING = FuncType((), ())
_TAKES_THIS, _RETURNS_THIS = FuncType(("i32",), ()), FuncType(("i32",), ("i32",))
_RELOCATIONS = "__wasm_apply_data_relocs"
_LIBRARY_CONSTRUCTORS = (CONSTRUCTORS, "__post_instantiate", INITIALIZE)
"""The first of these runs: what wasm-ld exports; its name in the days of the legacy section; a reactor's."""


class LoadCutOffError(Exception):
    """The constructors of a module were interrupted in another thread, so that it is no longer loaded."""


def initialize(groups: Groups, group: Group, new: Sequence[LinkedModule], opened: LinkedModule) -> None:
    """Run relocations of all new modules, then their constructors, dependencies first.

    What other threads are constructing of the tree is waited for in between, as new modules may rely on it.

    Raises:
        InitializationError: one of them failed, or another thread's constructors did.
        LoadCutOffError: another thread's were interrupted.
    """
    program = groups.program
    for module in new:
        program.checkpoint("relocate", None)
        _run(group, module, _RELOCATIONS)
    for module in breadth_first([opened]):
        _wait_until_ready(groups, group, module)
    order = _construction_order(groups, new)
    if len(order) > 1 and order[-1].handle == MAIN_HANDLE:
        _start_streams(groups, group, order[-1])
    for module in order:
        program.checkpoint("construct", None)
        _construct(groups, group, module)
        if program.events.listening:
            program.events.record(EventKind.CONSTRUCTED, module.name, module.handle)
        program.state.constructed(module)
    for module in new:
        module.construction.finished()


_STREAMS = ("_ZNSt3__28ios_base4InitC1Ev", "_ZNSt3__18ios_base4InitC1Ev", "_ZNSt8ios_base4InitC1Ev")
"""`std::ios_base::Init::Init()`: of libc++ with WASIX's and with the usual ABI namespace, and of libstdc++."""
_STREAMS_OBJECT_BYTES = 16


def _start_streams(groups: Groups, group: Group, main: LinkedModule) -> None:
    """Make the main module's C++ streams before the constructors of the libraries that it needs.

    In ELF the C++ library is a library that the others need, and is constructed before them. Here it is linked into the main
    module, whose own constructors come last, since they may rely on the libraries: so `std::cout` in a static constructor of
    a library would find no stream. C++ has an object for just that, of which every file that includes <iostream> used to
    have one: its constructor makes the streams if they are not made, and does nothing when the main module's own calls it.

    Constructing the main module first instead would break main modules whose constructors call their libraries.
    """
    side_memory = groups.program.side_memory
    if side_memory is None or side_memory.calls_guest:
        return
    for name in _STREAMS:
        export = main.wasm.exports.get(name)
        # WebAssembly's C++ ABI returns `this` from constructors; a linker may have dropped that.
        if export is None or export.type not in (_TAKES_THIS, _RETURNS_THIS):
            continue
        assert isinstance(export.type, FuncType)
        block = side_memory.allocate(_STREAMS_OBJECT_BYTES, 4, "std::ios_base::Init")
        log.debug("%s: %s", main.name, name)
        try:
            # The object stays: some C++ library may keep its address.
            group.call_export(main, name, export.type, block.address)
        except (TrapError, UnresolvedCallError) as error:
            raise InitializationError(main.name, name, error) from error
        return


def _construction_order(groups: Groups, modules: Sequence[LinkedModule]) -> list[LinkedModule]:
    """Return the modules dependencies first: the main module after what it needs, though it is instantiated before.

    Unless side modules live from its allocator, which begins to work with the main module's initialization.
    """
    modules = dependencies_first(modules)
    side_memory = groups.program.side_memory
    main_first = side_memory is not None and side_memory.calls_guest
    return sorted(modules, key=lambda m: m.handle == MAIN_HANDLE and not main_first)


def _construct(groups: Groups, group: Group, module: LinkedModule) -> None:
    exports = module.wasm.exports
    if module.handle != MAIN_HANDLE:
        constructors = (name for name in _LIBRARY_CONSTRUCTORS if name in exports)
        _run(group, module, next(constructors, CONSTRUCTORS))
        return
    initializer = groups.program.main.initializer(exports)
    if initializer is not None:
        _run(group, module, initializer)
    elif START in exports and groups.program.shares_memory and has_threads(module):
        # The host may call exports without ever running `_start`. Without this the C library's locks see thread number 0 as
        # their owner, which means "unlocked".
        _run(group, module, INIT_FIRST)
    _start_allocator(groups, module)


def _start_allocator(groups: Groups, main: LinkedModule) -> None:
    side_memory = groups.program.side_memory
    if side_memory is None or not side_memory.calls_guest:
        return
    from dl.link.root_allocator import CalledAllocator, RootAllocator  # noqa: PLC0415  few C libraries need it

    exports = RootAllocator.of(main.wasm, groups.program.options.root_names)
    missing = [function for function in exports.missing if not function.startswith("realloc")]
    if missing:
        raise LinkerUsageError(
            f"side modules' data must come from {main.name}'s allocator, but it exports no {missing[0]}"
        )
    allocator = CalledAllocator(exports, main, groups.current, lambda: groups.program.memory)
    side_memory.start(allocator.malloc, allocator.free)
    groups.allocator_works()


def _run(group: Group, module: LinkedModule, function: str) -> None:
    export = found_in(module.wasm.exports, function)
    if export is None:
        return
    if export.type != _NOTHING:
        reason = f"exported as {export.type}, not as a function {_NOTHING}"
        raise InitializationError(module.name, function, SymbolNotFoundError(function, (), reason))
    log.debug("%s: %s", module.name, function)
    try:
        with recording.span("load", "initialize", module.name, function=function):
            group.call_export(module, function, _NOTHING)
    except (TrapError, SymbolNotFoundError, UnresolvedCallError) as error:
        raise InitializationError(module.name, function, error) from error


def _wait_until_ready(groups: Groups, group: Group, module: LinkedModule) -> None:
    """Wait for another thread's constructors.

    Raises:
        InitializationError: they failed.
        LoadCutOffError: they were interrupted.
    """
    construction = module.construction
    if construction.thread is not None:
        construction.wait(groups.program.waits, group.replica.waiter, module.name)
    if construction.failure is None:
        return
    if isinstance(construction.failure, DlError):
        raise InitializationError(module.name, CONSTRUCTORS, construction.failure)
    raise LoadCutOffError
