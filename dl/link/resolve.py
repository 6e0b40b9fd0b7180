"""The fourth phase of a load: what each import means.

One list of sources, the same every time, for loads, functions that are exported again, and the first calls of stubs:

1. what the user gave for exactly this import;
2. what only the linker can mean: memory, table, stack pointer, bases, and how a library registers functions for its end;
3. the importer's scope, where the first definition wins: the global scope in ELF order, then the tree opened with RTLD_LOCAL,
   or the other way round with DEEPBIND; then, for a stub, the trees opened since that contain the importer. An import whose
   module name is that of a library means that library's symbol, see `dl.link.named`, and one whose module name is that of an
   ordinary module means that one's export;
4. what the linker defines unless a module does: stack and heap addresses, exception tags;
5. the system interfaces.

Weak definitions do not differ from strong ones: `dylink.0` does not say which is which. Functions that nothing defines become
stubs unless everything is demanded now, and so do their addresses where a signature is known; data that nothing defines is an
error unless weak. All errors of a pass are reported together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from dl.dlfcn import MAIN_HANDLE, RTLD_DEFAULT, ModuleHandle
from dl.errors import (
    DlError,
    MissingSymbol,
    UnresolvedCallError,
    UnresolvedSymbolsError,
    UnsupportedModuleError,
)
from dl.glue.imports import link_names
from dl.glue.names import HOST_NAMESPACE, glue_namespace, module_namespace
from dl.glue.placement import PlacedFunction
from dl.glue.resolution import (
    HOST,
    NOBODY,
    Binding,
    Constant,
    FromNamespace,
    LazyStub,
    ThreadLocalAddress,
    ThroughTable,
)
from dl.link.bind_runs import bind_all
from dl.link.host_numbers import label
from dl.link.instance_exports import InstanceExports
from dl.link.named import named_module
from dl.link.number import ModuleArrivingError
from dl.link.plan import LinkPlan
from dl.link.sources import (
    ENV,
    GOT_FUNC,
    DynamicScope,
    LinkerDefaults,
    LinkerSymbols,
    RegisteredEnds,
    Source,
    SystemInterface,
    UserImports,
    scope_of,
)
from dl.link.tracing import trace_bindings, trace_stub
from dl.modules.function_runs import Bindings
from dl.modules.linked_module import LinkedModule, StubTarget
from dl.modules.symbols import FunctionSymbol, element_positions, exported_imports
from dl.program.events import EventKind
from dl.program.host_symbols import FINALIZERS
from dl.program.program import Program
from dl.program.state import LazyAddress
from dl.wasm.encode import is_encodable
from dl.wasm.records import Import
from dl.wasm.types import FuncType, GlobalType, MemoryType, TableType, TagType

_LAZY = "dl.lazy"
"""Stands for a namespace where a function's address is one that nothing defines yet; no module can import from it."""


