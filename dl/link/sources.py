"""Where the meaning of an import is looked for: a list of sources, asked in a declared order.

Each source answers for the kinds of import that it knows and returns None for the rest. A definition of another type is an
error and not a miss: an import means the first definition of its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from dl.dlfcn import MAIN_HANDLE, ModuleHandle
from dl.errors import ImportTypeError, SymbolNotFoundError, UnsupportedModuleError
from dl.glue.names import (
    ANY_TABLE,
    BASE_NAMESPACE,
    EXCEPTION_TAG,
    EXCEPTION_TAG_NAMES,
    STACK_POINTER_NAME,
    STACK_POINTER_TYPE,
    TABLE_NAME,
    module_namespace,
)
from dl.glue.resolution import HOST, LINKER, Binding, Constant, FromNamespace, ThreadLocalAddress
from dl.link.host_numbers import host_number, label
from dl.modules.linked_module import LinkedModule
from dl.modules.symbols import DataSymbol, FunctionSymbol, GlobalSymbol, Symbol, TagSymbol, TlsSymbol
from dl.program.host_symbols import ATOMICS, FINALIZERS, HostSymbols
from dl.program.main_module import MainModule
from dl.records import replace
from dl.wasm.matching import export_type, host_fits, import_type, limits_fit
from dl.wasm.records import Import
from dl.wasm.types import FuncType, GlobalType, Limits, MemoryType, TableType, TagType

ENV, GOT_MEM, GOT_FUNC = "env", "GOT.mem", "GOT.func"
"""Import modules of the dynamic linking convention (tool-conventions `DynamicLinking.md`)."""

_BASE_GLOBALS = {"__memory_base", "__table_base", "__memory_base32", "__table_base32"}


def scope_of(module: LinkedModule, global_scope: Sequence[LinkedModule]) -> Iterator[LinkedModule]:
    """Yield the modules whose symbols a module sees, in search order, each once."""
    local = module.scope or ()
    order = (*local, *global_scope) if module.deep_bind else (*global_scope, *local)
    seen: set[ModuleHandle] = set()
    for candidate in (*order, module):
        if candidate.handle not in seen:
            seen.add(candidate.handle)
            yield candidate


def find_symbol(name: str, scope: Sequence[LinkedModule] | Iterator[LinkedModule]) -> Symbol | None:
    """Return the first definition of a symbol in a scope."""
    for module in scope:
        if name in module.image.wasm.exports:  # most modules of a scope do not have it
            symbol: Symbol | None = module.symbols.get(name)
            if symbol is not None:
                return symbol
    return None


def is_variable(entry: Import) -> bool:
    """Whether an import is a global that modules may set, and not the address of something."""
    return isinstance(entry.type, GlobalType) and entry.type.mutable and not entry.module.startswith("GOT.")


def described(symbol: Symbol) -> str:
    """Return what a symbol is, for a message."""
    match symbol:
        case FunctionSymbol():
            return f"a function {symbol.type}"
        case DataSymbol():
            return "data"
        case TlsSymbol():
            return "a thread-local variable"
        case TagSymbol():
            return f"a tag {symbol.type}"
        case _:
            return str(symbol.type)


class Source:
    """What every source can be asked; each of them answers None where it has nothing to say."""

    def function(
        self, importer: LinkedModule, entry: Import, kind: FuncType
    ) -> FunctionSymbol | FromNamespace | None:
        """Return the function that an import means: a module's symbol, or how the host's is reached.

        Raises:
            ImportTypeError: the name is defined, as something else.
        """
        return None

    def variable(self, importer: LinkedModule, entry: Import, kind: GlobalType) -> Binding | None:
        """Return what a global import means: a global, a base, or an address (`GOT.mem`, `GOT.func`).

        Raises:
            ImportTypeError: the name is defined, as something else.
        """
        return None

    def tag(self, importer: LinkedModule, entry: Import, kind: TagType) -> Binding | None:
        """Return what a tag import means.

        Raises:
            ImportTypeError: the tag has another type.
        """
        return None

    def memory(self, importer: LinkedModule, entry: Import, kind: MemoryType) -> Binding | None:
        """Return what a memory import means.

        Raises:
            ImportTypeError: the memory has another type.
        """
        return None

    def table(self, importer: LinkedModule, entry: Import, kind: TableType) -> Binding | None:
        """Return what a table import means.

        Raises:
            ImportTypeError: the table has another type.
        """
        return None


class UserImports(Source):
    """What the user gave for exactly this import.

    Args:
        host: the host's symbols.
        address_of: gives a host function its table index: by namespace, name, signature and importer's name.
        signature_of: returns a signature by which some module imports a function of a name, if one does.
        shared_variable: returns the global that another module has for the same number; None for the first, which defines it.
    """

    def __init__(
        self,
        host: HostSymbols,
        address_of: Callable[[str, str, FuncType, str], int],
        signature_of: Callable[[LinkedModule, str], FuncType | None],
        shared_variable: Callable[[LinkedModule, Import, GlobalType], FromNamespace | None],
    ) -> None:
        self._host = host
        self._address_of = address_of
        self._signature_of = signature_of
        self._shared_variable = shared_variable

    def function(
        self, importer: LinkedModule, entry: Import, kind: FuncType
    ) -> FunctionSymbol | FromNamespace | None:
        """Return the user's function."""
        return self._host.bind_user(entry.module, entry.name, kind, importer.name)

    def variable(self, importer: LinkedModule, entry: Import, kind: GlobalType) -> Binding | None:
        """Return the user's number; for `GOT.func` the table index of the user's function."""
        number = self._host.number(entry.module, entry.name)
        if number is None and entry.module == GOT_MEM:
            number = self._host.number(ENV, entry.name)
        if number is not None:
            fitting = host_number(importer, entry, kind, number)
            shared = self._shared_variable(importer, entry, kind) if is_variable(entry) else None
            return shared or fitting
        if entry.module == GOT_FUNC:
            namespace = GOT_FUNC if self._host.defines_function(GOT_FUNC, entry.name) else ENV
            if self._host.defines_function(namespace, entry.name):
                _integer(importer, entry, kind)
                return Constant(self._function_address(importer, entry, namespace), HOST)
        elif self._host.defines_function(entry.module, entry.name):
            raise ImportTypeError(importer.name, label(entry), str(kind), "a function", "the host")
        return None

    def _function_address(self, importer: LinkedModule, entry: Import, namespace: str) -> int:
        kind = self._host.signature(namespace, entry.name) or self._signature_of(importer, entry.name)
        if kind is None:
            raise UnsupportedModuleError(
                importer.name,
                f"takes the address of the host's {entry.name}, which no module calls, so its signature is unknown: "
                "give it as dl.HostFunction with params and results",
            )
        return self._address_of(namespace, entry.name, kind, importer.name)


