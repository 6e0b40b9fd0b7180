"""The main module: what its kind means for memory, table, stack and construction.

* `Pie`: it has a dylink section and imports memory, table and bases. The linker lays out its data, then the stack, then
  the heap (WASIX ABI; Emscripten's `MAIN_MODULE`).
* `Static`: an ordinary module. It defines its table, and defines or imports its memory; the linker takes them as they are.
* `NoMain`: the host provides memory and table, and links libraries only.

Whatever differs between the kinds is a member here, so that nothing else asks which kind a program has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Mapping
from typing import ClassVar

from dl.dlfcn import MAIN_HANDLE
from dl.errors import LinkerUsageError, NotDynamicError, ResourceLimitError, UnsupportedModuleError
from dl.glue.names import (
    BASE_NAMESPACE,
    STACK_POINTER_NAME,
    STACK_POINTER_TYPE,
    TableAndStack,
    module_namespace,
)
from dl.glue.resolution import FromNamespace
from dl.limits import Limits as ProgramLimits
from dl.modules.kind import check_address_width
from dl.options import MAX_PAGES, MemoryType
from dl.program.table import RESERVED_TABLE_SLOTS
from dl.records import dataclass, field, replace
from dl.wasm.module import WasmModule
from dl.wasm.records import Export
from dl.wasm.types import Limits, TableType
from dl.wasm.types import MemoryType as WasmMemoryType
from memory import STACK_UNIT_BYTES, MemoryLayoutError, main_layout, round_up

START = "_start"
INITIALIZE = "_initialize"
CONSTRUCTORS = "__wasm_call_ctors"
_PAGE = 65536
_ADDRESS_SPACE = 1 << 32


@dataclass(frozen=True)
class RootNames:
    """The names under which a main module exports what the linker uses of it.

    Attributes:
        stack_pointer: its shadow stack pointer.
        malloc, free, realloc: its allocator's functions, the first that there is.
        assemblyscript: whether they are AssemblyScript's: see `dl.link.root_allocator`. Its simplest runtime takes all memory
            for its own, so the data of libraries comes from its allocator, if it exports one.
    """

    stack_pointer: str = STACK_POINTER_NAME
    malloc: tuple[str, ...] = ("malloc",)
    free: tuple[str, ...] = ("free",)
    realloc: tuple[str, ...] = ("realloc",)
    assemblyscript: bool = False


C_NAMES = RootNames()

ASSEMBLYSCRIPT_NAMES = RootNames(
    "__user_stack_pointer",
    ("malloc", "__alloc", "__new"),
    ("free", "__free", "__unpin"),
    ("realloc", "__realloc", "__renew"),
    assemblyscript=True,
)


@dataclass(frozen=True)
class MainModule(ABC):
    """What every kind of main module answers; the defaults are those of a program whose memory and table the linker makes.

    Attributes:
        memory_type: type of the program's memory; None when it has none.
        memory_base: address of its data, bytes.
        table_base: table index of its own elements.
        table_length: elements of the table to begin with.
        anchors: where table and stack pointer are.
        stack_pointer: initial stack pointer, bytes; None when it is the main module's own, or depends on it.
        stack_size: bytes of a stack that side modules need of their own, beside a static main module's; else None.
        heap_base: where the heap starts, bytes.
        addresses: symbols that the linker defines, bytes.
        no_libraries: why the program can take no libraries; empty when it can.
        wait_slots: table indices of what stands in for atomic waits, by instruction; empty when memory is not shared.
        allocator: whether side modules' data must come from the main module's allocator.
    """

    kind: ClassVar[str]
    """One word for messages and tools."""

    memory_type: WasmMemoryType | None
    memory_base: int = 0
    table_base: int = 0
    table_length: int = RESERVED_TABLE_SLOTS
    anchors: TableAndStack = field(default_factory=TableAndStack)
    stack_pointer: int | None = None
    stack_size: int | None = None
    heap_base: int = 0
    addresses: Mapping[str, int] = field(default_factory=dict)
    no_libraries: str = ""
    wait_slots: Mapping[str, int] = field(default_factory=dict)
    allocator: bool = False

    @property
    def memory_export(self) -> str | None:
        """Name under which the main module exports the memory that it defines; None when the linker makes the memory."""
        return None

    @property
    def makes_memory(self) -> bool:
        """Whether the linker makes the program's memory, before the main module is instantiated."""
        return self.memory_type is not None and self.memory_export is None

    @property
    def shares_memory(self) -> bool:
        """Whether threads can share the memory, so that there can be several groups."""
        return self.makes_memory and self.memory_type is not None and self.memory_type.limits.shared

    @property
    def makes_table(self) -> bool:
        """Whether the base module defines the table, and so comes before the main module."""
        return self.anchors.table.namespace == BASE_NAMESPACE

    @property
    def reaches_table(self) -> bool:
        """Whether the guest's function pointers are indices of the table that the linker works on."""
        return True

    @abstractmethod
    def initializer(self, exports: Container[str]) -> str | None:
        """Return the export that initializes the main module when it is linked; None if it needs no call.

        Args:
            exports: names of what it exports.
        """


