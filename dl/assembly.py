"""The parts of one program, made and connected: the one place that knows them all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dl.engine import chosen_engine
from dl.engine.disk_cache import open_cache
from dl.engine.prelink import open_plan
from dl.engine.values import WasiOptions
from dl.errors import LinkerClosedError, LinkerUsageError
from dl.glue.base import FIND_INVOKER, FIND_INVOKER_TYPE
from dl.glue.names import HOST_NAMESPACE, RESOLVE_STUB, RESOLVE_STUB_TYPE
from dl.glue.trap_functions import CLOSED_CALL, CLOSED_CALL_TYPE
from dl.groups import wakeup_bell
from dl.groups.boundary import new_boundary
from dl.groups.endings import PATIENCE_SECONDS
from dl.groups.entry import Group
from dl.groups.errors import raises_dl_errors
from dl.groups.guest_threads import GuestThreads
from dl.groups.host_threads import HostThreads
from dl.groups.libc_threads import LibcThreads
from dl.groups.registry import Groups
from dl.later import Later
from dl.limits import Limits
from dl.link.finalizers import Finalizers
from dl.link.open import load_main, preload_libraries
from dl.link.resolve import resolve_stub
from dl.modules.guest_paths import paths_of_program
from dl.modules.image import ModuleImage
from dl.modules.locate import Locator
from dl.modules.reading import ReadBudget
from dl.options import (
    Binding,
    GuestDlfcn,
    HostImports,
    MemoryType,
    NamingOptions,
    Output,
    SideMemorySource,
    checked_binding,
    checked_dlfcn,
    checked_side_memory,
    listed,
)
from dl.program.host_symbols import FINALIZERS, HostSymbols
from dl.program.main_module import RootNames, describe_main
from dl.program.program import Program, ProgramOptions
from dl.program.statistics import report_unused_imports
from dl.records import dataclass, field
from dl.wasix import system_interface
from dl.wasix.files.defaults import DefaultFiles
from dl.wasix.process import Process
from dl.wasix.system import System
from memory import LinearMemory
from threads import is_main_interpreter

if TYPE_CHECKING:
    from dl.api.callbacks import Callbacks
    from dl.engine.protocol import Engine
    from dl.glue.resolution import FromNamespace
    from dl.instances.program_instances import ProgramInstances
    from dl.link.slots import SlotOperations
    from dl.modules.linked_module import LinkedModule
    from dl.wamr.mode import WamrMode
    from dl.wamr.program import WamrProgram
    from dl.wasm.module import WasmModule
    from dl.wasm.records import Import
    from dl.wasm.types import FuncType


@dataclass(frozen=True)
class Options:
    """What `Linker` takes, beside the main module; see there."""

    imports: HostImports | None = None
    args: Sequence[str] = ()
    env: Mapping[str, str] | None = None
    preopens: Mapping[str, str | os.PathLike[str]] | None = None
    stdin: bytes | str | os.PathLike[str] | None = None
    stdout: Output = None
    stderr: Output = None
    memory: MemoryType | None = None
    stack_size: int = 1 << 20
    thread_stack_size: int = 1 << 18
    side_memory: SideMemorySource = "auto"
    bind: Binding = "lazy"
    guest_dlfcn: GuestDlfcn = "wasix"
    preload: Sequence[str | os.PathLike[str]] = ()
    interrupts: bool | None = None
    engine: str | Engine | None = None
    default_files: bool = True
    limits: Limits = field(default_factory=Limits)
    cache: bool | str | os.PathLike[str] = True
    naming: NamingOptions = field(default_factory=NamingOptions)
    wamr: WamrMode | int | None = None
    profiler: str | None = None


@dataclass(frozen=True)
class Parts:
    """The parts of one program. Those that few programs need are made when they are first called for.

    Attributes:
        program: what all groups share.
        groups: which thread has which group.
        host_threads: the host's threads that run it.
        guest_threads: the threads that it has started.
        slots: table indices whose functions are made at run time.
        callbacks: Python functions as function pointers.
        process: what the threads have in common for the guest: open files, directory, signals, terminal.
        libc: the host's threads as threads of the program's C library.
        default_files: directories of its own.
        finalizers: what libraries have registered to run at their end.
        instances: instances and externals that are objects, and modules by import name.
        wamr: its mode as a program of WAMR's kind; None for none.
    """

    program: Program
    groups: Groups
    host_threads: HostThreads
    guest_threads: GuestThreads
    slots: Later[SlotOperations]
    callbacks: Later[Callbacks]
    process: Process
    libc: LibcThreads
    default_files: DefaultFiles
    finalizers: Finalizers
    instances: Later[ProgramInstances]
    wamr: WamrProgram | None = None

    def start(self, image: ModuleImage | None) -> Group:
        """Make the main group in the calling thread, and load the main module.

        Raises:
            DlError: it cannot be linked or initialized; everything is freed.
        """
        group: Group | None = None
        try:
            if self.program.engine.capabilities.interrupts:
                wakeup_bell.BELL.add(self.groups.signal_came)
            group = self.groups.new_main_group()
            if image is None:
                preload_libraries(self.groups, group)
            else:
                load_main(self.groups, group, image)
                report_unused_imports(self.program)
        except BaseException:
            self.stop(group)
            raise
        return group

    def stop(self, main_group: Group | None) -> None:
        """End the program, wait for its threads as `dl.groups.endings` says, and free all it holds.

        Ctrl-C ends the waiting, not the freeing: whatever a step raises, the following ones are taken.
        """
        with ExitStack() as steps:  # the last one first
            steps.callback(wakeup_bell.BELL.remove, self.groups.signal_came)
            steps.callback(self.default_files.close)
            if self.instances.made is not None:
                steps.callback(self.instances.made.close)
            steps.callback(self.program.events.end)
            steps.callback(self.process.files.end)
            steps.callback(self.program.close)
            steps.callback(self._leave_main, main_group)
            steps.callback(self.groups.allocating.close, PATIENCE_SECONDS)
            steps.callback(self.libc.close)
            steps.callback(self.guest_threads.join_all)
            steps.callback(self.host_threads.join_all)
            steps.callback(self.process.close)
            self.program.end(LinkerClosedError("the linker is closed"))

    def _leave_main(self, group: Group | None) -> None:
        # Inside guest code in another thread, it is freed with its last reference, which that thread drops.
        if group is not None and group.is_outside_guest:
            self.groups.leave(group)


class LateMemory:
    """Returns the memory of a program that is made after what asks for it.

    Attributes:
        program: the program.
    """

    program: Program

    def __call__(self) -> LinearMemory:
        """Return the memory."""
        return self.program.memory


def new_locator(
    library_path: Sequence[str | os.PathLike[str]],
    libraries: Mapping[str, bytes] | None,
    limits: Limits,
    map_name: Callable[[str, str], str] | None = None,
) -> Locator:
    """Make what finds a program's libraries, from the options of the same names."""
    directories = [Path(directory) for directory in listed("library_path", library_path)]
    return Locator(
        directories,
        dict(libraries or {}),
        budget=ReadBudget(limits.module_bytes, limits.load_bytes),
        map_name=map_name,
    )