class LinkerSymbols(Source):
    """What only the linker can mean: memory, table, stack pointer, and the importer's bases.

    The well-known names are those of `env`. A static main module's one memory and one table are the program's under any name.
    """

    def __init__(self, main: MainModule) -> None:
        self._main = main

    def variable(self, importer: LinkedModule, entry: Import, kind: GlobalType) -> Binding | None:
        """Return the stack pointer, or one of the importer's bases."""
        if entry.module != ENV:
            return None
        if entry.name == STACK_POINTER_NAME:
            if not host_fits(STACK_POINTER_TYPE, kind):
                raise ImportTypeError(
                    importer.name, label(entry), str(kind), "a mutable i32 global", "the linker"
                )
            return self._main.anchors.stack_pointer
        if entry.name in _BASE_GLOBALS:
            _integer(importer, entry, kind)
            return Constant(importer.memory_base if "memory" in entry.name else importer.table_base)
        return None

    def memory(self, importer: LinkedModule, entry: Import, kind: MemoryType) -> Binding | None:
        """Return the program's memory."""
        have = self._main.memory_type
        if have is None or not _well_known(importer, entry, "memory"):
            return None
        if not limits_fit(_grown(have.limits, kind.limits), kind.limits):
            if kind.limits.shared == have.limits.shared:
                remedy = ""
            elif have.limits.shared:
                remedy = "build the library for shared memory, as dlrun cc -pthread does, or the program without it"
            else:
                remedy = "build the library without -pthread, or the program with it"
            raise ImportTypeError(
                importer.name, label(entry), str(kind), str(have), "the program", remedy=remedy
            )
        return FromNamespace(BASE_NAMESPACE, "memory")

    def table(self, importer: LinkedModule, entry: Import, kind: TableType) -> Binding | None:
        """Return the program's table."""
        if not _well_known(importer, entry, TABLE_NAME):
            return None
        if kind.element != ANY_TABLE.element or kind.limits.is64:
            raise UnsupportedModuleError(importer.name, f"import {label(entry)} of type {kind}")
        if not limits_fit(_grown(ANY_TABLE.limits, kind.limits), kind.limits):
            raise ImportTypeError(
                importer.name, label(entry), str(kind), "a table without a maximum", "the linker"
            )
        return self._main.anchors.table