@dataclass(frozen=True)
class Pie(MainModule):
    """A position-independent program."""

    kind = "position-independent"

    def initializer(self, exports: Container[str]) -> str | None:
        """A command's `_start` runs its constructors, a reactor's `_initialize` does; an Emscripten main has neither."""
        if START in exports:
            return None
        return INITIALIZE if INITIALIZE in exports else CONSTRUCTORS


@dataclass(frozen=True)
class Static(MainModule):
    """An ordinary program, laid out by its own linker.

    Attributes:
        exported_memory: name under which it exports the memory that it defines; None when it imports its memory.
        imports_table: whether it imports its table, which the linker makes then.
    """

    kind = "static"

    exported_memory: str | None = None
    imports_table: bool = False

    @property
    def memory_export(self) -> str | None:
        """See `MainModule`."""
        return self.exported_memory

    @property
    def reaches_table(self) -> bool:
        """Its table may be one that it keeps to itself; then the linker's has none of its functions."""
        return not self.makes_table or self.imports_table

    def initializer(self, exports: Container[str]) -> str | None:
        """A reactor's `_initialize`; a command's `_start` initializes it when it is run."""
        return INITIALIZE if INITIALIZE in exports and START not in exports else None


@dataclass(frozen=True)
class NoMain(MainModule):
    """Libraries only."""

    kind = "none"

    def initializer(self, exports: Container[str]) -> str | None:  # noqa: ARG002  there is no module
        """There is no module to initialize."""
        return None


def describe_main(
    module: WasmModule | None,
    *,
    memory: MemoryType | None,
    stack_size: int,
    limits: ProgramLimits | None = None,
    names: RootNames = C_NAMES,
) -> MainModule:
    """Decide what a main module is and where everything goes.

    Args:
        module: the main module, or None.
        memory: the memory the host wants to provide; for a main module that imports its memory, raises its minimum.
        stack_size: shadow stack, bytes.
        limits: the program's; None for the defaults.
        names: under which it exports what the linker uses.

    Raises:
        NotDynamicError: a module with a dylink section that does not import its memory.
        ResourceLimitError: data, stack or table do not fit.
        UnsupportedModuleError: a 64-bit memory.
        LinkerUsageError: a stack of an impossible size, or a memory for a module that brings its own.
    """
    if not 0 < stack_size < _ADDRESS_SPACE or stack_size % STACK_UNIT_BYTES:
        raise LinkerUsageError(
            f"stack_size must be a positive multiple of {STACK_UNIT_BYTES} bytes below 4 GiB, not {stack_size}"
        )
    if module is not None:
        check_address_width(module)
    if module is None:
        main: MainModule = _no_main(memory or MemoryType(), stack_size)
    elif is_position_independent(module):
        main = _pie(module, memory, stack_size)
    else:
        main = _static(module, memory, stack_size, names)
    return _within(main, module.name if module else "the program", limits or ProgramLimits())


