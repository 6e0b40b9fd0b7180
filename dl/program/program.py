"""What instance groups are made from: engine, memory, WASI, and the code that is the same for all of them."""

from __future__ import annotations

import logging

from dl.engine.code_cache import CodeStore, Compiler
from dl.engine.protocol import (
    CompiledModule,
    Engine,
    EngineInstance,
    EngineMemory,
    HostFunctions,
    Store,
    WasiOptions,
)
from dl.errors import EngineError, LinkerUsageError, ResourceLimitError
from dl.glue.base import base_module
from dl.glue.names import BASE_NAMESPACE
from dl.glue.placement import PlacedFunction, placement_module
from dl.options import SideMemorySource
from dl.program.host_symbols import ATOMICS, HostSymbols
from dl.program.main_module import MainPlan
from dl.program.side_memory import GrownMemory, GuestAllocator, SideMemory
from dl.program.wasi import SharedWasi, WasiCalls, add_forwarder, direct_wasi, forwarded_wasi
from dl.wasm.types import MemoryType
from memory import LinearMemory

log = logging.getLogger("dl.link")

_PAGE = 65536
_STACK_ALIGN_LOG2 = 10


class _Unbounded:
    """No boundary: for stores whose host functions are not the program's."""

    def enter_host(self) -> None: ...

    def exit_host(self, token: None) -> None: ...