class Resolver:
    """Answers what imports mean, with one list of sources.

    Args:
        program: the program.
        plan: the load that asks; None for a stub's first call, which places nothing.
    """

    def __init__(self, program: Program, plan: LinkPlan | None = None) -> None:
        self._program = program
        self._plan = plan
        state = program.state
        added = None if plan is None else state.not_global(plan.promoted)
        self._modules = DynamicScope(
            state.global_symbols, added, self._module, state.trees_with, partial(named_module, program)
        )
        self.sources: tuple[Source, ...] = (
            UserImports(program.host, self.host_function_address, self._signature_of, self._shared_variable),
            LinkerSymbols(program.main),
            RegisteredEnds(program.host),
            self._modules,
            InstanceExports(program.names),
            LinkerDefaults(program.state.linker_addresses),
            SystemInterface(program.host),
        )
        self.missing: list[MissingSymbol] = []
        host = program.host
        # Of functions of `env`, only these can be others' than the modules': the sources before them know no more names.
        self._before_modules = host.user.get(ENV, {}).keys() | host.system.get(FINALIZERS, {}).keys()
        self._namespaces: dict[ModuleHandle, str] = {}

    def function(
        self, importer: LinkedModule, entry: Import, kind: FuncType
    ) -> FunctionSymbol | FromNamespace | None:
        """Return the function that an import means now; None if nothing defines it.

        Raises:
            ImportTypeError: the name is defined, as something else.
        """
        if entry.module == ENV and entry.name not in self._before_modules:
            symbol = self._modules.find(importer, entry.name)
            if type(symbol) is FunctionSymbol and symbol.type == kind:
                return symbol  # as the sources would, one after the other: nearly always
        for source in self.sources:
            found = source.function(importer, entry, kind)
            if found is not None:
                return found
        return None

    def bind(self, module: LinkedModule) -> Bindings:
        """Return what each import of a module means; adds to `missing` what nothing defines.

        Raises:
            ImportTypeError: a definition has another type than the import.
            UnsupportedModuleError: an import of a kind or type that cannot be served.
        """
        assert self._plan is not None
        return bind_all(self._plan, module, self._before_modules, self.bind_import)

    def bind_import(self, module: LinkedModule, entry: Import) -> Binding:
        """Return what one import means; see `bind`."""
        kind = entry.type
        if not (_imports_are_encodable(module) or is_encodable(kind)):
            raise UnsupportedModuleError(
                module.name,
                f"import {label(entry)} of type {kind}: libraries cannot import what refers to types of theirs",
            )
        if isinstance(kind, FuncType):
            return self._bind_function(module, entry, kind)
        for source in self.sources:
            if isinstance(kind, MemoryType):
                found = source.memory(module, entry, kind)
            elif isinstance(kind, TableType):
                found = source.table(module, entry, kind)
            elif isinstance(kind, TagType):
                found = source.tag(module, entry, kind)
            else:
                found = source.variable(module, entry, kind)
            if found is not None:
                return found
        if entry.module.startswith("GOT.") and is_weak(module, entry):
            return Constant(0, NOBODY)
        return self._lazy_address(module, entry) or self._undefined(module, entry)

    def _bind_function(self, module: LinkedModule, entry: Import, kind: FuncType) -> Binding:
        found = self.function(module, entry, kind)
        if isinstance(found, FunctionSymbol):
            if found.module < module.handle:
                namespace = self._namespaces.get(found.module)
                if namespace is None:
                    namespace = module_namespace(self._module(found.module).seat)
                    self._namespaces[found.module] = namespace
                return FromNamespace(namespace, found.name, found.module)
            return ThroughTable(found.address, found.module)
        if found is not None:
            return found
        demanded = self._plan is not None and self._plan.demands_functions
        if demanded and not is_weak(module, entry) and not self._program.host.has_namespace(entry.module):
            return self._undefined(module, entry)
        return LazyStub()

    def _undefined(self, module: LinkedModule, entry: Import) -> Binding:
        hint = self._program.host.similar(entry.module, entry.name)
        self.missing.append(MissingSymbol(module.name, entry.module, entry.name, str(entry.type), hint))
        return Constant(0, NOBODY)

    def define(self, module: LinkedModule, symbol: FunctionSymbol) -> None:
        """Give a new module one symbol more."""
        module.symbols.add(symbol)
        self._modules.defined(module, symbol)

    # functions by their table index

    def _lazy_address(self, module: LinkedModule, entry: Import) -> Constant | None:
        """Return a table index for a function that nothing defines, under which a call looks for it.

        One for each name and signature, whoever takes it. None if the function is demanded now, or its signature unknown.
        """
        plan, state = self._plan, self._program.state
        if plan is None or entry.module != GOT_FUNC or plan.demands_functions:
            return None
        kind = self._signature_of(module, entry.name)
        if kind is None or self._program.main.no_libraries:
            return None
        key = (_LAZY, entry.name, kind)
        address = self._placed(key)
        if address is None:
            region = state.table.allocate(1, 0, module.name)
            address = region.address
            state.host_addresses[key] = address
            self._placing(plan, address)
            state.lazy_addresses[address] = LazyAddress(entry.name, kind)
            plan.host_functions.append(PlacedFunction(_LAZY, entry.name, kind, address, lazy=True))

            def forget() -> None:
                del state.host_addresses[key], state.lazy_addresses[region.address]
                state.table.free(region)

            plan.change.on_failure(forget)
        lazy = state.lazy_addresses[address]
        position = next(i for i, other in enumerate(module.wasm.imports) if other is entry)
        lazy.takers = [t for t in lazy.takers if state.module(t[0].handle) is t[0]] + [(module, position)]
        return Constant(address, NOBODY)

    def address_of_import(self, module: LinkedModule, entry: Import) -> int | None:
        """Return the table index of what a function import is bound to; None if that is not known, or an error."""
        assert isinstance(entry.type, FuncType)
        try:
            found = self.function(module, entry, entry.type)
        except DlError:
            return None  # reported when the import is bound
        if found is None:
            return None
        if isinstance(found, FunctionSymbol):
            return found.address
        if found.takes_caller:
            return None  # it is another function for each module that imports it
        if module.handle == MAIN_HANDLE and self._program.main.no_libraries:
            return 0
        return self.host_function_address(entry.module, entry.name, entry.type, module.name, found)

    def host_function_address(
        self, namespace: str, name: str, kind: FuncType, importer: str, binding: FromNamespace | None = None
    ) -> int:
        """Return the table index of a function that no library defines, placing it with the load under way if it has none.

        Args:
            namespace: the import's module name.
            name: its field name.
            kind: its signature.
            importer: the importing module.
            binding: where groups find it; None to ask the host.
        """
        state, plan, key = self._program.state, self._plan, (namespace, name, kind)
        known = self._placed(key)
        if known is not None:
            return known
        assert plan is not None
        address = self._place_in_main(namespace, name, kind)
        if address is None:
            binding = binding or self._program.host.bind(namespace, name, kind, importer)
            assert binding is not None
            region = state.table.allocate(1, 0, importer)
            plan.change.on_failure(lambda: state.table.free(region))
            address = region.address
            plan.host_functions.append(PlacedFunction(binding.namespace, binding.name, kind, address))
            self._placing(plan, address)
        state.host_addresses[key] = address
        plan.change.on_failure(lambda: state.host_addresses.pop(key))
        return address

    def _placed(self, key: tuple[str, str, FuncType]) -> int | None:
        """Return the table index of a function that no module defines; None if it has none yet.

        Raises:
            ModuleArrivingError: another thread's load places it, and may be taken back.
        """
        state, plan = self._program.state, self._plan
        address = state.host_addresses.get(key)
        placing = None if address is None else state.placing.get(address)
        if placing is not None and plan is not None and placing not in plan.new:
            raise ModuleArrivingError(placing)
        return address

    def _placing(self, plan: LinkPlan, address: int) -> None:
        """Note that a load will place a function at a table index; until it is published, no other load may rely on it."""
        self._program.state.placing[address] = plan.new[0]
        plan.change.on_failure(lambda: self._program.state.placing.pop(address, None))

    def _place_in_main(self, namespace: str, name: str, kind: FuncType) -> int | None:
        """Return the table index that a static main module's own elements give to a host function that it imports."""
        main = self._program.main_module
        if main is None:
            return None
        functions = [entry for entry in main.wasm.imports if entry.kind == "func"]
        for index, position in element_positions(main.wasm, main.table_base).items():
            if index < len(functions):
                entry = functions[index]
                if (entry.module, entry.name, entry.type) == (namespace, name, kind):
                    return position
        return None

    def _shared_variable(
        self, importer: LinkedModule, entry: Import, kind: GlobalType
    ) -> FromNamespace | None:
        """Return the global that holds a number of the user's, if a module has it already: in each thread there is one.

        The first module that imports it has it in its import module, and stays while others are bound to that.
        """
        state, plan, key = self._program.state, self._plan, (entry.module, entry.name, kind)
        owner = state.variables.get(key)
        assert plan is not None
        # Not one that another thread is just loading: that may be taken back.
        there = owner is not None and (state.modules.get(owner.handle) is owner or owner in plan.new)
        if owner is not None and there and owner is not importer:
            names = zip(owner.wasm.imports, link_names(owner.wasm.imports), strict=True)
            name = next(n for other, n in names if (other.module, other.name, other.type) == key)
            return FromNamespace(glue_namespace(owner.seat), name, owner.handle)
        state.variables[key] = importer
        plan.change.on_failure(lambda: state.variables.pop(key, None))
        return None

    def _signature_of(self, importer: LinkedModule, name: str) -> FuncType | None:
        """Return the signature by which a function is imported: by the importer itself, or else by any module."""
        others = self._program.state.modules.copy().values()
        new = self._plan.new if self._plan is not None else ()
        for module in (importer, *new, *others):
            for entry in module.wasm.imports:
                if entry.module == "env" and entry.name == name and isinstance(entry.type, FuncType):
                    return entry.type
        return None

    def _module(self, handle: ModuleHandle) -> LinkedModule:
        module = self._program.state.module(handle)
        assert module is not None
        return module

    def described(self, binding: Binding) -> str:
        """Return what a binding is, for a person."""
        if isinstance(binding, FromNamespace):
            if binding.namespace == HOST_NAMESPACE:
                return "a function of the host"
            provider = self._program.state.module(binding.provider)
            return f"{binding.name} of {provider.name if provider else 'the program'}"
        if isinstance(binding, Constant):
            return hex(binding.value)
        if isinstance(binding, ThroughTable):
            return f"the function at table index {binding.address}"
        if isinstance(binding, ThreadLocalAddress):
            return (
                f"thread-local, {binding.offset:#x} from the block of {self._module(binding.module).name} on"
            )
        return "undefined, and looked up at its first call"


