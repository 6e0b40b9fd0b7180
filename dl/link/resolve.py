"""What each import means: symbol resolution.

Order, the same every time: what the user gave for exactly this import; the linker's own symbols (memory, table, bases, stack);
the importer's scope, first definition wins (the global scope in ELF order, then the tree opened with RTLD_LOCAL, or the
other way round with DEEPBIND); the system interfaces. Weak definitions are not told from strong ones: `dylink.0` does
not say which is which.

Functions that nothing defines become stubs unless everything is demanded now; data that nothing defines is an error
unless weak. All errors of a pass are reported together.
"""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dl.dlfcn import ModuleHandle
from dl.errors import (
    ImportTypeError,
    MissingSymbol,
    SymbolNotFoundError,
    UnsupportedModuleError,
    shown,
)
from dl.glue.names import (
    BASE_NAMESPACE,
    EXCEPTION_TAG,
    EXCEPTION_TAG_NAMES,
    HOST_NAMESPACE,
    Places,
    module_namespace,
)
from dl.glue.resolution import Binding, Constant, FromNamespace, LazyStub, ThreadLocalAddress, ThroughTable
from dl.modules.linked_module import LinkedModule
from dl.modules.symbols import DataSymbol, FunctionSymbol, GlobalSymbol, Symbol, TagSymbol, TlsSymbol
from dl.program.host_symbols import ATOMICS, HostSymbols
from dl.wasm.records import Import
from dl.wasm.types import FuncType, GlobalType, MemoryType, TableType, TagType

log = logging.getLogger("dl.link")

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
        symbol = module.symbols.get(name)
        if symbol is not None:
            return symbol
    return None