class Program:
    """The engine's side of a program, before and apart from any library.

    All of it is set up by the thread that makes the linker, before there is another group; afterwards it only changes in
    `grow_memory`, which the engine serializes.

    Args:
        plan: what the main module means.
        engine: compiles and makes stores.
        functions: the program's host functions.
        host: its host symbols; the system interface for WASI is added to them.
        wasi: what WASI shows the program.
        side_memory: where side modules' data goes.
        thread_stack_size: bytes of shadow stack of a thread that the host attaches.
        store: compiled code that outlives the process; None for none.

    Attributes:
        compiler: turns its modules into code.
        wasi: its WASI, for host code; None until a main module that defines the memory is there.
        wasi_options: what WASI shows it.
        side_memory: hands out linear memory; None when the program's memory cannot be reached.
        linear: the program's memory; None likewise.
    """

    def __init__(
        self,
        plan: MainPlan,
        engine: Engine,
        functions: HostFunctions,
        host: HostSymbols,
        wasi: WasiOptions,
        side_memory: SideMemorySource,
        thread_stack_size: int,
        store: CodeStore | None = None,
    ) -> None:
        self.plan = plan
        self.engine = engine
        self.compiler = Compiler(engine, store)
        self._functions = functions
        self._host = host
        self.wasi_options = wasi
        self.wasi: WasiCalls | None = None
        self.thread_stack_size = thread_stack_size
        self._from_allocator = plan.allocator if side_memory == "auto" else side_memory == "allocator"
        self._memory: EngineMemory | None = None
        self._shared_wasi: SharedWasi | None = None
        self._base_code: CompiledModule | None = None
        self._waits_code: CompiledModule | None = None
        self.side_memory: SideMemory | None = None
        self.linear: LinearMemory | None = None
        if self.shares_memory and not engine.capabilities.shared_memory:
            raise LinkerUsageError(f"the program uses shared memory, which engine {engine.name} lacks")
        if self.shares_memory:
            self._share_memory()
        else:
            (direct_wasi if self.memory_comes_from_main else forwarded_wasi)(host)

    @property
    def memory_type(self) -> MemoryType | None:
        """Type of the program's memory."""
        return self.plan.memory_type

    @property
    def shares_memory(self) -> bool:
        """Whether threads can share the memory, so that there can be several groups."""
        kind = self.plan.memory_type
        return kind is not None and kind.limits.shared and self.plan.memory_export is None

    @property
    def memory_comes_from_main(self) -> bool:
        """Whether memory appears only with the main module's instance (or not at all)."""
        return self.plan.memory_export is not None or self.plan.memory_type is None

    @property
    def base_comes_after_main(self) -> bool:
        """Whether the base module imports from the main module."""
        return self.plan.places.table.namespace != BASE_NAMESPACE

    def new_store(self) -> Store:
        """Make the store of a group: memory and WASI are there, the base module is not."""
        store = self.engine.new_store(self._functions)
        try:
            if self.shares_memory:
                assert self._memory is not None
                store.define_memory(BASE_NAMESPACE, "memory", self._memory)
                return store
            store.enable_wasi(self.wasi_options)
            if not self.memory_comes_from_main:
                kind = self.plan.memory_type
                assert kind is not None
                memory = store.new_memory(kind)
                store.define_memory(BASE_NAMESPACE, "memory", memory)
                self.wasi = add_forwarder(self.compiler, store, kind)
                self._use(memory)
        except BaseException:
            store.close()
            raise
        return store

    def _share_memory(self) -> None:
        kind = self.plan.memory_type
        assert kind is not None
        try:
            self._memory = self.engine.shared_memory(kind)
        except EngineError as error:
            raise ResourceLimitError("the program", f"the engine cannot make its {kind}: {error}") from error
        self._shared_wasi = SharedWasi(
            self.compiler, self.engine.host_functions(_Unbounded()), self.wasi_options, self._memory, kind
        )
        self._shared_wasi.install(self._host)
        self.wasi = self._shared_wasi.calls
        self._use(self._memory)

    def _use(self, memory: EngineMemory) -> None:
        kind = self.plan.memory_type
        assert kind is not None
        self._memory = memory
        self.linear = LinearMemory(memory, stable_address=self.shares_memory)
        if self._from_allocator:
            self.side_memory = GuestAllocator(
                self.linear, self.plan.heap_base, lambda end: self.grow_memory_to(-(-end // _PAGE))
            )
        else:
            self.side_memory = GrownMemory(self.linear, memory.grow, kind.limits.maximum)

    def main_instantiated(self, store: Store, instance: EngineInstance) -> None:
        """Take from a main module that defines its memory what others need, before anything else is instantiated."""
        kind, export = self.plan.memory_type, self.plan.memory_export
        if kind is None or export is None:
            return
        memory = instance.memory(export)
        if kind.limits.shared:
            # It cannot be lent to other instances, and the plan says so: no libraries.
            self._use(memory)
            return
        store.define_memory(BASE_NAMESPACE, "memory", memory)
        self.wasi = add_forwarder(self.compiler, store, kind)
        if self._memory is None:
            self._use(memory)
            # Modules from here on need not export their memory: they go through the forwarder.
            forwarded_wasi(self._host)

    def base_code(self) -> CompiledModule:
        """Return the code of the base module, made at its first use.

        Raises:
            ResourceLimitError: there is no memory for the side modules' stack.
        """
        if self._base_code is None:
            wasm = base_module(
                self.plan.places,
                self.plan.table_length,
                self._first_stack_pointer(),
                exceptions=self.engine.capabilities.exceptions,
            )
            self._base_code = self.compiler.compile(wasm, "base")
        return self._base_code

    def waits_code(self) -> CompiledModule | None:
        """Return code that places what stands in for atomic waits; None when nothing waits on shared memory."""
        if self._waits_code is None and self.plan.wait_slots:
            placed = []
            for name, address in self.plan.wait_slots.items():
                kind = self._host.system[ATOMICS][name].type
                binding = self._host.bind(ATOMICS, name, kind, "the linker")
                assert binding is not None
                placed.append(PlacedFunction(binding.namespace, binding.name, kind, address))
            wasm = placement_module(placed, (), (), self.plan.places)
            self._waits_code = self.compiler.compile(wasm, "waits")
        return self._waits_code

    def _first_stack_pointer(self) -> int:
        if self.plan.stack_pointer is not None:
            return self.plan.stack_pointer
        return self.side_stack_pointer()

    def side_stack_pointer(self) -> int:
        """Allocate the stack that side modules have beside a static main module's; return its upper end, 0 for none yet.

        Raises:
            ResourceLimitError: there is no memory for it.
            LinkerUsageError: it would have to come from the main module's allocator, which does not run yet.
        """
        if self.plan.stack_size is None or self.plan.no_libraries or self.side_memory is None:
            return 0
        if isinstance(self.side_memory, GuestAllocator):
            # The main module has no stack pointer to share and its allocator may not run yet.
            raise LinkerUsageError(
                "side modules need a stack, but the main module exports no __stack_pointer; link it with "
                "--export=__stack_pointer, or use side_memory='grow'"
            )
        block = self.side_memory.allocate(self.plan.stack_size, _STACK_ALIGN_LOG2, "the side modules' stack")
        return block.address + block.size

    def grow_memory(self, pages: int) -> int | None:
        """Grow the memory by 64 KiB pages; return the former size in pages, or None when refused."""
        return None if self._memory is None else self._memory.grow(pages)

    def grow_memory_to(self, pages: int) -> bool:
        """Make the memory reach a size in pages; return whether it does."""
        if self._memory is None:
            return True
        missing = pages - self._memory.data_size() // _PAGE
        return missing <= 0 or self._memory.grow(missing) is not None

    def close(self) -> None:
        """Free what all groups shared; their stores are closed already."""
        if self.linear is not None:
            self.linear.close()
        if self._shared_wasi is not None:
            self._shared_wasi.close()
