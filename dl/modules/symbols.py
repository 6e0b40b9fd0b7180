"""What a module defines: symbols, and where they are.

A module's exports become symbols once, when its place in memory and table is known; from then on an address is a
look-up. Rules: tool-conventions `DynamicLinking.md` (exports of data are immutable globals that hold the offset from
the module's memory base; TLS symbols hold the offset from its TLS base).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from dl.dlfcn import ModuleHandle
from dl.wasm.const_expr import evaluate
from dl.wasm.dylink import SymbolFlags
from dl.wasm.module import WasmModule
from dl.wasm.records import Import
from dl.wasm.types import FuncType, GlobalType, TagType

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


def element_runs(module: WasmModule, table_base: int) -> Iterator[tuple[int, tuple[int | None, ...]]]:
    """Yield what the module's own segments place into table 0: the first table index, and function indices."""
    bases = {i.index: table_base for i in module.imports if i.kind == "global" and i.name == "__table_base"}
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
    functions: dict[int, str] = {}
    for export in module.exports.values():
        if export.kind == "func" and export.name not in INTERNAL_EXPORTS:
            functions.setdefault(export.index, export.name)
    return functions


def exported_imports(module: WasmModule) -> dict[str, Import]:
    """Return the imported functions that a module exports again, by the name it exports them under."""
    functions = [entry for entry in module.imports if entry.kind == "func"]
    return {
        export.name: functions[export.index]
        for export in module.exports.values()
        if export.kind == "func" and export.index < len(functions) and export.name not in INTERNAL_EXPORTS
    }


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


def module_symbols(
    module: WasmModule,
    handle: ModuleHandle,
    memory_base: int,
    addresses: Mapping[int, int],
) -> dict[str, Symbol]:
    """Return everything a module defines for others; imports that it exports again are not its own.

    Args:
        module: the parsed module.
        handle: its handle.
        memory_base: bytes.
        addresses: function index to table index, for every function it defines and exports.
    """
    flags = module.dylink.exports if module.dylink else {}
    symbols: dict[str, Symbol] = {}
    for name, export in module.exports.items():
        if name in INTERNAL_EXPORTS:
            continue
        if export.kind == "func":
            assert isinstance(export.type, FuncType)
            if export.index >= module.import_counts["func"]:
                symbols[name] = FunctionSymbol(handle, name, export.type, addresses[export.index])
        elif export.kind == "global":
            assert isinstance(export.type, GlobalType)
            value = data_value(module, name)
            flag = flags.get(name, SymbolFlags(0))
            if value is None:
                symbols[name] = GlobalSymbol(handle, name, export.type)
            elif flag & SymbolFlags.TLS:
                symbols[name] = TlsSymbol(handle, name, value)
            else:
                base = 0 if flag & SymbolFlags.ABSOLUTE else memory_base
                symbols[name] = DataSymbol(handle, name, (base + value) & 0xFFFFFFFF)
        elif export.kind == "tag":
            assert isinstance(export.type, TagType)
            symbols[name] = TagSymbol(handle, name, export.type)
    return symbols