def _within(main: MainModule, name: str, limits: ProgramLimits) -> MainModule:
    """Return a main module whose memory the linker makes no larger than the limits allow.

    Raises:
        ResourceLimitError: it needs more, or brings a memory that could grow beyond them.
    """
    if main.table_length > limits.table_elements:
        raise limits.refusal("table_elements", name, f"its table needs {main.table_length} elements")
    kind, most = main.memory_type, limits.memory_pages
    if kind is None:
        return main
    if kind.limits.minimum > most:
        raise limits.refusal("memory_pages", name, f"its memory needs {kind.limits.minimum} pages")
    maximum = MAX_PAGES if kind.limits.maximum is None else kind.limits.maximum
    if maximum <= most:
        return main
    if main.makes_memory:
        return replace(main, memory_type=replace(kind, limits=replace(kind.limits, maximum=most)))
    if kind.limits.shared:
        # No store's limit holds for a memory that is shared.
        raise limits.refusal(
            "memory_pages",
            name,
            f"it defines a shared memory of up to {maximum} pages (link it with --max-memory or --import-memory)",
        )
    return main


def is_position_independent(module: WasmModule) -> bool:
    """Whether a main module is laid out by the linker: it has a dylink section and its addresses are imported."""
    imports_bases = any(e.module == "env" and e.name == "__memory_base" for e in module.imports)
    return module.dylink is not None and (imports_bases or _exported_memory(module) is None)


def _exported_memory(module: WasmModule) -> Export | None:
    return next((e for e in module.exports.values() if e.kind == "memory"), None)


def _widen(
    module: str, wanted: WasmMemoryType, least_pages: int, memory: MemoryType | None
) -> WasmMemoryType:
    """Return the type of the memory to make for a main module that imports one."""
    limits = wanted.limits
    maximum = limits.maximum
    if memory is not None:
        if memory.shared != limits.shared:
            raise UnsupportedModuleError(
                module, f"imports {wanted}, but a memory with shared={memory.shared} was asked for"
            )
        least_pages = max(least_pages, memory.minimum)
        if memory.maximum is not None:
            maximum = memory.maximum if maximum is None else min(memory.maximum, maximum)
    minimum = max(limits.minimum, least_pages)
    top = MAX_PAGES if maximum is None else maximum
    if minimum > top:
        raise ResourceLimitError(module, f"needs {minimum} pages of memory, but allows {top}")
    return WasmMemoryType(Limits(minimum, top if limits.shared else maximum, limits.shared, is64=False))


def _pie(module: WasmModule, memory: MemoryType | None, stack_size: int) -> Pie:
    info = module.dylink
    assert info is not None
    imported = next((e for e in module.imports if e.kind == "memory"), None)
    if imported is None:
        raise NotDynamicError(module.name, "a position-independent main module must import its memory")
    assert isinstance(imported.type, WasmMemoryType)
    try:
        layout = main_layout(
            memory_size=info.memory_size, memory_align_log2=info.memory_alignment_log2, stack_size=stack_size
        )
    except MemoryLayoutError as error:
        raise ResourceLimitError(module.name, f"its data and stack have no room: {error}") from error
    memory_type = _widen(module.name, imported.type, layout.minimum_pages, memory)
    table_base = round_up(RESERVED_TABLE_SLOTS, 1 << info.table_alignment_log2)
    return Pie(
        memory_type,
        memory_base=layout.memory_base,
        table_base=table_base,
        table_length=table_base + info.table_size,
        stack_pointer=layout.stack_high,
        heap_base=layout.heap_base,
        addresses=_addresses(layout.stack_low, layout.stack_high, layout.heap_base, memory_type),
        wait_slots=_wait_slots(memory_type, 1),
        allocator=any(e.name == "emscripten_resize_heap" for e in module.imports),
    )


def _addresses(low: int, high: int, heap_base: int, memory_type: WasmMemoryType) -> dict[str, int]:
    return {
        "__stack_low": low,
        "__stack_high": high,
        "__heap_base": heap_base,
        # One page short of 4 GiB is the largest end that 32 bits can state.
        "__heap_end": min(memory_type.limits.minimum, MAX_PAGES - 1) * _PAGE,
    }


