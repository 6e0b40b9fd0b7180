"""The linker state: what all instance groups of a program share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dl.closures import GrowTable, SetSlot
from dl.engine.protocol import CompiledModule
from dl.errors import ResourceLimitError
from dl.glue import Places, ThreadLocalModule
from dl.handles import MAIN_HANDLE, ModuleHandle
from dl.images import ModuleImage
from dl.linked import LinkedModule
from dl.side_memory import SideMemory
from dl.wasm.types import FuncType, MemoryType
from memory import Allocator, LayoutExhaustedError, Region

RESERVED_TABLE_SLOTS = 16
"""Table indices below the main module's: 0 is the null pointer, the rest is the linker's own (futexes)."""

MAX_TABLE_LENGTH = 10_000_000
"""Most elements a table may have: the limit web engines set, and far below what would exhaust a host."""

MAX_MODULES = 10_000


@dataclass(frozen=True, eq=False)
class LoadModules:
    """A link operation: modules that every group instantiates.

    Attributes:
        modules: in instantiation order, which is handle order.
        table_length: elements the table has from now on.
        placement: code that places functions and sets up thread-local storage; None when there is nothing to do.
        thread_local: modules whose thread-local storage a new thread sets up with it, in parameter order.
        keeps_glue: modules whose import module stays reachable by name.
        binds_thread_locals: whether import modules have addresses that depend on the thread.
    """

    modules: tuple[LinkedModule, ...]
    table_length: int
    placement: CompiledModule | None
    thread_local: tuple[ThreadLocalModule, ...]
    keeps_glue: frozenset[ModuleHandle]
    binds_thread_locals: bool


@dataclass(frozen=True, eq=False)
class UnloadModules:
    """A link operation: modules that every group forgets.

    Attributes:
        modules: what goes.
        table_runs: first index and number of the table elements that become null.
    """

    modules: tuple[LinkedModule, ...]
    table_runs: tuple[tuple[int, int], ...]


DlOperation = LoadModules | UnloadModules | GrowTable | SetSlot
"""What every group must do."""


class TableSpace:
    """Which table indices are taken. Unit: table elements. Guarded by the link lock.

    The table never shrinks, so indices given back are reused, lowest fitting run first.

    Attributes:
        length: elements that the indices to hand out belong to. The table itself may be shorter, if an engine refused to grow
            it or nobody uses the last ones.
    """

    def __init__(self, length: int) -> None:
        self.length = self._initial = length
        self._ends: dict[int, int] = {}
        self._allocator = Allocator(self._grow, page_size=1, limit_pages=MAX_TABLE_LENGTH)

    def _grow(self, elements: int) -> int | None:
        former = self.length
        if former + elements > MAX_TABLE_LENGTH:
            return None
        self.length += elements
        return former

    def allocate(self, elements: int, align_log2: int, purpose: str) -> Region:
        """Reserve a run of indices.

        Raises:
            ResourceLimitError: the table would exceed `MAX_TABLE_LENGTH`.
        """
        try:
            region = self._allocator.allocate(elements, align_log2)
        except LayoutExhaustedError as error:
            raise ResourceLimitError(
                purpose,
                f"{elements} table elements at 2**{align_log2} do not fit a table of at most {MAX_TABLE_LENGTH}",
            ) from error
        self._ends[region.address] = region.end
        return region

    def reach(self) -> int:
        """Elements that a table must have for all indices handed out.

        Not `length`, which a failed load has raised for good: a table with a maximum could then never serve again.
        """
        return max(self._initial, *self._ends.values(), 0)

    def free(self, region: Region) -> None:
        """Give a run of indices back."""
        self._ends.pop(region.address, None)
        self._allocator.free(region)

    def in_use(self) -> int:
        """Elements handed out and not given back."""
        return self._allocator.statistics().bytes_in_use


@dataclass
class LinkerState:
    """Shared by all groups; guarded by the link lock, which whoever changes it holds.

    Readers that only look up what a committed load has published (`modules`, `symbols`) need no lock: entries are added
    whole and never changed, and dictionaries are copied before they are walked.

    Attributes:
        modules: by handle, the main module first.
        by_identity: handle of the module that a resolved path or a name of bytes stands for.
        next_handle: the next handle.
        global_scope: modules whose symbols all see, in search order.
        table: table indices.
        side_memory: linear memory for side modules.
        places: where table and stack pointer are.
        memory_type: type of the program's memory; None until a static main module has brought it.
        linker_addresses: addresses the linker defines itself, by symbol name, bytes.
        host_addresses: table indices of host functions whose address was taken.
        arriving: modules of the load under way, for what their start functions ask.
    """

    table: TableSpace
    places: Places
    side_memory: SideMemory | None = None
    memory_type: MemoryType | None = None
    modules: dict[ModuleHandle, LinkedModule] = field(default_factory=dict)
    by_identity: dict[str, ModuleHandle] = field(default_factory=dict)
    next_handle: int = MAIN_HANDLE + 1
    global_scope: list[LinkedModule] = field(default_factory=list)
    linker_addresses: dict[str, int] = field(default_factory=dict)
    host_addresses: dict[tuple[str, str, FuncType], int] = field(default_factory=dict)
    arriving: dict[ModuleHandle, LinkedModule] = field(default_factory=dict)

    def take_handle(self, module: str, coming: int = 0) -> ModuleHandle:
        """Return the next handle.

        Args:
            module: who gets it, for messages.
            coming: how many modules the load under way has given handles to.

        Raises:
            ResourceLimitError: there are `MAX_MODULES` modules.
        """
        if len(self.modules) + coming >= MAX_MODULES:
            raise ResourceLimitError(module, f"{MAX_MODULES} modules are loaded already")
        handle = ModuleHandle(self.next_handle)
        self.next_handle += 1
        return handle

    def remove(self, modules: Sequence[LinkedModule]) -> None:
        """Forget modules: their handles, names and places in the global scope."""
        for module in modules:
            self.modules.pop(module.handle, None)
        self.forget_names(modules)

    def forget_names(self, modules: Sequence[LinkedModule]) -> None:
        """Let nobody find modules any more, by path, name or global scope; their handles stay."""
        for module in modules:
            if self.by_identity.get(module.image.identity) == module.handle:
                del self.by_identity[module.image.identity]
        gone = {id(module) for module in modules}
        self.global_scope = [m for m in self.global_scope if id(m) not in gone]

    def module(self, handle: int) -> LinkedModule | None:
        """Return a module by its handle, also one that is being loaded."""
        return self.modules.get(ModuleHandle(handle)) or self.arriving.get(ModuleHandle(handle))

    def image(self, identity: str) -> ModuleImage | None:
        """Return the image of the loaded module that a path or a name stands for."""
        handle = self.by_identity.get(identity)
        module = None if handle is None else self.modules.get(handle)
        return None if module is None else module.image

    def names(self, modules: Sequence[LinkedModule]) -> list[str]:
        """Return what messages call some modules."""
        return [module.name for module in modules]


@dataclass
class Undo:
    """What takes back the steps of an operation that fails, last step first."""

    steps: list[Callable[[], object]] = field(default_factory=list)

    def on_failure(self, step: Callable[[], object]) -> None:
        """Add the step that takes back what was just done."""
        self.steps.append(step)

    def run(self) -> None:
        """Take everything back."""
        while self.steps:
            self.steps.pop()()