@raises_dl_errors
def assemble(image: ModuleImage | None, locator: Locator, options: Options) -> Parts:
    """Make the parts of a program; nothing of it runs yet.

    Raises:
        DlError: the options do not fit the main module or the engine.
    """
    if not is_main_interpreter():
        raise LinkerUsageError(
            "this is a sub-interpreter, which gets no signals and may have no daemon threads: link in the main interpreter, "
            "whose threads run guest code in parallel, or in processes (dl.ProcessPool)"
        )
    wasm = image.wasm if image else None
    default_files = DefaultFiles(options.preopens or {}, wasm, wanted=options.default_files)
    wamr = None if options.wamr is None else _wamr_program(options.wamr, wasm)
    names = RootNames() if wamr is None else wamr.root_names
    main = describe_main(
        wasm, memory=options.memory, stack_size=options.stack_size, limits=options.limits, names=names
    )
    shared = main.memory_type is not None and main.memory_type.limits.shared
    name = image.name if image else "libraries only"
    engine = chosen_engine(
        options.engine, name, interrupts=options.interrupts, shared=shared, profiler=options.profiler
    )
    rendezvous, boundary = new_boundary(engine.interrupt)
    functions = engine.host_functions(boundary)
    store = open_cache(options.cache, default_files.preopens.values())
    memory = LateMemory()
    imports = _bound_imports(options.imports, memory) if options.imports else {}
    host = HostSymbols(functions, imports, wamr.imports() if wamr else None, disagreement=_disagreement)
    program = Program(
        main,
        engine,
        rendezvous,
        functions,
        host,
        locator,
        ProgramOptions(
            name,
            _wasi_options(
                listed("args", options.args) or ((image.base_name,) if image else ()),
                options.env,
                default_files.preopens,
                options.stdin,
                options.stdout,
                options.stderr,
            ),
            checked_side_memory(options.side_memory),
            options.thread_stack_size,
            options.default_files,
            options.limits,
            store,
            open_plan(store, engine, image.digest if image else b"") if store else None,
            paths_of_program(default_files.preopens, locator.library_path, image.path if image else None),
            checked_binding(options.bind),
            checked_dlfcn(options.guest_dlfcn),
            tuple(os.fspath(library) for library in listed("preload", options.preload)),
            compiled_forms=options.cache is not False,
            root_names=names,
            keeps_stub_targets=wamr is None or wamr.mode.table_cache,
            load_needed=wamr is None or wamr.mode.load_needed,
        ),
    )
    memory.program = program
    groups = Groups(program, boundary)
    libc = LibcThreads(groups)
    slots = Later(lambda: _slot_operations(groups))
    callbacks = Later(lambda: _callbacks(program, slots()))
    guest_threads = GuestThreads(groups, libc)
    finalizers = Finalizers(groups)
    finalizers.make_entry = lambda kind, function: callbacks().make_kept(kind, function)
    libc.make_entry = lambda kind, function: callbacks().make_kept(kind, function)
    system = System(groups, guest_threads, slots, finalizers)
    process = system_interface(system, host)
    groups.signals = process.signals
    host.system[FINALIZERS] = finalizers.functions()
    if wamr is not None:
        wamr.connect(groups, finalizers, system)
    resolve = partial(resolve_stub, program, partial(_place_late, groups))
    functions.define(
        HOST_NAMESPACE, RESOLVE_STUB, RESOLVE_STUB_TYPE, wamr.counting(resolve) if wamr else resolve
    )
    functions.define(HOST_NAMESPACE, FIND_INVOKER, FIND_INVOKER_TYPE, process.invokers.find)
    functions.define(
        HOST_NAMESPACE,
        CLOSED_CALL,
        CLOSED_CALL_TYPE,
        partial(_closed_call, program),
        blocking=False,
    )
    host_threads = HostThreads(groups, libc)
    return Parts(
        program,
        groups,
        host_threads,
        guest_threads,
        slots,
        callbacks,
        process,
        libc,
        default_files,
        finalizers,
        _instances(groups, options.naming, system),
        wamr,
    )