def _no_main(memory: MemoryType, stack_size: int) -> NoMain:
    try:
        layout = main_layout(memory_size=0, memory_align_log2=10, stack_size=stack_size)
    except MemoryLayoutError as error:
        raise ResourceLimitError("the program", f"its stack has no room: {error}") from error
    if memory.maximum is not None and layout.minimum_pages > memory.maximum:
        raise ResourceLimitError(
            "the program",
            f"a stack of {stack_size} bytes needs {layout.minimum_pages} pages, but the memory allows "
            f"{memory.maximum}; ask for a smaller stack_size",
        )
    wanted = memory.wasm()
    minimum = max(memory.minimum, layout.minimum_pages)
    memory_type = WasmMemoryType(Limits(minimum, wanted.limits.maximum, memory.shared, is64=False))
    return NoMain(
        memory_type,
        stack_pointer=layout.stack_high,
        heap_base=layout.heap_base,
        addresses=_addresses(layout.stack_low, layout.stack_high, layout.heap_base, memory_type),
        wait_slots=_wait_slots(memory_type, 1),
    )


def _wait_slots(memory_type: WasmMemoryType | None, first: int) -> dict[str, int]:
    if memory_type is None or not memory_type.limits.shared:
        return {}
    return {name: first + i for i, name in enumerate(("notify", "wait32", "wait64"))}


def _static(
    module: WasmModule, memory: MemoryType | None, stack_size: int, names: RootNames = C_NAMES
) -> Static:
    refusals: list[str] = []
    memory_type, exported = _static_memory(module, memory, refusals)
    table = next((e for e in module.exports.values() if e.kind == "table" and e.index == 0), None)
    wanted_table = next((e.type for e in module.imports if e.kind == "table"), None)
    length = RESERVED_TABLE_SLOTS
    anchors = TableAndStack()
    if isinstance(wanted_table, TableType):
        length = max(length, wanted_table.limits.minimum)
    elif table is None:
        refusals.append(
            "it exports no table (link it with wasm-ld --export-table --growable-table, or build it with dlrun cc)"
        )
    else:
        assert isinstance(table.type, TableType)
        length = table.type.limits.minimum
        anchors = TableAndStack(
            table=FromNamespace(module_namespace(MAIN_HANDLE), table.name, provider=MAIN_HANDLE)
        )
        if table.type.limits.maximum is not None and table.type.limits.maximum <= length:
            refusals.append(
                "its table cannot grow (link it with wasm-ld --growable-table, or build it with dlrun cc)"
            )
    slots = {} if refusals or exported is not None else _wait_slots(memory_type, length)
    own_stack: int | None = stack_size
    pointer = module.exports.get(names.stack_pointer)
    # The base module gets its table or its stack pointer from the main module, and is then made after it; a table that
    # the main module imports has to be there before, and then side modules have a stack of their own.
    if (
        anchors.table.namespace != BASE_NAMESPACE
        and pointer is not None
        and pointer.type == STACK_POINTER_TYPE
    ):
        own = FromNamespace(module_namespace(MAIN_HANDLE), names.stack_pointer, provider=MAIN_HANDLE)
        anchors = TableAndStack(anchors.table, own)
        own_stack = None
    return Static(
        memory_type,
        exported_memory=exported,
        imports_table=wanted_table is not None,
        table_length=length + len(slots),
        anchors=anchors,
        wait_slots=slots,
        stack_size=own_stack,
        no_libraries="; ".join(refusals),
        allocator=names.assemblyscript and any(name in module.exports for name in names.malloc),
    )


def _static_memory(
    module: WasmModule, memory: MemoryType | None, refusals: list[str]
) -> tuple[WasmMemoryType | None, str | None]:
    """Return the type of a static program's memory, and the name under which the module exports it if it defines it."""
    imported = next((e for e in module.imports if e.kind == "memory"), None)
    if imported is not None:
        assert isinstance(imported.type, WasmMemoryType)
        return _widen(module.name, imported.type, 0, memory), None
    if memory is not None:
        raise LinkerUsageError(f"{module.name} does not import its memory, so it can be given none")
    exported = _exported_memory(module)
    if exported is None:
        refusals.append("it neither imports nor exports its memory")
        return None, None
    assert isinstance(exported.type, WasmMemoryType)
    if exported.type.limits.shared:
        # Engines share a memory between stores, and lend it to other instances, only if the host has made it.
        refusals.append("it defines its shared memory (link it with --import-memory)")
    return exported.type, exported.name
