"""The fifth phase of a load: its outcome, written as WebAssembly that every group instantiates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from dl.dlfcn import MAIN_HANDLE, ModuleHandle
from dl.glue.generated import generated
from dl.glue.imports import import_module, link_names, needs_handle, onward_calls
from dl.glue.names import BASE_NAMESPACE, MEMORY_BASE, TABLE_BASE, module_namespace
from dl.glue.placement import PlacedFunction, PlacedRun, placement_module
from dl.glue.resolution import Binding, Constant, FromNamespace, Place, ThreadLocalAddress, ThroughTable
from dl.link.import_lists import import_list
from dl.link.plan import LinkPlan
from dl.link.sources import ENV, GOT_FUNC, GOT_MEM, is_variable
from dl.modules.function_runs import apart, numbered_apart
from dl.modules.linked_module import LinkedModule
from dl.modules.symbols import placed_functions, places_itself
from dl.program.operations import LoadModules
from dl.program.program import Program
from dl.wasm.types import FuncType, GlobalType, MemoryType

_PROGRAMS_MEMORY = FromNamespace(BASE_NAMESPACE, "memory")


def grow_memory(plan: LinkPlan) -> None:
    """Make linear memory as large as the new modules' imports want it.

    Late, because this cannot be taken back.

    Raises:
        ResourceLimitError: it cannot grow so far.
    """
    for module in plan.new:
        if not module.wasm.import_counts["memory"]:
            continue
        imports = module.wasm.imports
        for position, binding in numbered_apart(module.bindings):
            entry = imports[position]
            if not isinstance(entry.type, MemoryType) or binding != _PROGRAMS_MEMORY:
                continue
            if not plan.program.grow_memory_to(entry.type.limits.minimum):
                raise plan.program.no_memory(
                    module.name, f"linear memory cannot grow to the {entry.type} that it imports"
                )


def generate_glue(plan: LinkPlan) -> LoadModules:
    """Compile an import module for each new module and a placement module for all; return the operation.

    Raises:
        InvalidModuleError: the engine refuses what was generated.
    """
    program = plan.program
    anchors = program.main.anchors
    tail_calls = program.engine.capabilities.tail_calls
    keeps_targets = program.options.keeps_stub_targets
    arriving = {module.handle for module in plan.new}
    based: dict[int, LinkedModule] = {}
    for module in plan.new:
        imports = module.wasm.imports
        only = None
        if program.engine.capabilities.import_lists:
            module.import_list = import_list(program, module, arriving)
            only = None if module.import_list is None else [at for at, _ in module.import_list.generated]
        if imports if only is None else only:
            module.told_handle = needs_handle(apart(module.bindings))
            where = _places(program, module, range(len(imports)) if only is None else only, based)
            module.import_code = generated(
                program.compiler,
                (
                    "imports",
                    module.seat,
                    module.image.digest,
                    _generated_from(module.bindings, where, only),
                    anchors,
                    tail_calls,
                    keeps_targets,
                ),
                f"{module.name} (imports)",
                partial(
                    import_module,
                    module.seat,
                    imports,
                    module.bindings,
                    anchors,
                    where,
                    tail_calls=tail_calls,
                    keeps_targets=keeps_targets,
                    only=only,
                ),
                weight=1 + 2 * len(imports),
            )
    return load_operation(program, plan.new, plan.host_functions, plan.table_length, based)


def _places(
    program: Program, module: LinkedModule, positions: Iterable[int], based: dict[int, LinkedModule]
) -> list[Place | None]:
    """Return, of each import that is bound to an address in a library, which it is: that differs each time a library is loaded.

    So the code that is generated does not, and a library that comes again is not compiled again. `based` gets these libraries.
    """
    places: list[Place | None] = [None] * len(module.wasm.imports)
    for position in positions:
        entry, binding = module.wasm.imports[position], module.bindings[position]
        place = None
        provider = binding.provider
        if isinstance(binding, ThroughTable):
            place = _in_table(program, provider, binding.address)
        elif (
            isinstance(binding, Constant) and isinstance(entry.type, GlobalType) and entry.type.value == "i32"
        ):
            own = entry.module == ENV and entry.name.startswith(("__memory_base", "__table_base"))
            provider = module.handle if own else provider
            if "memory" in entry.name if own else entry.module == GOT_MEM:
                place = _in_memory(program, provider, binding.value)
            elif own or entry.module == GOT_FUNC:
                place = _in_table(program, provider, binding.value)
            if place is not None and place.offset and not entry.type.mutable:
                place = None  # only code can add, and it sets what it has added
        if place is not None:
            holder = program.state.module(provider)
            assert holder is not None
            based[place.seat] = holder
        places[position] = place
    return places


def _in_table(program: Program, handle: ModuleHandle, index: int) -> Place | None:
    module = program.state.module(handle) if handle > MAIN_HANDLE else None
    if (
        module is None
        or module.elements is None
        or not module.elements.address <= index < module.elements.end
    ):
        return None
    return Place(module.seat, TABLE_BASE, index - module.elements.address)


def _in_memory(program: Program, handle: ModuleHandle, address: int) -> Place | None:
    module = program.state.module(handle) if handle > MAIN_HANDLE else None
    block = None if module is None else module.block
    if module is None or block is None or not 0 <= address - block.address <= block.size:
        return None
    return Place(module.seat, MEMORY_BASE, address - block.address)


def _generated_from(
    bindings: Sequence[Binding], where: Sequence[Place | None], only: Sequence[int] | None
) -> tuple[object, ...]:
    """Return what of some bindings an import module is generated from: not who provides it, which differs with each load."""
    inputs: list[object] = [] if only is None else [tuple(only)]
    for position in range(len(where)) if only is None else only:
        binding, place = bindings[position], where[position]
        match binding:
            case Constant() | ThroughTable() if place is not None:
                inputs.append((type(binding).__name__, place))
            case FromNamespace(namespace, name):
                inputs.append((namespace, name, binding.takes_caller))
            case Constant(value):
                inputs.append(("constant", "is", value))
            case ThroughTable(address):
                inputs.append(("table", "at", address))
            case _:
                inputs.append(type(binding).__name__)
    return tuple(inputs)


def load_operation(
    program: Program,
    modules: Sequence[LinkedModule],
    host_functions: Sequence[PlacedFunction],
    table_length: int,
    based: Mapping[int, LinkedModule] | None = None,
) -> LoadModules:
    """Compile the placement module of some modules, and return the operation that loads them.

    Args:
        program: the program.
        modules: in handle order; their import modules are compiled.
        host_functions: functions of the host that get their table indices with them.
        table_length: elements that the table needs.
        based: the libraries whose places import modules know by a base, by their seats.

    Raises:
        InvalidModuleError: the engine refuses what was generated.
    """
    anchors = program.main.anchors
    keeps_glue: set[ModuleHandle] = set()
    thread_addresses: list[tuple[int, str, GlobalType, int, int]] = []
    placed, runs = tuple(host_functions), list[PlacedRun]()
    onward: dict[int, tuple[FuncType, ...]] = {}
    places = dict(based or {})
    for module in modules:
        imports = module.wasm.imports
        names: Sequence[str] = ()
        for position, binding in numbered_apart(module.bindings):
            if isinstance(binding, ThreadLocalAddress):
                kind = imports[position].type
                assert isinstance(kind, GlobalType)
                keeps_glue.add(module.handle)
                provider = program.state.module(binding.module)
                assert provider is not None
                names = names or link_names(imports)
                thread_addresses.append((module.seat, names[position], kind, provider.seat, binding.offset))
            elif isinstance(binding, Constant) and is_variable(imports[position]):
                keeps_glue.add(module.handle)  # other modules share it
        run = _placed_run(module)
        if run is not None:
            runs.append(run)
            if isinstance(run.first, Place):
                places[module.seat] = module
        calls = onward_calls(module.seat, imports, module.bindings, anchors)
        if calls:
            keeps_glue.add(module.handle)
            onward[module.seat] = tuple(calls)
    thread_local = tuple(m.thread_local for m in modules if m.thread_local is not None)
    placement = None
    if any((placed, runs, thread_local, thread_addresses, onward)):
        # Keyed by what it is generated from: generating costs more than looking it up.
        placement = generated(
            program.compiler,
            (
                "placement",
                (
                    placed,
                    tuple(runs),
                    tuple((m.seat, m.size, m.base_type, m.initializer) for m in thread_local),
                    tuple(thread_addresses),
                    anchors,
                    tuple(onward.items()),
                ),
            ),
            f"{modules[-1].name if modules else 'host'} (placement)",
            partial(placement_module, placed, thread_local, thread_addresses, anchors, onward, runs),
            weight=1 + 4 * len(placed),
        )
    return LoadModules(
        tuple(modules),
        table_length,
        placement,
        thread_local,
        frozenset(keeps_glue),
        bool(thread_addresses),
        tuple(host_functions),
        tuple(places.values()),
    )


def _placed_run(module: LinkedModule) -> PlacedRun | None:
    first = module.first_placed
    if first is None or places_itself(module.wasm):
        return None  # a main module whose table cannot grow, or one that needs nobody for it
    functions = placed_functions(module.wasm)
    if not functions:
        return None
    assert module.elements is not None
    where = (
        first
        if module.handle == MAIN_HANDLE
        else Place(module.seat, TABLE_BASE, first - module.elements.address)
    )
    return PlacedRun(module_namespace(module.seat), module.image.digest, where, functions)
