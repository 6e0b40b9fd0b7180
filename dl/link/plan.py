"""One load: from a module's image to an operation that every group can replay.

The order is fixed, and each phase relies on the one before. Nothing is visible to other threads until the operation is
committed; until then every step can be taken back.

1. the tree (`dl/link/find.py`): which modules are new, and their handles
   -- no new modules beyond this point
2. place: linear memory and table indices
   -- addresses are fixed
3. define: symbols of the new modules
   -- the scope is complete
4. resolve: what each import means
5. generate: import modules and the placement module
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from dl.dlfcn import MAIN_HANDLE, DlFlags, ModuleHandle
from dl.engine.code_cache import Compiler
from dl.engine.protocol import CompiledModule
from dl.engine.requirements import check_capabilities
from dl.errors import (
    InvalidModuleError,
    LinkError,
    MalformedModuleError,
    ResourceLimitError,
    UnresolvedSymbolsError,
    UnsupportedModuleError,
)
from dl.glue.generated import generated
from dl.glue.imports import import_module, import_places, link_names, onward_calls
from dl.glue.names import module_namespace
from dl.glue.placement import PlacedFunction, ThreadLocalModule, placement_module
from dl.glue.resolution import ThreadLocalAddress
from dl.link.find import Tree
from dl.link.resolve import Resolver, find_symbol, scope_of
from dl.modules.linked_module import LinkedModule, breadth_first
from dl.modules.symbols import (
    FunctionSymbol,
    data_value,
    element_positions,
    element_runs,
    exported_functions,
    exported_imports,
    module_symbols,
)
from dl.program.host_symbols import HostSymbols
from dl.program.operations import LoadModules
from dl.wasm.records import Import
from dl.wasm.rewrite import numbered_copy, rename_imports, uses_legacy_exceptions
from dl.wasm.types import FuncType, GlobalType, MemoryType

_LEGACY_EXCEPTIONS = (
    "legacy exception handling (try, catch): recompile with clang -mllvm -wasm-use-legacy-eh=false (Emscripten: "
    "-sWASM_LEGACY_EXCEPTIONS=0), or convert with wasm-opt --translate-to-exnref"
)
"""Short, with the remedy in front: a guest's buffer for dlerror holds some 250 bytes."""

_MOST_COPIES = 64
"""Modules of equal content in a program that stack traces tell apart; beyond that they show the name of one of them."""

log = logging.getLogger("dl.link")


