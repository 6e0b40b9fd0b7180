"""What all instance groups of one program share: engine, memory, table, names, the linker state and the operation log.

`Program` is data for the rooms above it, not an API: it knows no group and no thread. Everything below the façade takes it, or
less.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dl.dlfcn import MAIN_HANDLE
from dl.engine.code_cache import CodeStore, Compiler
from dl.engine.prelink import Plan
from dl.errors import EngineError, LinkerClosedError, LinkerUsageError, NotDynamicError, ResourceLimitError
from dl.glue.base import base_module
from dl.glue.generated import generated
from dl.glue.names import BASE_NAMESPACE
from dl.glue.placement import PlacedFunction, placement_module
from dl.glue.resolution import FromNamespace
from dl.glue.table_reader import table_reader
from dl.limits import Limits
from dl.logs import logger
from dl.modules.guest_paths import GuestPaths
from dl.modules.linked_module import LinkedModule
from dl.modules.locate import Locator
from dl.options import MAX_PAGES, SideMemorySource
from dl.program.compiling import Compiling
from dl.program.events import EventLog
from dl.program.guest_wasi import GuestWasi
from dl.program.host_symbols import ATOMICS, HostSymbols
from dl.program.import_names import ImportNames
from dl.program.limbo import Limbo
from dl.program.main_module import MainModule, RootNames
from dl.program.operations import DlOperation
from dl.program.reserve import ThreadLocalReserve
from dl.program.side_memory import GrownMemory, GuestAllocator, SideMemory
from dl.program.state import LinkerState
from dl.program.table import TableSpace
from dl.program.wasi import SharedWasi, WasiCalls, add_forwarder, direct_wasi, forwarded_wasi
from dl.records import dataclass, field
from memory import LinearMemory
from threads import DeadlockError, FutexTable, Rendezvous, Waits

if TYPE_CHECKING:
    from dl.engine.protocol import CompiledModule, Engine, EngineInstance, EngineMemory, HostFunctions, Store
    from dl.engine.values import WasiOptions

log = logger("dl.link")

_PAGE = 65536
_STACK_ALIGN_LOG2 = 10


class _NoBytes:
    """The source of a memory that is closed."""

    def data_address(self) -> int:
        return 0

    def data_size(self) -> int:
        return 0


class _Unbounded:
    """No boundary: for stores whose host functions are not the program's."""

    def enter_host(self) -> None: ...

    def exit_host(self, token: None) -> None: ...


@dataclass(frozen=True)
class ProgramOptions:
    """What a program is made with, beside its main module.

    Attributes:
        name: what messages call the program.
        wasi: what WASI shows it.
        side_memory: where side modules' data goes.
        thread_stack_size: bytes of shadow stack of a thread that the host attaches.
        default_files: whether the guest finds `/dev/null` and the like.
        limits: what it may take of the host.
        code_store: compiled code that outlives the process; None for none.
        plan: what was generated for the program in a former process; None for none.
        paths: the directories it may load from, as they were before any of its code ran.
        bind_now: whether every load demands all functions, whatever its flags say, as with ELF's LD_BIND_NOW.
        guest_elf: whether the guest's dlopen and dlsym honour flags and scopes as ELF's do.
        preload: paths and names of libraries that come before what the main module needs, as with ELF's LD_PRELOAD.
        compiled_forms: whether code is taken from files beside modules.
        root_names: under which its main module exports what the linker uses of it.
        keeps_stub_targets: whether a stub keeps the table index that it was bound to, or asks for it at each call.
        load_needed: whether the needed lists of libraries are loaded with them.
    """

    name: str
    wasi: WasiOptions
    side_memory: SideMemorySource
    thread_stack_size: int
    default_files: bool = True
    limits: Limits = field(default_factory=Limits)
    code_store: CodeStore | None = None
    plan: Plan | None = None
    paths: GuestPaths = field(default_factory=GuestPaths)
    bind_now: bool = False
    guest_elf: bool = False
    preload: tuple[str, ...] = ()
    compiled_forms: bool = True
    root_names: RootNames = field(default_factory=RootNames)
    keeps_stub_targets: bool = True
    load_needed: bool = True


