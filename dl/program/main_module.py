"""The main module: which of the three kinds it is, and what follows for memory, table and stack.

* PIE: it has a dylink section and imports memory, table and bases. The linker lays out its data, then the stack, then
  the heap (WASIX ABI).
* Static: an ordinary module. It defines its table, and defines or imports its memory; the linker takes them as they are.
* None: the host provides memory and table, and links libraries only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from dl.dlfcn import MAIN_HANDLE
from dl.errors import LinkerUsageError, NotDynamicError, ResourceLimitError, UnsupportedModuleError
from dl.glue.names import BASE_NAMESPACE, STACK_POINTER_NAME, STACK_POINTER_TYPE, Places, module_namespace
from dl.glue.resolution import FromNamespace
from dl.options import MAX_PAGES, MemoryType
from dl.program.table import MAX_TABLE_LENGTH, RESERVED_TABLE_SLOTS
from dl.wasm.module import WasmModule
from dl.wasm.types import Limits, TableType
from dl.wasm.types import MemoryType as WasmMemoryType
from memory import STACK_UNIT_BYTES, MemoryLayoutError, main_layout, round_up

_PAGE = 65536


class MainKind(Enum):
    """The three kinds of main module."""

    PIE = "pie"
    STATIC = "static"
    NONE = "none"


@dataclass(frozen=True)
class MainPlan:
    """What the main module means for the program.

    Attributes:
        kind: which kind it is.
        memory_type: type of the program's memory; None when it has none.
        memory_export: name under which a static main module exports the memory it defines; None when the host makes it.
        memory_base: address of its data, bytes.
        table_base: table index of its own elements.
        table_length: elements of the table to begin with.
        places: where table and stack pointer are.
        stack_pointer: initial stack pointer, bytes; None when it is the main module's own, or depends on it.
        stack_size: bytes of a stack that side modules need of their own, beside a static main module's; else None.
        heap_base: where the heap starts, bytes.
        addresses: symbols that the linker defines, bytes.
        no_libraries: why the program can take no libraries; empty when it can.
        wait_slots: table indices of what stands in for atomic waits, by instruction; empty when memory is not shared.
        allocator: whether side modules' data must come from the main module's allocator.
    """

    kind: MainKind
    memory_type: WasmMemoryType | None
    memory_export: str | None = None
    memory_base: int = 0
    table_base: int = 0
    table_length: int = RESERVED_TABLE_SLOTS
    places: Places = field(default_factory=Places)
    stack_pointer: int | None = None
    stack_size: int | None = None
    heap_base: int = 0
    addresses: dict[str, int] = field(default_factory=dict)
    no_libraries: str = ""
    wait_slots: dict[str, int] = field(default_factory=dict)
    allocator: bool = False


def plan_main(module: WasmModule | None, *, memory: MemoryType | None, stack_size: int) -> MainPlan:
    """Decide what a main module is and where everything goes.

    Args:
        module: the main module, or None.
        memory: the memory the host wants to provide; for a main module that imports its memory, raises its minimum.
        stack_size: shadow stack, bytes.

    Raises:
        NotDynamicError: a module with a dylink section that does not import its memory.
        ResourceLimitError: data, stack or table do not fit.
        UnsupportedModuleError: a 64-bit memory.
        LinkerUsageError: a stack of an impossible size, or a memory for a module that brings its own.
    """
    if stack_size <= 0 or stack_size % STACK_UNIT_BYTES:
        raise LinkerUsageError(
            f"stack_size must be a positive multiple of {STACK_UNIT_BYTES} bytes, not {stack_size}"
        )
    plan = _plan(module, memory, stack_size)
    if plan.table_length > MAX_TABLE_LENGTH:
        name = module.name if module else "the program"
        raise ResourceLimitError(
            name, f"needs a table of {plan.table_length} elements; at most {MAX_TABLE_LENGTH} are allowed"
        )
    return plan


def _plan(module: WasmModule | None, memory: MemoryType | None, stack_size: int) -> MainPlan:
    if module is None:
        return _without_main(memory or MemoryType(), stack_size)
    imported = next((e for e in module.imports if e.kind == "memory"), None)
    exported = next((e for e in module.exports.values() if e.kind == "memory"), None)
    imports_bases = any(e.module == "env" and e.name == "__memory_base" for e in module.imports)
    if module.dylink is not None and (imports_bases or exported is None):
        if imported is None:
            raise NotDynamicError(module.name, "a position-independent main module must import its memory")
        return _pie(module, imported.type, memory, stack_size)  # type: ignore[arg-type]
    return _static(module, memory, stack_size)


def _widen(
    module: str, wanted: WasmMemoryType, least_pages: int, memory: MemoryType | None
) -> WasmMemoryType:
    """Return the type of the memory to make for a main module that imports one."""
    limits = wanted.limits
    if limits.is64:
        raise UnsupportedModuleError(module, "a 64-bit memory")
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


def _pie(module: WasmModule, wanted: WasmMemoryType, memory: MemoryType | None, stack_size: int) -> MainPlan:
    info = module.dylink
    assert info is not None
    try:
        layout = main_layout(
            memory_size=info.memory_size, memory_align_log2=info.memory_alignment_log2, stack_size=stack_size
        )
    except MemoryLayoutError as error:
        raise ResourceLimitError(module.name, f"its data and stack have no room: {error}") from error
    memory_type = _widen(module.name, wanted, layout.minimum_pages, memory)
    table_base = round_up(RESERVED_TABLE_SLOTS, 1 << info.table_alignment_log2)
    names = {e.name for e in module.imports}
    return MainPlan(
        MainKind.PIE,
        memory_type,
        memory_base=layout.memory_base,
        table_base=table_base,
        table_length=table_base + info.table_size,
        stack_pointer=layout.stack_high,
        heap_base=layout.heap_base,
        addresses=_addresses(layout.stack_low, layout.stack_high, layout.heap_base, memory_type),
        wait_slots=_wait_slots(memory_type, 1),
        allocator="emscripten_resize_heap" in names,
    )


def _addresses(low: int, high: int, heap_base: int, memory_type: WasmMemoryType) -> dict[str, int]:
    return {
        "__stack_low": low,
        "__stack_high": high,
        "__heap_base": heap_base,
        # One page short of 4 GiB is the largest end that 32 bits can state.
        "__heap_end": min(memory_type.limits.minimum, MAX_PAGES - 1) * _PAGE,
    }


def _without_main(memory: MemoryType, stack_size: int) -> MainPlan:
    try:
        layout = main_layout(memory_size=0, memory_align_log2=10, stack_size=stack_size)
    except MemoryLayoutError as error:
        raise ResourceLimitError("the program", f"its stack has no room: {error}") from error
    wanted = memory.wasm()
    if memory.maximum is not None and layout.minimum_pages > memory.maximum:
        raise ResourceLimitError(
            "the program",
            f"a stack of {stack_size} bytes needs {layout.minimum_pages} pages, but the memory allows "
            f"{memory.maximum}; ask for a smaller stack_size",
        )
    minimum = max(memory.minimum, layout.minimum_pages)
    memory_type = WasmMemoryType(Limits(minimum, wanted.limits.maximum, memory.shared, is64=False))
    return MainPlan(
        MainKind.NONE,
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


def _static(module: WasmModule, memory: MemoryType | None, stack_size: int) -> MainPlan:
    imported = next((e for e in module.imports if e.kind == "memory"), None)
    exported = next((e for e in module.exports.values() if e.kind == "memory"), None)
    memory_type: WasmMemoryType | None = None
    refusals = []
    if imported is not None:
        assert isinstance(imported.type, WasmMemoryType)
        memory_type = _widen(module.name, imported.type, 0, memory)
    elif exported is not None:
        assert isinstance(exported.type, WasmMemoryType)
        memory_type = exported.type
    else:
        refusals.append("it neither imports nor exports its memory")
    if memory is not None and imported is None:
        raise LinkerUsageError(f"{module.name} does not import its memory, so it can be given none")
    if memory_type is not None and memory_type.limits.is64:
        raise UnsupportedModuleError(module.name, "a 64-bit memory")
    if memory_type is not None and memory_type.limits.shared and imported is None:
        # Engines share a memory between stores, and lend it to other instances, only if the host has made it.
        refusals.append("it defines its shared memory (link it with --import-memory)")
    table = next((e for e in module.exports.values() if e.kind == "table" and e.index == 0), None)
    wanted_table = next((e.type for e in module.imports if e.kind == "table"), None)
    length = RESERVED_TABLE_SLOTS
    places = Places()
    if isinstance(wanted_table, TableType):
        length = max(length, wanted_table.limits.minimum)
    elif table is None:
        refusals.append("it exports no table (link it with wasm-ld --export-table --growable-table)")
    else:
        assert isinstance(table.type, TableType)
        length = table.type.limits.minimum
        places = Places(table=FromNamespace(module_namespace(MAIN_HANDLE), table.name))
        if table.type.limits.maximum is not None and table.type.limits.maximum <= length:
            refusals.append("its table cannot grow (link it with wasm-ld --growable-table)")
    slots = {} if refusals or imported is None else _wait_slots(memory_type, length)
    pointer = module.exports.get(STACK_POINTER_NAME)
    own_stack: int | None = stack_size
    # The base module gets its table or its stack pointer from the main module, and is then made after it; a table that
    # the main module imports has to be there before, and then side modules have a stack of their own.
    if (
        places.table.namespace != BASE_NAMESPACE
        and pointer is not None
        and pointer.type == STACK_POINTER_TYPE
    ):
        places = Places(places.table, FromNamespace(module_namespace(MAIN_HANDLE), STACK_POINTER_NAME))
        own_stack = None
    return MainPlan(
        MainKind.STATIC,
        memory_type,
        memory_export=exported.name if exported is not None and imported is None else None,
        table_length=length + len(slots),
        places=places,
        wait_slots=slots,
        stack_size=own_stack,
        no_libraries="; ".join(refusals),
    )