@dataclass(kw_only=True)
class Load(Tree):
    """A load under construction, from phase 2 on; used under the link lock by its instigator.

    Attributes:
        compiler: what compiles.
        host: the host's functions.
        flags: those of dlopen.
        lenient: whether functions that nothing defines become stubs.
        grow_memory_to: makes linear memory reach a number of pages, or returns False.
    """

    compiler: Compiler
    host: HostSymbols
    flags: DlFlags = DlFlags.NOW
    lenient: bool = False
    grow_memory_to: Callable[[int], bool] = lambda _pages: True
    _host_functions: list[PlacedFunction] = field(default_factory=list)
    _promoted: list[LinkedModule] = field(default_factory=list)
    _table_grows: bool = False

    # 2. place

    def place(self) -> None:
        """Reserve linear memory and table indices for every new module.

        Raises:
            ResourceLimitError: there is no room.
            LinkError: a module fills table elements that it does not ask for.
        """
        for module in self.new:
            if module.handle == MAIN_HANDLE:
                continue
            info = module.dylink
            assert info is not None
            if info.memory_size:
                assert self.state.side_memory is not None
                side_memory = self.state.side_memory
                block = side_memory.allocate(info.memory_size, info.memory_alignment_log2, module.name)
                self.undo.on_failure(partial(side_memory.free, block))
                module.block, module.memory_base = block, block.address
            self._place_functions(module, info.table_size, info.table_alignment_log2)
        for module in self.new:
            self._check_elements(module)

    def place_main_functions(self, module: LinkedModule) -> None:
        """Reserve table indices for the main module's exported functions; its own elements lie where they are linked."""
        self._table_grows = True
        self._place_functions(module, 0, 0)

    def _place_functions(self, module: LinkedModule, own: int, align_log2: int) -> None:
        """Reserve the module's own run, and behind it an index for each exported function that has none in it."""
        extra = self._functions_without_index(module)
        total = own + len(extra)
        if not total:
            return
        region = self.state.table.allocate(total, align_log2, module.name)
        self.undo.on_failure(lambda: self.state.table.free(region))
        module.elements = region
        if module.handle != MAIN_HANDLE:
            module.table_base = region.address if own else 0

    def _check_elements(self, module: LinkedModule) -> None:
        """Check that a module fills no table elements but those it asked for: the others are other modules' functions.

        Raises:
            LinkError: it does.
        """
        info = module.dylink
        relocated = any(i.kind == "global" and i.name == "__table_base" for i in module.wasm.imports)
        if info is None or (module.handle == MAIN_HANDLE and not relocated):
            return
        first, end = module.table_base, module.table_base + info.table_size
        for start, functions in element_runs(module.wasm, module.table_base):
            if functions and not first <= start <= start + len(functions) <= end:
                raise LinkError(
                    module.name,
                    f"an element segment fills table elements {start} to {start + len(functions) - 1}, but its "
                    f"dylink section asks for {info.table_size} elements, which begin at {first}",
                )

    def _functions_without_index(self, module: LinkedModule) -> list[int]:
        placed = element_positions(module.wasm, 0)
        first_defined = module.wasm.import_counts["func"]
        return [f for f in exported_functions(module.wasm) if f >= first_defined and f not in placed]

    # 3. define

    def define(self) -> None:
        """Give every new module the symbols that it defines itself."""
        for module in self.new:
            module.symbols = module_symbols(
                module.wasm, module.handle, module.memory_base, self._addresses(module)
            )
            module.thread_local = _thread_local(module)

    def _addresses(self, module: LinkedModule) -> dict[int, int]:
        addresses = element_positions(module.wasm, module.table_base)
        extra = self._functions_without_index(module)
        # Without a table that can grow a main module's functions have no address: 0, which is nobody's.
        first = 0 if module.elements is None else module.elements.end - len(extra)
        addresses.update((function, first and first + i) for i, function in enumerate(extra))
        return addresses

    def enter_scopes(self, root: LinkedModule) -> list[LinkedModule]:
        """Put the opened tree into the global scope, or into a scope of its own; return the global scope to resolve with."""
        tree = breadth_first([root])
        if self.flags & DlFlags.GLOBAL:
            known = {id(m) for m in self.state.global_scope}
            self._promoted = [m for m in tree if id(m) not in known]
        for module in self.new:
            module.deep_bind = bool(self.flags & DlFlags.DEEPBIND)
            if module.deep_bind or not self.flags & DlFlags.GLOBAL:
                module.scope = tuple(tree)
        return [*self.state.global_scope, *self._promoted]

    # 4. resolve

    def resolve(self, root: LinkedModule, global_scope: Sequence[LinkedModule]) -> None:
        """Bind the imports of every new module.

        Raises:
            UnresolvedSymbolsError: nothing defines some of them; lists all.
            ImportTypeError: a definition has another type.
        """
        self.state.arriving = {m.handle: m for m in self.new}
        self.undo.on_failure(self.state.arriving.clear)
        modules = {**self.state.modules, **self.state.arriving}
        resolver = Resolver(
            host=self.host,
            places=self.state.places,
            memory=self.state.memory_type,
            global_scope=global_scope,
            linker_addresses=self.state.linker_addresses,
            modules=modules,
            address_of_host_function=self._host_function_address,
            demand_functions=bool(self.flags & DlFlags.NOW) and not self.lenient,
        )
        self._define_reexports(global_scope)
        for module in self.new:
            module.bindings = resolver.bind(module)
        if resolver.missing:
            searched = [m.name for m in scope_of(root, global_scope)]
            raise UnresolvedSymbolsError(root.name, resolver.missing, searched)

    def _define_reexports(self, global_scope: Sequence[LinkedModule]) -> None:
        """Make symbols of imported functions that are exported again: each has the one address of the function it is.

        Before anything is bound, because others may import them; in rounds, because one may pass on what another does.
        What turns out to be a stub gets no symbol: its function is not known.
        """
        pending = [(m, name, entry) for m in self.new for name, entry in exported_imports(m.wasm).items()]
        found = True
        while pending and found:
            found = False
            waiting = []
            for module, name, entry in pending:
                address = self._address_of_import(module, entry, global_scope)
                if address is None:
                    waiting.append((module, name, entry))
                    continue
                assert isinstance(entry.type, FuncType)
                symbol = FunctionSymbol(module.handle, name, entry.type, address)
                module.symbols = {**module.symbols, name: symbol}
                found = True
            pending = waiting

    def _address_of_import(
        self, module: LinkedModule, entry: Import, global_scope: Sequence[LinkedModule]
    ) -> int | None:
        """Return the table index of what a function import will be bound to; None if that is not known yet."""
        assert isinstance(entry.type, FuncType)
        if not self.host.defines_function(entry.module, entry.name) and entry.module == "env":
            symbol = find_symbol(entry.name, scope_of(module, global_scope))
            if symbol is not None:
                matches = isinstance(symbol, FunctionSymbol) and symbol.type == entry.type
                return symbol.address if matches else None  # type: ignore[union-attr]
        if self.host.bind(entry.module, entry.name, entry.type, module.name) is None:
            return None
        if module.handle == MAIN_HANDLE and not self._table_grows:
            return 0
        return self._host_function_address(entry.module, entry.name, entry.type, module.name)

    def _host_function_address(self, namespace: str, name: str, kind: FuncType, importer: str) -> int:
        key = (namespace, name, kind)
        known = self.state.host_addresses.get(key)
        if known is not None:
            return known
        binding = self.host.bind(namespace, name, kind, importer)
        assert binding is not None
        in_main = self._place_in_main(namespace, name, kind)
        if in_main is not None:
            self.state.host_addresses[key] = in_main
            self.undo.on_failure(lambda: self.state.host_addresses.pop(key))
            return in_main
        region = self.state.table.allocate(1, 0, importer)
        self.undo.on_failure(lambda: self.state.table.free(region))
        self.state.host_addresses[key] = region.address
        self.undo.on_failure(lambda: self.state.host_addresses.pop(key))
        self._host_functions.append(PlacedFunction(binding.namespace, binding.name, kind, region.address))
        return region.address

    def _place_in_main(self, namespace: str, name: str, kind: FuncType) -> int | None:
        """Return the table index that a static main module's own elements give to a host function that it imports."""
        main = self.state.module(MAIN_HANDLE)
        if main is None:
            return None
        functions = [entry for entry in main.wasm.imports if entry.kind == "func"]
        for index, position in element_positions(main.wasm, main.table_base).items():
            if index < len(functions):
                entry = functions[index]
                if (entry.module, entry.name, entry.type) == (namespace, name, kind):
                    return position
        return None

    # 5. generate

    def generate(self) -> LoadModules:
        """Compile the modules and what was found out about them.

        Raises:
            InvalidModuleError: the engine refuses a module.
            UnsupportedModuleError: it does so for exceptions in their former encoding.
            ResourceLimitError: memory cannot grow to what a module imports.
        """
        self._grow_memory()
        keeps_glue = set()
        thread_addresses: list[tuple[ModuleHandle, str, GlobalType, ThreadLocalAddress]] = []
        placed = list(self._host_functions)
        onward: dict[ModuleHandle, tuple[FuncType, ...]] = {}
        for module in self.new:
            imports = module.wasm.imports
            names = link_names(imports)
            module.code = self._compiled(module)
            if imports:
                tail_calls = self.compiler.engine.capabilities.tail_calls
                parts = (module.handle, module.image.digest, module.bindings, self.state.places, tail_calls)
                module.import_code = generated(
                    self.compiler,
                    ("imports", parts),
                    f"{module.name} (imports)",
                    partial(
                        import_module,
                        module.handle,
                        imports,
                        module.bindings,
                        self.state.places,
                        tail_calls=tail_calls,
                    ),
                    weight=1 + 2 * len(imports),
                )
            for entry, name, binding in zip(imports, names, module.bindings, strict=True):
                if isinstance(binding, ThreadLocalAddress):
                    assert isinstance(entry.type, GlobalType)
                    keeps_glue.add(module.handle)
                    thread_addresses.append((module.handle, name, entry.type, binding))
            placed += self._placed_functions(module)
            calls = onward_calls(module.handle, imports, module.bindings, self.state.places)
            if calls:
                keeps_glue.add(module.handle)
                onward[module.handle] = tuple(calls)
        thread_local = tuple(m.thread_local for m in self.new if m.thread_local is not None)
        inputs = (
            tuple(placed),
            thread_local,
            tuple(thread_addresses),
            self.state.places,
            tuple(onward.items()),
        )
        placement = None
        if any((placed, thread_local, thread_addresses, onward)):
            # Keyed by what it is generated from: generating costs more than looking it up.
            placement = generated(
                self.compiler,
                ("placement", inputs),
                f"{self.new[-1].name} (placement)",
                partial(placement_module, placed, thread_local, thread_addresses, self.state.places, onward),
                weight=1 + 4 * len(placed),
            )
        return LoadModules(
            tuple(self.new),
            self.state.table.reach(),
            placement,
            thread_local,
            frozenset(keeps_glue),
            bool(thread_addresses),
        )

    def _compiled(self, module: LinkedModule) -> CompiledModule:
        check_capabilities(self.compiler.engine, module.wasm)

        def make(number: int) -> bytes:
            renamed = rename_imports(module.wasm, import_places(module.wasm.imports))
            return numbered_copy(renamed, number)

        # The least number that no module of the program has: another run of it compiles the same.
        digest = module.image.digest
        loaded = itertools.chain(self.state.modules.copy().values(), self.new)
        taken = {
            m.copy for m in loaded if m is not module and m.image.digest == digest and m.code is not None
        }
        module.copy = next(n for n in itertools.count() if n not in taken or n >= _MOST_COPIES)
        try:
            return generated(
                self.compiler,
                ("module", digest, module.copy),
                module.name,
                partial(make, module.copy),
            )
        except InvalidModuleError as refused:
            try:
                legacy = uses_legacy_exceptions(module.wasm)
            except (MalformedModuleError, UnsupportedModuleError):
                legacy = False  # the engine's reason stands
            if legacy:
                raise UnsupportedModuleError(module.name, _LEGACY_EXCEPTIONS) from refused
            raise

    def _grow_memory(self) -> None:
        """Make linear memory as large as the modules' imports want it.

        Late, because this cannot be taken back.

        Raises:
            ResourceLimitError: it cannot grow so far.
        """
        for module in self.new:
            for entry in module.wasm.imports:
                if isinstance(entry.type, MemoryType) and not self.grow_memory_to(entry.type.limits.minimum):
                    raise ResourceLimitError(
                        module.name, f"linear memory cannot grow to the {entry.type} that it imports"
                    )

    def _placed_functions(self, module: LinkedModule) -> Iterator[PlacedFunction]:
        if module.elements is None:
            return  # nothing to place, or a main module whose table cannot grow
        names = exported_functions(module.wasm)
        namespace = module_namespace(module.handle)
        for function in self._functions_without_index(module):
            symbol = module.symbols[names[function]]
            assert isinstance(symbol, FunctionSymbol)
            yield PlacedFunction(namespace, symbol.name, symbol.type, symbol.address)

    # the outcome

    def publish(self) -> None:
        """Enter the new modules into the state. Cannot fail, and may be called again after it was cut off."""
        for module in self.new:
            self.state.modules[module.handle] = module
            self.state.by_identity[module.image.identity] = module.handle
        # A new list: readers walk the old one without a lock.
        promoted, self._promoted = self._promoted, []
        self.state.global_scope = [*self.state.global_scope, *promoted]
        self.state.arriving = {}


def _thread_local(module: LinkedModule) -> ThreadLocalModule | None:
    """Return a module's thread-local storage, if it has any and can set it up for a new thread."""
    export = module.wasm.exports.get("__tls_base")
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
            return ThreadLocalModule(module.handle, size, align.bit_length() - 1, export.type, initializer)
    return None