def _grown(have: Limits, wanted: Limits) -> Limits:
    """Return the limits of the program's memory or table as they are when a module is instantiated that wants so much of it."""
    return replace(have, minimum=max(have.minimum, wanted.minimum))


def _well_known(importer: LinkedModule, entry: Import, name: str) -> bool:
    if entry.module == ENV and entry.name == name:
        return True
    if importer.handle != MAIN_HANDLE:
        return False
    return entry is next(other for other in importer.wasm.imports if other.kind == entry.kind)


class RegisteredEnds(Source):
    """What a library gets for the functions with which it registers others for its end; see `dl.link.finalizers`."""

    def __init__(self, host: HostSymbols) -> None:
        self._host = host

    def function(
        self, importer: LinkedModule, entry: Import, kind: FuncType
    ) -> FunctionSymbol | FromNamespace | None:
        """Return the function that notes the library too, for a library that does not define its own."""
        if importer.handle == MAIN_HANDLE or entry.module != ENV:
            return None
        function = self._host.system.get(FINALIZERS, {}).get(entry.name)
        if function is None or entry.name in importer.symbols or not host_fits(function.type, kind):
            return None
        return self._host.bind_system(FINALIZERS, entry.name, kind, importer.name)


class _Walked:
    """Modules in search order, for one look-up."""

    def __init__(self, modules: Sequence[LinkedModule]) -> None:
        self._modules = modules

    def find(self, name: str) -> Symbol | None:
        """Return the first definition of a symbol."""
        return find_symbol(name, self._modules)

    def add(self, module: LinkedModule, symbol: Symbol) -> None:
        """A module has got another symbol."""


_FEW_MODULES = 8
"""Of so many, looking into each is faster than making an index of their symbols."""


class _Indexed(_Walked):
    """Modules in search order, for many look-ups: each takes the same time however many modules they are."""

    def __init__(self, modules: Sequence[LinkedModule]) -> None:
        super().__init__(modules)
        self._positions = {id(module): position for position, module in enumerate(modules)}
        self._first: dict[str, LinkedModule] = {}
        for module in reversed(modules):
            self._first.update(dict.fromkeys(module.symbols.names(), module))

    def find(self, name: str) -> Symbol | None:
        """Return the first definition of a symbol."""
        module = self._first.get(name)
        return None if module is None else module.symbols.get(name)

    def add(self, module: LinkedModule, symbol: Symbol) -> None:
        """A module has got another symbol."""
        position = self._positions.get(id(module))
        known = self._first.get(symbol.name)
        if position is not None and (known is None or position < self._positions[id(known)]):
            self._first[symbol.name] = module


def _in_order(modules: Sequence[LinkedModule]) -> _Walked:
    """Return modules in search order, for the look-ups of a load."""
    return _Walked(modules) if len(modules) <= _FEW_MODULES else _Indexed(modules)