class Program:
    """The shared part of a program.

    Set up by the thread that makes the linker, before there is another group. Afterwards memory only changes in `grow_memory`,
    which the engine serializes, and `state` under the link lock.

    `_end_lock` guards `ended` against a second ending; a leaf.

    Attributes:
        main: what the kind of the main module means.
        engine: makes stores.
        compiler: turns modules into code.
        compiling: keeps its threads from preparing the same module for that at once.
        functions: the program's host functions.
        host: its host symbols, those of the system interface included.
        options: what it was made with.
        locator: finds its libraries.
        names: ordinary modules by the names that others import from; None while there are none to ask.
        rendezvous: the link lock, the operation log and the barrier.
        waits: every wait of the program.
        futexes: waits at addresses of the shared memory.
        state: modules, names, table indices: what linking changes.
        guest_wasi: the WASI that its threads answer without leaving WebAssembly; None for none.
        wasi: its WASI, for host code; None until a main module that defines the memory is there.
        side_memory: hands out linear memory; None when the program's memory cannot be reached.
        reserve: thread-local blocks for replays; None while side memory needs no guest code.
        linear: the program's memory; None likewise.
        clock_began: when the guest's monotonic clock began, on the host's, nanoseconds; not before the engine's own did.
        ended: what ended the program; None while it can run.
        runs: counts the calls of its `_start`; each gets how many came before it.
        events: what happens to its modules, for who listens.
        limbo: what is taken out of the program while guest code may still use it.
        sampling: called at each interrupt of guest code with the group that was interrupted, in its thread; None for nothing.
        checkpoint: called with the name of each step of a change of the program as it is about to begin, and the name of the
            group that takes it; None for steps that no single group takes. What it raises fails the step. For fault injection.
    """

    def __init__(
        self,
        main: MainModule,
        engine: Engine,
        rendezvous: Rendezvous[DlOperation],
        functions: HostFunctions,
        host: HostSymbols,
        locator: Locator,
        options: ProgramOptions,
    ) -> None:
        self.main = main
        self.engine = engine
        self.compiler = Compiler(engine, options.code_store, limits=options.limits, plan=options.plan)
        self.compiling = Compiling()
        self.functions = functions
        self.host = host
        self.locator = locator
        self.options = options
        self.names: ImportNames | None = None
        self.rendezvous = rendezvous
        self.waits = Waits(_report_deadlock)
        self.futexes = FutexTable(self.waits)
        self.state = LinkerState(
            TableSpace(main.table_length, options.limits),
            options.limits,
            linker_addresses=dict(main.addresses),
        )
        locator.loaded = self.state.image
        self.guest_wasi: GuestWasi | None = None
        self.wasi: WasiCalls | None = None
        self.side_memory: SideMemory | None = None
        self.reserve: ThreadLocalReserve | None = None
        self.linear: LinearMemory | None = None
        self.clock_began = time.monotonic_ns()
        self.ended: BaseException | None = None
        self.runs = itertools.count()
        self.limbo = Limbo()
        self.sampling: Callable[[Any], object] | None = None
        self.events = EventLog()
        self.checkpoint: Callable[[str, str | None], None] = lambda _step, _group: None
        self._end_lock = threading.Lock()
        self._memory: EngineMemory | None = None
        self._only_store = False  # whether the one store that a program with its own memory may have is made
        self._shared_wasi: SharedWasi | None = None
        self._wasi_store: Store | None = None
        self._base_code: CompiledModule | None = None
        self._waits_code: CompiledModule | None = None
        self._table_reader_code: CompiledModule | None = None
        if main.shares_memory:
            if not engine.capabilities.shared_memory:
                raise LinkerUsageError(f"the program uses shared memory, which engine {engine.name} lacks")
            self._share_memory()
        else:
            (forwarded_wasi if main.makes_memory else direct_wasi)(host)

    # what it is

    @property
    def main_module(self) -> LinkedModule | None:
        """The main module; None without one."""
        return self.state.module(MAIN_HANDLE)

    @property
    def shares_memory(self) -> bool:
        """Whether threads can share the memory, so that there can be several groups."""
        return self.main.shares_memory

    @property
    def memory(self) -> LinearMemory:
        """The program's linear memory.

        Raises:
            LinkerUsageError: the program has none that the host can reach.
        """
        if self.linear is None:
            raise LinkerUsageError("the program neither imports nor exports a memory")
        return self.linear

    def check_dynamic(self, library: str | None = None) -> None:
        """Check that the program can take libraries.

        Raises:
            NotDynamicError: it cannot; says why.
        """
        refusal = self.main.no_libraries
        if refusal:
            name = self.options.name
            raise NotDynamicError(library or name, f"not a dynamically-linked instance: {name}: {refusal}")

    def end(self, reason: BaseException) -> None:
        """End the program: every thread in it raises `reason` at its next safe point, wait or entry; the first call counts."""
        # Known before it is felt: a thread that this wakes must find the program ended.
        with self._end_lock:
            if self.ended is not None:
                return
            self.ended = reason
        self.rendezvous.shutdown(reason)

    # stores

    def new_store(self) -> Store:
        """Make the store of a group: memory and WASI are there, the base module is not.

        Raises:
            LinkerUsageError: the program has a store already and shares no memory, so that it can have no second one.
        """
        if self._only_store:
            raise LinkerUsageError("a program whose memory is not shared has one instance group")
        store = self.engine.new_store(self.functions)
        self._only_store = not self.main.shares_memory
        try:
            limits = self.options.limits
            store.limit(memory_bytes=limits.memory_pages * _PAGE, table_elements=limits.table_elements)
            if self.main.shares_memory:
                if self._memory is None:
                    raise LinkerClosedError("the linker is closed")
                store.define_memory(BASE_NAMESPACE, "memory", self._memory)
                return store
            store.enable_wasi(self.options.wasi)
            self._wasi_store = store
            self.clock_began = time.monotonic_ns()
            if self.main.makes_memory:
                kind = self.main.memory_type
                assert kind is not None
                memory = store.new_memory(kind)
                store.define_memory(BASE_NAMESPACE, "memory", memory)
                self.wasi = add_forwarder(self.compiler, store, kind, self.host)
                self._use(memory)
        except BaseException:
            store.close()
            raise
        return store

    def renew_wasi(self, options: WasiOptions) -> bool:
        """Let WASI show the program something else, as if it had been linked so; for one that has not run yet.

        Args:
            options: the same directories as before, and the host's own streams where they were.

        Returns:
            False, and nothing is changed, if a thread of the program has asked WASI already, and keeps the answer.

        Raises:
            EngineError: an option cannot be passed to the program, or a file cannot be opened.
        """
        if self.guest_wasi is not None and not self.guest_wasi.renew(options):
            return False
        if self._shared_wasi is not None:
            self._shared_wasi.renew(options)
        elif self._wasi_store is not None:
            self._wasi_store.renew_wasi(options)
        return True

    def answer_in_guest(self, host: Mapping[str, FromNamespace], resolutions: tuple[int, ...]) -> bool:
        """Have threads answer what they can of WASI by themselves, if the engine lets them; return whether it does.

        Args:
            host: what answers the rest; see `dl.glue.guest_wasi`.
            resolutions: those of the four clocks, nanoseconds.
        """
        kind = self.main.memory_type
        if not (self.main.shares_memory and self.engine.capabilities.guest_wasi):
            return False
        assert kind is not None
        self.guest_wasi = GuestWasi(
            self.compiler, self.functions, kind, host, self.options.wasi, resolutions, self.clock_began
        )
        return True

    def monotonic_ns(self) -> int:
        """Return the guest's monotonic clock, nanoseconds."""
        now = time.monotonic_ns() if self.guest_wasi is None else self.guest_wasi.monotonic_ns()
        return now - self.clock_began

    def _share_memory(self) -> None:
        kind = self.main.memory_type
        assert kind is not None
        try:
            self._memory = self.engine.shared_memory(kind)
        except EngineError as error:
            raise ResourceLimitError("the program", f"the engine cannot make its {kind}: {error}") from error
        self._shared_wasi = SharedWasi(
            self.compiler, self.engine.host_functions(_Unbounded()), self.options.wasi, self._memory, kind
        )
        self._shared_wasi.install(self.host)
        self.wasi = self._shared_wasi.calls
        self._use(self._memory)

    def _use(self, memory: EngineMemory) -> None:
        kind = self.main.memory_type
        assert kind is not None
        self._memory = memory
        self.linear = LinearMemory(memory, stable_address=self.main.shares_memory)
        asked = self.options.side_memory
        if asked == "allocator" or (asked == "auto" and self.main.allocator):
            self.side_memory = GuestAllocator(
                self.linear,
                self.main.heap_base,
                lambda end: self.grow_memory_to(-(-end // _PAGE)),
                self.no_memory,
            )
        else:
            most = MAX_PAGES if kind.limits.maximum is None else kind.limits.maximum
            most = min(most, self.options.limits.memory_pages)
            self.side_memory = GrownMemory(self.linear, self.grow_memory, most, self.no_memory)

    def adopt_memory(self, store: Store, instance: EngineInstance) -> bool:
        """Take its memory from a main module that defines it, before anything else is instantiated.

        Returns:
            Whether it has one.
        """
        kind, export = self.main.memory_type, self.main.memory_export
        if kind is None or export is None:
            return False
        memory = instance.memory(export)
        if kind.limits.shared:
            # It cannot be lent to other instances, and `no_libraries` says so.
            self._use(memory)
            return True
        store.define_memory(BASE_NAMESPACE, "memory", memory)
        self.wasi = add_forwarder(self.compiler, store, kind, self.host)
        self._use(memory)
        # Modules from here on need not export their memory: they go through the forwarder.
        forwarded_wasi(self.host)
        return True

    # generated code that is the same for all groups

    def base_code(self) -> CompiledModule:
        """Return the code of the base module, made at its first use."""
        if self._base_code is None:
            places, length, stack = self.main.anchors, self.main.table_length, self.main.stack_pointer or 0
            can = self.engine.capabilities
            exceptions, type_tests = can.exceptions, can.type_tests
            self._base_code = generated(
                self.compiler,
                ("base", places, length, stack, exceptions, type_tests),
                "base",
                lambda: base_module(places, length, stack, exceptions=exceptions, type_tests=type_tests),
            )
        return self._base_code

    def table_reader_code(self) -> CompiledModule:
        """Return the code that reads the table, made at its first use."""
        if self._table_reader_code is None:
            self._table_reader_code = self.compiler.compile(table_reader(), "table reader")
        return self._table_reader_code

    def waits_code(self) -> CompiledModule | None:
        """Return code that places what stands in for atomic waits; None when nothing waits on shared memory."""
        if self._waits_code is None and self.main.wait_slots:
            placed = []
            for name, address in self.main.wait_slots.items():
                kind = self.host.system[ATOMICS][name].type
                binding = self.host.bind(ATOMICS, name, kind, "the linker")
                assert binding is not None
                placed.append(PlacedFunction(binding.namespace, binding.name, kind, address))
            self._waits_code = generated(
                self.compiler,
                ("waits", tuple(placed), self.main.anchors),
                "waits",
                lambda: placement_module(placed, (), (), self.main.anchors),
            )
        return self._waits_code

    def side_stack_pointer(self) -> int:
        """Allocate the stack that side modules have beside a static main module's; return its upper end, 0 for none.

        When the first library comes: a program that opens none needs no room for it.

        Raises:
            ResourceLimitError: there is no memory for it.
            LinkerUsageError: it would have to come from the main module's allocator, which does not run yet.
        """
        if self.main.stack_size is None or self.main.no_libraries or self.side_memory is None:
            return 0
        if self.side_memory.calls_guest:
            # The main module has no stack pointer to share and its allocator may not run yet.
            raise LinkerUsageError(
                "side modules need a stack, but the main module exports no __stack_pointer; link it with "
                "--export=__stack_pointer, or use side_memory='grow'"
            )
        block = self.side_memory.allocate(self.main.stack_size, _STACK_ALIGN_LOG2, "the side modules' stack")
        return block.address + block.size

    # memory

    def grow_memory(self, pages: int) -> int | None:
        """Grow the memory by 64 KiB pages; return the former size in pages, or None when refused."""
        return None if self._memory is None else self._memory.grow(pages)

    def grow_memory_to(self, pages: int) -> bool:
        """Make the memory reach a size in pages; return whether it does."""
        if self._memory is None:
            return True
        missing = pages - self._memory.data_size() // _PAGE
        return missing <= 0 or self._memory.grow(missing) is not None

    def no_memory(self, subject: str, reason: str) -> ResourceLimitError:
        """Return the error for linear memory that cannot grow: with the limit, if a higher one could help."""
        kind, limits = self.main.memory_type, self.options.limits
        if kind is None or limits.memory_pages >= (
            MAX_PAGES if self.main.makes_memory or kind.limits.maximum is None else kind.limits.maximum
        ):
            return ResourceLimitError(subject, reason)
        return limits.refusal("memory_pages", subject, reason)

    def close(self) -> None:
        """Free what all groups shared; their stores are closed already.

        Nothing here refers to the engine's memory afterwards, whose 4 GiB of address space would otherwise stay until the
        garbage collector finds the program. A host thread that is reading it has a reference of its own.
        """
        if self.linear is not None:
            self.linear.close()
            self.linear = LinearMemory(_NoBytes(), stable_address=True)
            self.linear.close()
        if self.side_memory is not None and self.linear is not None:
            self.side_memory.close(self.linear)
        if self._shared_wasi is not None:
            self._shared_wasi.close()
        self._memory = self._wasi_store = None
        if self.compiler.plan is not None:
            self.compiler.plan.save(last=True)


def _report_deadlock(error: DeadlockError) -> None:
    logger("dl.threads").info("%s", error)  # every thread raises it