def _imports_are_encodable(module: LinkedModule) -> bool:
    """Whether all imports of a module are of types that libraries can import: nearly always, and known from its first load."""
    known: bool | None = module.wasm.derived.get("imports are encodable")
    if known is None:
        known = all(is_encodable(entry.type) for entry in module.wasm.imports)
        module.wasm.derived["imports are encodable"] = known
    return known


def is_weak(module: LinkedModule, entry: Import) -> bool:
    """Whether a module's dylink section says that an import need not be defined."""
    return module.dylink is not None and module.dylink.is_weak_import(entry.name)


def resolve_imports(plan: LinkPlan) -> None:
    """Bind the imports of every new module; under the link lock.

    Raises:
        UnresolvedSymbolsError: nothing defines some of them; lists all.
        ImportTypeError: a definition has another type.
    """
    state = plan.program.state
    resolver = Resolver(plan.program, plan)
    define_reexports(plan, resolver)
    for module in plan.new:
        module.bindings = bindings = resolver.bind(module)
        module.providers = bindings.providers
    if resolver.missing:
        global_scope = [*state.global_scope, *state.not_global(plan.promoted)]
        searched = [module.name for module in scope_of(plan.opened, global_scope)]
        raise UnresolvedSymbolsError(plan.opened.name, resolver.missing, searched)
    plan.table_length = state.table.reach()
    trace_bindings(plan.program, plan.new, plan)