class DynamicScope(Source):
    """What the modules define that the importer sees: `env` for functions, globals and tags, `GOT.*` for addresses.

    Args:
        global_symbols: the first definition of each name in the global scope.
        added: modules that come into the global scope with the load that asks; None for a single look-up outside any load.
        modules: returns a module by its handle.
        later: returns what a module sees beside its scope by now: the trees opened since that contain it.
        named: returns the module that an importer means by an import's module name other than `env`; None if it means none.
    """

    def __init__(
        self,
        global_symbols: Mapping[str, Symbol],
        added: Sequence[LinkedModule] | None,
        modules: Callable[[ModuleHandle], LinkedModule],
        later: Callable[[LinkedModule], Iterator[LinkedModule]],
        named: Callable[[LinkedModule, str], LinkedModule | None] = lambda _importer, _name: None,
    ) -> None:
        self._global_symbols = global_symbols
        self._scope: Callable[[Sequence[LinkedModule]], _Walked] = _Walked if added is None else _in_order
        self._added = self._scope(added or ())
        self._local: dict[int, _Walked] = {}
        self._modules = modules
        self._later = later
        self._named = named

    def _meant(self, importer: LinkedModule, entry: Import) -> Symbol | None:
        """Return the symbol that an import means: of the scope, or of the module that it names."""
        if entry.module == ENV:
            return self.find(importer, entry.name)
        module = self._named(importer, entry.module)
        return None if module is None else module.symbols.get(entry.name)

    def find(self, importer: LinkedModule, name: str) -> Symbol | None:
        """Return the first definition of a symbol that a module sees; in the order of `scope_of`."""
        if importer.deep_bind:
            found = self._find_locally(importer, name) or self._find_globally(name)
        else:
            found = self._find_globally(name) or self._find_locally(importer, name)
        return found or importer.symbols.get(name) or find_symbol(name, self._later(importer))

    def _find_globally(self, name: str) -> Symbol | None:
        return self._global_symbols.get(name) or self._added.find(name)

    def _find_locally(self, importer: LinkedModule, name: str) -> Symbol | None:
        if importer.scope is None:
            return None
        # The modules of one load share their scope.
        scope = self._local.get(id(importer.scope))
        if scope is None:
            scope = self._local[id(importer.scope)] = self._scope(importer.scope)
        return scope.find(name)

    def defined(self, module: LinkedModule, symbol: Symbol) -> None:
        """Take note of a symbol that a module of the load that asks has got since."""
        self._added.add(module, symbol)
        for scope in self._local.values():
            scope.add(module, symbol)

    def function(
        self, importer: LinkedModule, entry: Import, kind: FuncType
    ) -> FunctionSymbol | FromNamespace | None:
        """Return the function symbol."""
        symbol = self._meant(importer, entry)
        if symbol is None:
            return None
        if not isinstance(symbol, FunctionSymbol):
            raise self._mismatch(importer, entry, str(kind), symbol)
        self._same_type(importer, entry, symbol)
        return symbol

    def variable(self, importer: LinkedModule, entry: Import, kind: GlobalType) -> Binding | None:
        """Return a global of a module, or the address of a symbol."""
        if entry.module in (GOT_MEM, GOT_FUNC):
            return self._address(importer, entry, _integer(importer, entry, kind))
        symbol = self._meant(importer, entry)
        if symbol is None:
            return None
        if not isinstance(symbol, GlobalSymbol):
            raise self._mismatch(importer, entry, str(kind), symbol)
        self._same_type(importer, entry, symbol)
        return self._earlier(importer, entry, "global", symbol)

    def _address(self, importer: LinkedModule, entry: Import, _kind: GlobalType) -> Binding | None:
        symbol = self.find(importer, entry.name)
        wants_function = entry.module == GOT_FUNC
        if symbol is None:
            return None
        if isinstance(symbol, FunctionSymbol if wants_function else DataSymbol):
            assert isinstance(symbol, (FunctionSymbol, DataSymbol))
            return Constant(symbol.address, symbol.module)
        if isinstance(symbol, TlsSymbol) and not wants_function:
            if self._modules(symbol.module).thread_local is None:
                raise SymbolNotFoundError(
                    entry.name,
                    (),
                    f"{self._modules(symbol.module).name} defines it as thread-local, but exports neither "
                    "__tls_base nor a function to set it up",
                )
            return ThreadLocalAddress(symbol.module, symbol.offset)
        raise self._mismatch(importer, entry, "a function" if wants_function else "data", symbol)

    def tag(self, importer: LinkedModule, entry: Import, kind: TagType) -> Binding | None:
        """Return a tag of a module, unless that is instantiated later and the linker has one of this name."""
        symbol = self._meant(importer, entry)
        if not isinstance(symbol, TagSymbol):
            return None
        if symbol.module >= importer.handle and entry.name in EXCEPTION_TAG_NAMES:
            return None
        self._same_type(importer, entry, symbol)
        return self._earlier(importer, entry, "tag", symbol)

    def _earlier(
        self, importer: LinkedModule, entry: Import, what: str, symbol: GlobalSymbol | TagSymbol
    ) -> FromNamespace:
        """Functions can be reached through the table before their instance exists; nothing else can."""
        if symbol.module >= importer.handle:
            raise UnsupportedModuleError(
                importer.name,
                f"{what} {label(entry)} is defined by {self._modules(symbol.module).name}, "
                "which is instantiated later",
            )
        return FromNamespace(module_namespace(self._modules(symbol.module).seat), symbol.name, symbol.module)

    def _same_type(
        self, importer: LinkedModule, entry: Import, symbol: FunctionSymbol | GlobalSymbol | TagSymbol
    ) -> None:
        if entry.type == symbol.type:
            return  # nearly always; if their types are of different groups, the engine refuses the instance
        provider = self._modules(symbol.module)
        export = provider.wasm.exports.get(symbol.name)
        wanted = import_type(importer.wasm, entry)
        if export is None or not export_type(provider.wasm, export).fits(wanted):
            raise ImportTypeError(
                importer.name, label(entry), str(entry.type), str(symbol.type), provider.name
            )

    def _mismatch(
        self, importer: LinkedModule, entry: Import, wanted: str, symbol: Symbol
    ) -> ImportTypeError:
        return ImportTypeError(
            importer.name, label(entry), wanted, described(symbol), self._modules(symbol.module).name
        )