@dataclass
class Resolver:
    """One pass over the imports of the modules of a load.

    Attributes:
        host: the host's functions and numbers.
        places: where table and stack pointer are.
        memory: type of the program's memory as it is now.
        global_scope: the global scope, with what this load adds to it.
        linker_addresses: addresses that the linker itself defines, by name (`__stack_high`, …), bytes.
        modules: every module by handle, those of this load included.
        instantiated: says whether a module's instance exists when another is instantiated.
        address_of_host_function: gives a host function its table index.
        demand_functions: whether functions that nothing defines are errors.
        missing: imports that nothing defines, collected.
    """

    host: HostSymbols
    places: Places
    memory: MemoryType | None
    global_scope: Sequence[LinkedModule]
    linker_addresses: Mapping[str, int]
    modules: Mapping[ModuleHandle, LinkedModule]
    address_of_host_function: Callable[[str, str, FuncType, str], int]
    demand_functions: bool = False
    missing: list[MissingSymbol] = field(default_factory=list)
    _scopes: dict[ModuleHandle, Sequence[LinkedModule]] = field(default_factory=dict)

    def bind(self, module: LinkedModule) -> tuple[Binding, ...]:
        """Return what each import of a module means; adds to `missing` what nothing defines.

        Raises:
            ImportTypeError: a definition has another type than the import.
            UnsupportedModuleError: an import of a kind or type that cannot be served.
        """
        bindings = tuple(self._bind(module, entry) for entry in module.wasm.imports)
        if log.isEnabledFor(logging.DEBUG):
            for entry, binding in zip(module.wasm.imports, bindings, strict=True):
                log.debug("%s: %s is %s", module.name, _label(entry), self._described(binding))
        return bindings

    def _described(self, binding: Binding) -> str:
        if isinstance(binding, FromNamespace):
            if binding.namespace == HOST_NAMESPACE:
                return "a function of the host"
            known = (m.name for m in self.modules.values() if module_namespace(m.handle) == binding.namespace)
            return f"{binding.name} of {next(known, 'the program')}"
        if isinstance(binding, Constant):
            value: object = binding.value
            return hex(value) if isinstance(value, int) else str(value)
        if isinstance(binding, ThroughTable):
            return f"the function at table index {binding.address}"
        if isinstance(binding, ThreadLocalAddress):
            return (
                f"thread-local, {binding.offset:#x} from the block of {self.modules[binding.module].name} on"
            )
        return "undefined, and looked up at its first call"

    def _bind(self, module: LinkedModule, entry: Import) -> Binding:
        kind = entry.type
        if isinstance(kind, FuncType):
            return self._function(module, entry, kind)
        if isinstance(kind, MemoryType):
            return self._memory(module, entry, kind)
        if isinstance(kind, TableType):
            if kind.element != "funcref" or kind.limits.is64:
                raise UnsupportedModuleError(module.name, f"import {_label(entry)} of type {kind}")
            if kind.limits.maximum is not None:
                raise ImportTypeError(
                    module.name, _label(entry), str(kind), "a table without a maximum", "the linker"
                )
            return self.places.table
        if isinstance(kind, TagType):
            return self._tag(module, entry, kind)
        return self._global(module, entry, kind)

    def _memory(self, module: LinkedModule, entry: Import, wanted: MemoryType) -> Binding:
        have = self.memory
        if have is None:
            return self._undefined(module, entry)
        most, top = wanted.limits.maximum, have.limits.maximum
        fits = (
            wanted.limits.shared == have.limits.shared
            and wanted.limits.is64 == have.limits.is64
            and (most is None or (top is not None and top <= most))
        )
        if not fits:
            raise ImportTypeError(module.name, _label(entry), str(wanted), str(have), "the program")
        return FromNamespace(BASE_NAMESPACE, "memory")

    def _tag(self, module: LinkedModule, entry: Import, kind: TagType) -> Binding:
        symbol = find_symbol(entry.name, self._scope(module))
        if isinstance(symbol, TagSymbol) and symbol.module < module.handle:
            self._same_type(module, entry, symbol.type, symbol.module)
            return FromNamespace(module_namespace(symbol.module), symbol.name)
        if entry.name in EXCEPTION_TAG_NAMES:
            if kind != EXCEPTION_TAG:
                raise ImportTypeError(module.name, _label(entry), str(kind), str(EXCEPTION_TAG), "the linker")
            return FromNamespace(BASE_NAMESPACE, entry.name)
        if isinstance(symbol, TagSymbol):
            raise self._too_late(module, entry, "tag", symbol.module)
        return self._undefined(module, entry, kind)

    def _too_late(
        self, module: LinkedModule, entry: Import, what: str, provider: ModuleHandle
    ) -> UnsupportedModuleError:
        """Functions can be reached through the table before their instance exists; nothing else can."""
        return UnsupportedModuleError(
            module.name,
            f"{what} {_label(entry)} is defined by {self.modules[provider].name}, which is instantiated later",
        )

    def _function(self, module: LinkedModule, entry: Import, kind: FuncType) -> Binding:
        if entry.module in self.host.user:
            binding = (
                self.host.bind(entry.module, entry.name, kind, module.name)
                if entry.name in self.host.user[entry.module]
                else None
            )
            if binding is not None:
                return binding
        if entry.module == "env":
            symbol = find_symbol(entry.name, self._scope(module))
            if symbol is not None:
                return self._bound_function(module, entry, kind, symbol)
        if entry.module != ATOMICS:
            binding = self.host.bind(entry.module, entry.name, kind, module.name)
            if binding is not None:
                return binding
        weak = module.dylink is not None and module.dylink.is_weak_import(entry.name)
        if self.demand_functions and not weak and not self.host.has_namespace(entry.module):
            return self._undefined(module, entry)
        return LazyStub()

    def _bound_function(self, module: LinkedModule, entry: Import, kind: FuncType, symbol: Symbol) -> Binding:
        if not isinstance(symbol, FunctionSymbol):
            raise ImportTypeError(
                module.name, _label(entry), str(kind), _described(symbol), self.modules[symbol.module].name
            )
        self._same_type(module, entry, symbol.type, symbol.module)
        if symbol.module < module.handle:
            return FromNamespace(module_namespace(symbol.module), symbol.name)
        return ThroughTable(symbol.address)

    def _global(self, module: LinkedModule, entry: Import, kind: GlobalType) -> Binding:
        number = self.host.number(entry.module, entry.name)
        if number is not None:
            return self._number(module, entry, kind, number)
        if self.host.defines_function(entry.module, entry.name) and entry.module != "GOT.func":
            raise ImportTypeError(module.name, _label(entry), str(kind), "a function", "the host")
        if entry.module == "env" and entry.name == "__stack_pointer":
            if kind.value != "i32" or not kind.mutable:
                raise ImportTypeError(
                    module.name, _label(entry), str(kind), "a mutable i32 global", "the linker"
                )
            return self.places.stack_pointer
        if entry.module == "env" and entry.name in _BASE_GLOBALS:
            self._integer(module, entry, kind)
            return Constant(module.memory_base if "memory" in entry.name else module.table_base)
        if entry.module in ("GOT.mem", "GOT.func"):
            return self._got(module, entry, self._integer(module, entry, kind))
        symbol = find_symbol(entry.name, self._scope(module))
        if isinstance(symbol, GlobalSymbol):
            self._same_type(module, entry, symbol.type, symbol.module)
            if symbol.module < module.handle:
                return FromNamespace(module_namespace(symbol.module), symbol.name)
            raise self._too_late(module, entry, "global", symbol.module)
        if symbol is not None:
            raise ImportTypeError(
                module.name, _label(entry), str(kind), _described(symbol), self.modules[symbol.module].name
            )
        return self._undefined(module, entry)

    def _number(self, module: LinkedModule, entry: Import, kind: GlobalType, number: float) -> Constant:
        """Take a number of the host's for a global, if the global's type holds it."""
        fits = False
        if kind.value in ("i32", "i64"):
            bits = int(kind.value[1:])
            fits = isinstance(number, int) and -(1 << (bits - 1)) <= number < 1 << bits
        elif kind.value in ("f32", "f64"):
            try:
                number = _float_bits(kind, float(number))
                fits = True
            except OverflowError:
                fits = False
        if not fits:
            # An integer that fits nowhere may have thousands of digits.
            told = "beyond 80 bits" if isinstance(number, int) and number.bit_length() > 80 else str(number)
            raise ImportTypeError(module.name, _label(entry), str(kind), f"the number {told}", "the host")
        return Constant(int(number))

    def _got(self, module: LinkedModule, entry: Import, kind: GlobalType) -> Binding:
        symbol = find_symbol(entry.name, self._scope(module))
        wants_function = entry.module == "GOT.func"
        host_namespace = "GOT.func" if self.host.defines_function("GOT.func", entry.name) else "env"
        if wants_function and self.host.defines_function(host_namespace, entry.name):
            return Constant(self._host_function_address(module, entry, host_namespace))
        number = None if wants_function else self.host.number("env", entry.name)
        if number is not None:
            return self._number(module, entry, kind, number)
        if not wants_function and entry.name in self.linker_addresses and symbol is None:
            return Constant(self.linker_addresses[entry.name])
        if isinstance(symbol, FunctionSymbol) if wants_function else isinstance(symbol, DataSymbol):
            assert isinstance(symbol, (FunctionSymbol, DataSymbol))
            return Constant(symbol.address)
        if isinstance(symbol, TlsSymbol) and not wants_function:
            if self.modules[symbol.module].thread_local is None:
                raise SymbolNotFoundError(
                    entry.name,
                    (),
                    f"{self.modules[symbol.module].name} defines it as thread-local, but exports neither "
                    "__tls_base nor a function to set it up",
                )
            return ThreadLocalAddress(symbol.module, symbol.offset)
        if symbol is not None:
            wanted = "a function" if wants_function else "data"
            raise ImportTypeError(
                module.name, _label(entry), wanted, _described(symbol), self.modules[symbol.module].name
            )
        if module.dylink is not None and module.dylink.is_weak_import(entry.name):
            return Constant(0)
        return self._undefined(module, entry, kind)

    def _host_function_address(self, module: LinkedModule, entry: Import, namespace: str) -> int:
        kind = self.host.signature(namespace, entry.name) or next(
            (
                other.type
                for other in module.wasm.imports
                if other.module == "env" and other.name == entry.name and isinstance(other.type, FuncType)
            ),
            None,
        )
        if kind is None:
            raise UnsupportedModuleError(
                module.name,
                f"takes the address of the host's {entry.name} without calling it, so its signature is unknown: "
                "give it as dl.HostFunction with params and results",
            )
        return self.address_of_host_function(namespace, entry.name, kind, module.name)

    def _scope(self, module: LinkedModule) -> Sequence[LinkedModule]:
        scope = self._scopes.get(module.handle)
        if scope is None:
            scope = self._scopes[module.handle] = tuple(scope_of(module, self.global_scope))
        return scope

    def _same_type(self, module: LinkedModule, entry: Import, got: object, provider: ModuleHandle) -> None:
        if entry.type != got:
            raise ImportTypeError(
                module.name, _label(entry), str(entry.type), str(got), self.modules[provider].name
            )

    def _integer(self, module: LinkedModule, entry: Import, kind: GlobalType) -> GlobalType:
        if kind.value not in ("i32", "i64"):
            raise ImportTypeError(module.name, _label(entry), str(kind), "an integer global", "the linker")
        return kind

    def _undefined(self, module: LinkedModule, entry: Import, kind: object = None) -> Binding:
        self.missing.append(
            MissingSymbol(module.name, entry.module, entry.name, str(entry.type if kind is None else kind))
        )
        return Constant(0)


def _float_bits(kind: GlobalType, number: float) -> int:
    """Return the bits of a floating-point global; what single precision cannot hold becomes an infinity, as in C."""
    layout = "<f" if kind.value == "f32" else "<d"
    try:
        raw = struct.pack(layout, number)
    except OverflowError:
        raw = struct.pack(layout, math.copysign(math.inf, number))
    return int.from_bytes(raw, "little")


def _label(entry: Import) -> str:
    return f"{shown(entry.module)}.{shown(entry.name)}"


def _described(symbol: Symbol) -> str:
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