def define_reexports(plan: LinkPlan, resolver: Resolver) -> None:
    """Make symbols of imported functions that are exported again: each has the one address of the function it is.

    Before anything is bound, because others may import them; in rounds, because one may pass on what another does.
    What turns out to be a stub gets no symbol: its function is not known.
    """
    pending = [(m, name, entry) for m in plan.new for name, entry in exported_imports(m.wasm).items()]
    found = True
    while pending and found:
        found = False
        waiting = []
        for module, name, entry in pending:
            address = resolver.address_of_import(module, entry)
            if address is None:
                waiting.append((module, name, entry))
                continue
            assert isinstance(entry.type, FuncType)
            resolver.define(module, FunctionSymbol(module.handle, name, entry.type, address))
            found = True
        pending = waiting


PlaceLate: TypeAlias = Callable[[LinkedModule, Import, FromNamespace], int]
"""Gives a function that no library defines a table index; see `dl.link.late`."""


def resolve_stub(program: Program, place: PlaceLate, handle: int, position: int) -> int:
    """Return the table index that a stub's import means now; the host side of every stub's first call.

    Every group asks once and gets the same answer, whichever thread came first: it is recorded with its provider.

    Args:
        program: the program.
        place: gives an instance's function a table index.
        handle: the module whose import the stub is; `RTLD_DEFAULT` for a function pointer that stands for a name.
        position: the import's position; of a function pointer, its table index.

    Raises:
        UnresolvedCallError: still nothing defines the function.
    """
    state = program.state
    if handle == RTLD_DEFAULT:
        return _resolve_lazy_address(program, place, position)
    module = state.module(handle)
    if module is None:
        raise UnresolvedCallError(f"module {handle}", "?", f"import {position}", "its module was unloaded")
    entry = module.wasm.imports[position]
    assert isinstance(entry.type, FuncType)
    target = _stub_target(program, place, module, position, entry, entry.type)
    if target is None:
        given = program.host.similar(entry.module, entry.name)
        reason = (
            f"nothing provides it; imports has {given}: did you mean that?"
            if given
            else "nothing provides it"
        )
        raise UnresolvedCallError(module.name, entry.module, entry.name, reason)
    return target.address


def _stub_target(
    program: Program, place: PlaceLate, module: LinkedModule, position: int, entry: Import, kind: FuncType
) -> StubTarget | None:
    """Return what a module's stub is bound to, binding it if it can be; None if nothing defines the function."""
    state = program.state
    fresh, elsewhere = False, None

    def find() -> StubTarget | None:
        nonlocal fresh, elsewhere
        fresh = True
        try:
            symbol = Resolver(program).function(module, entry, kind)
        except DlError as error:
            raise UnresolvedCallError(module.name, entry.module, entry.name, str(error)) from error
        if isinstance(symbol, FunctionSymbol):
            return StubTarget(symbol.address, symbol.module)
        elsewhere = symbol
        return None

    target = state.bind_stub(module, position, find)
    if elsewhere is not None:  # with no lock held: it is an operation of its own
        late = StubTarget(place(module, entry, elsewhere), HOST)
        target = state.bind_stub(module, position, lambda: late)
    if fresh and target is not None:
        trace_stub(program, module, position)
        events = program.events
        if events.listening:
            provider = state.module(target.provider)
            events.record(
                EventKind.BOUND,
                module.name,
                module.handle,
                symbol=entry.name,
                provider="" if provider is None else provider.name,
            )
            events.deliver()
    return target


def _resolve_lazy_address(program: Program, place: PlaceLate, address: int) -> int:
    """Return the table index of the function that a lazy address stands for now, as the first of its takers sees it."""
    state = program.state
    lazy = state.lazy_addresses[address]
    for module, position in lazy.takers:
        if state.module(module.handle) is module:
            entry = Import(ENV, lazy.name, "func", lazy.type, 0)
            target = _stub_target(program, place, module, position, entry, lazy.type)
            if target is not None:
                return target.address
    names = [module.name for module, _ in lazy.takers]
    raise UnresolvedCallError(names[0] if names else "a function pointer", ENV, lazy.name)