class LinkerDefaults(Source):
    """What the linker defines unless a module does: stack and heap addresses, the tags of C++ exceptions and `longjmp`."""

    def __init__(self, addresses: Mapping[str, int]) -> None:
        self._addresses = addresses

    def variable(self, importer: LinkedModule, entry: Import, kind: GlobalType) -> Binding | None:
        """Return an address that the linker defines."""
        address = self._addresses.get(entry.name) if entry.module == GOT_MEM else None
        return None if address is None else Constant(address, LINKER)

    def tag(self, importer: LinkedModule, entry: Import, kind: TagType) -> Binding | None:
        """Return the program's exception tag."""
        if entry.module != ENV or entry.name not in EXCEPTION_TAG_NAMES:
            return None
        if not host_fits(EXCEPTION_TAG, kind):
            raise ImportTypeError(importer.name, label(entry), str(kind), str(EXCEPTION_TAG), "the linker")
        return FromNamespace(BASE_NAMESPACE, entry.name)


class SystemInterface(Source):
    """The functions of WASI and WASIX."""

    def __init__(self, host: HostSymbols) -> None:
        self._host = host

    def function(
        self, importer: LinkedModule, entry: Import, kind: FuncType
    ) -> FunctionSymbol | FromNamespace | None:
        """Return the system function."""
        if entry.module in (ATOMICS, FINALIZERS):
            return None
        return self._host.bind_system(entry.module, entry.name, kind, importer.name)


def _integer(importer: LinkedModule, entry: Import, kind: GlobalType) -> GlobalType:
    if kind.value not in ("i32", "i64"):
        raise ImportTypeError(importer.name, label(entry), str(kind), "an integer global", "the linker")
    return kind
