"""What a module defines: symbols, and where they are.

A module's exports become symbols when somebody looks for them: where its functions and data begin is known when it is linked,
and the rest is arithmetic. What does not depend on that is computed once for a parsed module. Rules: tool-conventions
`DynamicLinking.md` (exports of data are immutable globals that hold the offset from the module's memory base; TLS symbols hold
the offset from its TLS base).
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from dl.dlfcn import RTLD_DEFAULT, ModuleHandle
from dl.records import dataclass
from dl.wasm.const_expr import evaluate
from dl.wasm.dylink import SymbolFlags
from dl.wasm.module import WasmModule, parse_module
from dl.wasm.records import Export, Import
from dl.wasm.types import FuncType, GlobalType, TagType
from threads import found_in

INTERNAL_EXPORTS = frozenset(
    {
        "__memory_base",
        "__table_base",
        "__stack_pointer",
        "__tls_base",
        "__tls_size",
        "__tls_align",
        "__dso_handle",
        "__wasm_apply_data_relocs",
        "__wasm_apply_tls_relocs",
        "__wasm_apply_global_relocs",
        "__wasm_call_ctors",
        "__post_instantiate",
        "__wasm_call_dtors",
        "__wasm_init_tls",
        "__wasm_init_memory",
        "__wasix_init_tls",
        "__set_stack_limits",
        "_start",
        "_initialize",
        "_emscripten_tls_init",
        "wasi_thread_start",
    }
)
"""Exports that belong to one module and are never symbols for others (Emscripten's internal list, and the WASIX ones)."""


@dataclass(frozen=True, slots=True)
class FunctionSymbol:
    """A function; `address` is its one table index, the same in every instance group."""

    module: ModuleHandle
    name: str
    type: FuncType
    address: int


@dataclass(frozen=True, slots=True)
class DataSymbol:
    """Data; `address` is in linear memory, bytes."""

    module: ModuleHandle
    name: str
    address: int


@dataclass(frozen=True, slots=True)
class TlsSymbol:
    """A thread-local variable; `offset` is from its module's TLS base, bytes."""

    module: ModuleHandle
    name: str
    offset: int


@dataclass(frozen=True, slots=True)
class TagSymbol:
    """An exception tag."""

    module: ModuleHandle
    name: str
    type: TagType


@dataclass(frozen=True, slots=True)
class GlobalSymbol:
    """A WebAssembly global that is a variable, not the address of one: mutable, or not an integer."""

    module: ModuleHandle
    name: str
    type: GlobalType


Symbol: TypeAlias = FunctionSymbol | DataSymbol | TlsSymbol | TagSymbol | GlobalSymbol


def imported_table_bases(module: WasmModule) -> tuple[int, ...]:
    """Return the indices of the globals by which a module imports its table base."""
    known: tuple[int, ...] | None = module.derived.get("table bases")
    if known is None:
        known = tuple(i.index for i in module.imports if i.kind == "global" and i.name == "__table_base")
        module.derived["table bases"] = known
    return known


def element_runs(module: WasmModule, table_base: int) -> Iterator[tuple[int, tuple[int | None, ...]]]:
    """Yield what the module's own segments place into table 0: the first table index, and function indices."""
    if not module.elements:
        return
    bases = dict.fromkeys(imported_table_bases(module), table_base)
    for segment in module.elements:
        if segment.mode == "active" and segment.table == 0 and segment.offset is not None:
            start = evaluate(segment.offset, bases)
            if start is not None:
                yield start, segment.functions


def element_positions(module: WasmModule, table_base: int) -> dict[int, int]:
    """Return function index to table index, for what the module's own segments place into table 0."""
    positions: dict[int, int] = {}
    for start, functions in element_runs(module, table_base):
        for position, function in enumerate(functions):
            if function is not None:
                positions.setdefault(function, start + position)
    return positions


def exported_functions(module: WasmModule) -> dict[int, str]:
    """Return the functions that need an address, by function index, with the first name each is exported under."""
    known: dict[int, str] | None = found_in(module.derived, "exported functions")
    if known is None:
        known = {}
        for export in module.exports.values():
            if export.kind == "func" and export.name not in INTERNAL_EXPORTS:
                known.setdefault(export.index, export.name)
        module.derived["exported functions"] = known
    return known


def functions_without_index(module: WasmModule) -> dict[int, int]:
    """Return the exported functions that the module's own element segments give no table index, numbered from 0."""
    known: dict[int, int] | None = found_in(module.derived, "functions without index")
    if known is None:
        placed = element_positions(module, 0)
        first_defined = module.import_counts["func"]
        new = [f for f in exported_functions(module) if f >= first_defined and f not in placed]
        known = module.derived["functions without index"] = {function: i for i, function in enumerate(new)}
    return known


def placed_functions(module: WasmModule) -> tuple[tuple[str, FuncType], ...]:
    """Return name and type of `functions_without_index`, in their order."""
    known: tuple[tuple[str, FuncType], ...] | None = module.derived.get("placed functions")
    if known is None:
        names = exported_functions(module)
        known = tuple(
            (names[function], module.functions[function]) for function in functions_without_index(module)
        )
        module.derived["placed functions"] = known
    return known


PLACE = "dl:place"
"""Export of a linked module that puts its functions into the table, from the index on that it is given."""


def places_itself(module: WasmModule) -> bool:
    """Whether `functions_without_index` are put into the table by code that is added to the module.

    An engine takes a function of the module itself by its number, where a module that places functions of another one imports
    each by its name. It needs the program's table as table 0: a library that has none may import it, and a main module may make
    and export it.
    """
    known: bool | None = found_in(module.derived, "places itself")
    if known is None:
        has_table = module.import_counts["table"] > 0 and module.tables[0].element == "funcref"
        takes_table = module.dylink is not None and not module.tables
        known = module.derived["places itself"] = (
            (has_table or takes_table or _makes_table(module))
            and PLACE not in module.exports
            and bool(functions_without_index(module))
        )
    return known


def _makes_table(module: WasmModule) -> bool:
    """Whether a module is a main module whose table 0 is the program's, and can take more functions."""
    if module.dylink is not None or not module.tables or module.import_counts["table"]:
        return False
    table = module.tables[0]
    can_grow = table.limits.maximum is None or table.limits.maximum > table.limits.minimum
    exported = any(e.kind == "table" and e.index == 0 for e in module.exports.values())
    return exported and can_grow and table.element == "funcref"


def exported_tags(module: WasmModule) -> tuple[str, ...]:
    """Return the names of the tags that a module exports as symbols."""
    if not module.tags:
        return ()
    return tuple(
        e.name for e in module.exports.values() if e.kind == "tag" and e.name not in INTERNAL_EXPORTS
    )


def exported_imports(module: WasmModule) -> dict[str, Import]:
    """Return the imported functions that a module exports again, by the name it exports them under."""
    known: dict[str, Import] | None = found_in(module.derived, "exported imports")
    if known is None:
        functions = [entry for entry in module.imports if entry.kind == "func"]
        known = module.derived["exported imports"] = {
            export.name: functions[export.index]
            for export in (module.exports.values() if functions else ())
            if export.kind == "func" and export.index < len(functions) and export.name not in INTERNAL_EXPORTS
        }
    return known


def data_value(module: WasmModule, name: str) -> int | None:
    """Return the address or size that an exported immutable integer global holds, unsigned; None if it holds none."""
    export = module.exports.get(name)
    if export is None or export.kind != "global":
        return None
    defined = module.globals[export.index]
    if defined.init is None or defined.type.mutable or defined.type.value not in ("i32", "i64"):
        return None
    value = evaluate(defined.init)
    if value is None or not -(1 << 31) <= value < 1 << 32:
        return None  # no address of a 32-bit memory: a constant of 64 bits, which is not to be cut
    return value & 0xFFFFFFFF


class ModuleSymbols(Mapping[str, Symbol]):
    """Everything a module defines for others, by name; imports that it exports again are not its own, unless they are added.

    A symbol is made when it is first looked for. Any thread may do so: two of them make equal ones, and one is kept.

    Args:
        module: the parsed module.
        handle: its handle.
        memory_base: bytes.
        table_base: table index from which on its own element segments lie.
        first: the table index of the first of `functions_without_index`, which lie in a row; None if functions have no index.
    """

    def __init__(
        self, module: WasmModule, handle: ModuleHandle, memory_base: int, table_base: int, first: int | None
    ) -> None:
        self._module = module
        self._handle = handle
        self._memory_base = memory_base
        self._table_base = table_base
        self._first = first
        self._positions: dict[int, int] | None = None
        self._made: dict[str, Symbol] = {}
        self._added: dict[str, Symbol] = {}

    @property
    def handle(self) -> ModuleHandle:
        """The module."""
        return self._handle

    def add(self, symbol: FunctionSymbol) -> None:
        """Add a function that the module imports and exports again; before others can find the module."""
        self._made[symbol.name] = self._added[symbol.name] = symbol

    def get(self, name: str, default: Any = None) -> Any:
        """Return a symbol, or the default."""
        known = found_in(self._made, name)
        if known is not None:
            return known
        export = found_in(self._module.exports, name)
        if export is None or name in INTERNAL_EXPORTS:
            return default
        made = self._make(name, export)
        if made is None:
            return default
        self._made[name] = made
        return made

    def __getitem__(self, name: str) -> Symbol:
        found: Symbol | None = self.get(name)
        if found is None:
            raise KeyError(name)
        return found

    def names(self) -> Collection[str]:
        """Return the names, in no order; those of a parsed module are found once, and then walking them makes no symbol."""
        known: tuple[str, ...] | None = self._module.derived.get("symbol names")
        if known is None:
            known = self._module.derived["symbol names"] = tuple(self._names(()))
        return (*known, *self._added) if self._added else known

    def __iter__(self) -> Iterator[str]:
        return self._names(self._added)

    def _names(self, added: Container[str]) -> Iterator[str]:
        own = self._module.import_counts["func"]
        for name, export in self._module.exports.items():
            if name in INTERNAL_EXPORTS or export.kind in ("memory", "table"):
                continue
            if export.kind != "func" or export.index >= own or name in added:
                yield name

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _make(self, name: str, export: Export) -> Symbol | None:
        kind = export.type
        if isinstance(kind, FuncType):
            if export.index < self._module.import_counts["func"]:
                return None
            return FunctionSymbol(self._handle, name, kind, self._function_address(export.index))
        if isinstance(kind, GlobalType):
            value = data_value(self._module, name)
            flags = self._module.dylink.exports if self._module.dylink else {}
            flag = flags.get(name, 0)
            if value is None:
                return GlobalSymbol(self._handle, name, kind)
            if flag & SymbolFlags.TLS:
                return TlsSymbol(self._handle, name, value)
            base = 0 if flag & SymbolFlags.ABSOLUTE else self._memory_base
            return DataSymbol(self._handle, name, (base + value) & 0xFFFFFFFF)
        if isinstance(kind, TagType):
            return TagSymbol(self._handle, name, kind)
        return None

    def _function_address(self, function: int) -> int:
        number = found_in(functions_without_index(self._module), function)
        if number is not None:
            # Without a table that can grow a main module's functions have no address: 0, the null pointer.
            return 0 if self._first is None else self._first + number
        if self._positions is None:
            self._positions = element_positions(self._module, self._table_base)
        return self._positions[function]


NO_SYMBOLS = ModuleSymbols(parse_module(b"\0asm\1\0\0\0", "nothing"), RTLD_DEFAULT, 0, 0, None)
"""What a module defines before its place is known."""


class FirstDefinitions(Mapping[str, Symbol]):
    """The first definition of each name among what modules define, in their order.

    It knows which module defines a name, and makes no symbol before one is looked for. Readers take no lock: a name, once
    there, means the same for good.
    """

    def __init__(self, modules: Iterable[ModuleSymbols] = ()) -> None:
        self._owners: dict[str, ModuleSymbols] = {}
        for symbols in modules:
            self.append(symbols)

    def append(self, symbols: ModuleSymbols) -> None:
        """Let a module follow the others: what it defines counts where none of them does."""
        new = symbols.names() if not self._owners else set(symbols.names()) - self._owners.keys()
        self._owners.update(dict.fromkeys(new, symbols))

    def get(self, name: str, default: Any = None) -> Any:
        """Return a symbol, or the default."""
        owner = found_in(self._owners, name)
        return default if owner is None else owner.get(name, default)

    def owners(self, names: Iterable[str]) -> list[ModuleSymbols | None]:
        """Return what each of some names is defined by."""
        return list(map(self._owners.get, names))

    def __getitem__(self, name: str) -> Symbol:
        return self._owners[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._owners.copy())

    def __len__(self) -> int:
        return len(self._owners)