def _instances(groups: Groups, naming: NamingOptions, system: System) -> Later[ProgramInstances]:
    def make() -> ProgramInstances:
        from dl.instances.program_instances import ProgramInstances  # noqa: PLC0415  see `Later`

        return ProgramInstances(groups, naming, system)

    instances = Later(make)
    if naming.names_modules:
        instances()  # what is linked from now on may import from them
    return instances


def _slot_operations(groups: Groups) -> SlotOperations:
    from dl.link.slots import SlotOperations  # noqa: PLC0415  see `Later`
    from dl.program.closure_slots import ClosureSlots  # noqa: PLC0415  see `Later`

    program = groups.program
    return SlotOperations(groups, ClosureSlots(program.compiler, program.main))


def _callbacks(program: Program, slots: SlotOperations) -> Callbacks:
    from dl.api.callbacks import Callbacks  # noqa: PLC0415  see `Later`

    return Callbacks(program, slots)


def _wamr_program(mode: WamrMode | int, wasm: WasmModule | None) -> WamrProgram:
    from dl.wamr.mode import WamrMode  # noqa: PLC0415  few programs are of WAMR's kind
    from dl.wamr.program import WamrProgram  # noqa: PLC0415  as above

    return WamrProgram(WamrMode.from_mode_bits(mode) if isinstance(mode, int) else mode, wasm)


def _disagreement(function: Callable[..., Any], kind: FuncType) -> str | None:
    """See `dl.api.agreement.disagreement`."""
    from dl.api.agreement import disagreement  # noqa: PLC0415  not every program gets functions of the host's

    return disagreement(function, kind)


def _bound_imports(imports: HostImports, memory: LateMemory) -> HostImports:
    from dl.api.values import bound_imports  # noqa: PLC0415  not every program gets functions of the host's

    return bound_imports(imports, memory)


def _place_late(groups: Groups, module: LinkedModule, entry: Import, found: FromNamespace) -> int:
    from dl.link.late import place_late  # noqa: PLC0415  few stubs find their function in an instance

    return place_late(groups, module, entry, found)


def _closed_call(program: Program, number: int) -> None:
    from dl.link.close import closed_call  # noqa: PLC0415  only what is wrong comes here

    closed_call(program.state, number)


def _wasi_options(
    args: Sequence[str],
    env: Mapping[str, str] | None,
    preopens: Mapping[str, str],
    stdin: bytes | str | os.PathLike[str] | None,
    stdout: Output,
    stderr: Output,
) -> WasiOptions:
    """Return what WASI shows a program, from the options of the same names; paths become texts."""
    return WasiOptions(
        args=tuple(args),
        env=tuple((env or {}).items()),
        preopens=tuple(preopens.items()),
        stdin=stdin if stdin is None or isinstance(stdin, bytes) else os.fspath(stdin),
        stdout=stdout if stdout is None or callable(stdout) else os.fspath(stdout),
        stderr=stderr if stderr is None or callable(stderr) else os.fspath(stderr),
    )
