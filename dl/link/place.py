"""The third phase of a load: table indices for the new modules' functions, and then what they define.

Linear memory is reserved before the link lock is taken (`dl.link.find.reserve_memory`); table indices are the linker's own.
"""

from __future__ import annotations

from dl.dlfcn import MAIN_HANDLE
from dl.errors import LinkError, UnsupportedModuleError
from dl.glue.placement import ThreadLocalModule
from dl.link.plan import LinkPlan
from dl.modules.linked_module import LinkedModule
from dl.modules.symbols import (
    ModuleSymbols,
    data_value,
    element_runs,
    functions_without_index,
    imported_table_bases,
)
from dl.wasm.types import FuncType, GlobalType
from threads import found_in


def place_modules(plan: LinkPlan) -> None:
    """Reserve table indices for every new module; under the link lock.

    Raises:
        ResourceLimitError: there is no room.
        LinkError: a module fills table elements that it does not ask for.
    """
    main = plan.program.main
    for module in plan.new:
        if module.handle == MAIN_HANDLE:
            # Its own elements lie where it was linked; the table of a program without libraries may be unable to grow.
            module.memory_base, module.table_base = main.memory_base, main.table_base
            if not main.no_libraries:
                _place_functions(plan, module, 0, 0)
        else:
            info = module.dylink
            assert info is not None
            _place_functions(plan, module, info.table_size, info.table_alignment_log2)
    for module in plan.new:
        _check_elements(module)


def _place_functions(plan: LinkPlan, module: LinkedModule, own: int, align_log2: int) -> None:
    """Reserve the module's own run, followed by an index for each exported function that has none in it."""
    total = own + len(functions_without_index(module.wasm))
    if not total:
        return
    table = plan.program.state.table
    region = table.allocate(total, align_log2, module.name)
    plan.change.on_failure(lambda: table.free(region))
    module.elements = region
    if module.handle != MAIN_HANDLE:
        module.table_base = region.address if own else 0


def _check_elements(module: LinkedModule) -> None:
    """Check that a module fills no table elements but those it asked for: the others are other modules' functions.

    Raises:
        LinkError: it does.
    """
    info = module.dylink
    if info is None or (module.handle == MAIN_HANDLE and not imported_table_bases(module.wasm)):
        return
    first, end = module.table_base, module.table_base + info.table_size
    for start, functions in element_runs(module.wasm, module.table_base):
        if functions and not first <= start <= start + len(functions) <= end:
            raise LinkError(
                module.name,
                f"an element segment fills table elements {start} to {start + len(functions) - 1}, but its "
                f"dylink section asks for {info.table_size} elements, which begin at {first}",
            )


def define_symbols(plan: LinkPlan) -> None:
    """Give every new module the symbols that it defines itself."""
    for module in plan.new:
        module.symbols = ModuleSymbols(
            module.wasm, module.handle, module.memory_base, module.table_base, module.first_placed
        )
        module.thread_local = _thread_local(module)


def _thread_local(module: LinkedModule) -> ThreadLocalModule | None:
    """Return a module's thread-local storage, if it has any and can set it up for a new thread."""
    export = found_in(module.wasm.exports, "__tls_base")
    if export is None or not isinstance(export.type, GlobalType) or not export.type.mutable:
        return None
    size = data_value(module.wasm, "__tls_size") or 0
    align = data_value(module.wasm, "__tls_align") or 1
    if align & (align - 1):
        raise UnsupportedModuleError(module.name, f"__tls_align is {align}, which is no power of two")
    for initializer, kind in (
        ("__wasm_init_tls", FuncType(("i32",), ())),
        ("__wasix_init_tls", FuncType((), ("i32",))),
    ):
        function = module.wasm.exports.get(initializer)
        if function is not None and function.type == kind and (size or initializer == "__wasix_init_tls"):
            return ThreadLocalModule(
                module.handle, module.seat, size, align.bit_length() - 1, export.type, initializer
            )
    return None
