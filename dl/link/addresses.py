"""From an address back to the module and the symbol that it belongs to.

A pointer of C is one of two things, and its number does not say which: the table index of a function, or the address of a byte
in linear memory. A program with many functions has indices as large as the addresses of the main module's first data, so who
knows what a pointer is asks for that (`function_at`, `data_at`); `location_of` takes a number that may be both for a function.

Symbols are what a module exports, as in ELF, where `dladdr` knows the dynamic symbols only. Functions that lie side by side in
the table do not lie so in the code, so a function without a symbol of its own gets no neighbour's; data has the nearest symbol
at or before it in its module, since the format states no sizes.
"""

from __future__ import annotations

from bisect import bisect_right

from dl.dlfcn import MAIN_HANDLE, AddressKind
from dl.errors import SymbolNotFoundError
from dl.groups.entry import Group
from dl.modules.linked_module import LinkedModule
from dl.modules.symbols import (
    INTERNAL_EXPORTS,
    TlsSymbol,
    data_value,
    element_runs,
    exported_functions,
    functions_without_index,
)
from dl.program.state import LinkerState
from dl.records import dataclass
from dl.wasm.dylink import SymbolFlags
from dl.wasm.module import WasmModule

_LAYOUT = frozenset(
    {"__data_end", "__global_base", "__heap_base", "__heap_end", "__stack_low", "__stack_high"}
)
"""Exports that say where something begins or ends, and name no data."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where an address belongs.

    Attributes:
        module: the module whose function, data or thread-local storage it is.
        kind: what it is.
        symbol: the function's own symbol, or the nearest one at or before the data; None if there is none.
        start: that symbol's address, a table index or bytes; of a function without a symbol the address itself, of data
            without one None.
    """

    module: LinkedModule
    kind: AddressKind
    symbol: str | None
    start: int | None


def location_of(state: LinkerState, address: int, group: Group | None = None) -> Location | None:
    """Return where a pointer of C belongs: a function's if it can be one, or else data's.

    Args:
        state: the program's.
        address: the pointer, 0 to 2**32 - 1.
        group: whose thread-local storage is meant, the calling thread's; None to take all data for common data.

    Returns:
        None if no module has anything there.
    """
    return function_at(state, address) or data_at(state, address, group)


def function_at(state: LinkerState, index: int) -> Location | None:
    """Return where the function at a table index belongs; None for null, and for functions that no module defines.

    From any thread. Functions that the linker or the host has placed (callbacks, closures) belong to no module.
    """
    for module in state.present():
        function = _function_in(module, index)
        if function is not None:
            name = exported_functions(module.wasm).get(function)
            return Location(module, AddressKind.FUNCTION, name, index)
    return None


def data_at(state: LinkerState, address: int, group: Group | None = None) -> Location | None:
    """Return where a byte of linear memory belongs; None for heap, stacks and memory that nobody has.

    Args:
        state: the program's.
        address: bytes, 0 to 2**32 - 1.
        group: the calling thread's, to find its thread-local variables too.
    """
    if group is not None:
        for module in state.present():
            found = _thread_local_in(module, address, group)
            if found is not None:
                return found
    for module in state.present():
        first, end = data_range(module)
        if first <= address < end:
            symbol = _nearest(_data_symbols(module.wasm), address - module.memory_base)
            if symbol is None:
                return Location(module, AddressKind.DATA, None, None)
            return Location(module, AddressKind.DATA, symbol[1], module.memory_base + symbol[0])
    return None


def data_range(module: LinkedModule) -> tuple[int, int]:
    """Return where a module's data begins and ends in linear memory, bytes.

    Of a main module without position independence, which the linker does not lay out, what its exports say.
    """
    if module.block is not None:
        return module.block.address, module.block.address + module.block.size
    if module.dylink is not None:
        return module.memory_base, module.memory_base + module.dylink.memory_size
    known = module.wasm.derived.get("data range")
    if known is None:
        offsets = [offset for offset, _ in _data_symbols(module.wasm)]
        first = data_value(module.wasm, "__global_base")
        ends = [data_value(module.wasm, name) for name in ("__data_end", "__heap_base")]
        end = next((e for e in ends if e is not None), max(offsets, default=-1) + 1)
        known = (min(offsets, default=end) if first is None else first, end)
        module.wasm.derived["data range"] = known
    return known[0], known[1]


def thread_local_block(module: LinkedModule, group: Group) -> int:
    """Return where the thread-local storage of a module is in a group, bytes; 0 if it has none there."""
    if module.thread_local is None or not module.thread_local.size:
        return 0
    try:
        return group.address_of(TlsSymbol(module.handle, "__tls_base", 0))
    except (KeyError, SymbolNotFoundError):
        return 0  # it is just being loaded, or was closed


def _function_in(module: LinkedModule, index: int) -> int | None:
    """Return the number of a module's function at a table index; None if it is none of its functions."""
    first = module.first_placed
    if module.elements is not None and first is not None and first <= index < module.elements.end:
        return _placed(module.wasm)[index - first]
    info = module.dylink
    if info is not None and not 0 <= index - module.table_base < info.table_size:
        return None
    if info is None and module.handle != MAIN_HANDLE:
        return None
    return _by_position(module.wasm).get(index - module.table_base)


def _placed(wasm: WasmModule) -> tuple[int, ...]:
    known: tuple[int, ...] | None = wasm.derived.get("placed function numbers")
    if known is None:
        known = wasm.derived["placed function numbers"] = tuple(functions_without_index(wasm))
    return known


def _by_position(wasm: WasmModule) -> dict[int, int]:
    """Return the functions that a module places itself, by their place from its table base on."""
    known: dict[int, int] | None = wasm.derived.get("functions by position")
    if known is None:
        known = {
            start + offset: function
            for start, functions in element_runs(wasm, 0)
            for offset, function in enumerate(functions)
            if function is not None
        }
        wasm.derived["functions by position"] = known
    return known


def _thread_local_in(module: LinkedModule, address: int, group: Group) -> Location | None:
    base = thread_local_block(module, group)
    if not base or module.thread_local is None or not base <= address < base + module.thread_local.size:
        return None
    symbol = _nearest(_thread_local_symbols(module.wasm), address - base)
    if symbol is None:
        return Location(module, AddressKind.THREAD_LOCAL, None, None)
    return Location(module, AddressKind.THREAD_LOCAL, symbol[1], base + symbol[0])


def _nearest(symbols: list[tuple[int, str]], offset: int) -> tuple[int, str] | None:
    # Of several at one place the first exported one: ties are sorted by their order, not by name.
    place = bisect_right(symbols, offset, key=lambda entry: entry[0])
    if not place:
        return None
    while place > 1 and symbols[place - 2][0] == symbols[place - 1][0]:
        place -= 1
    return symbols[place - 1]


def _data_symbols(wasm: WasmModule) -> list[tuple[int, str]]:
    """Return a module's data symbols in the order of their places, from its memory base on."""
    return _sorted_symbols(wasm, "data by place", 0)


def _thread_local_symbols(wasm: WasmModule) -> list[tuple[int, str]]:
    """Return a module's thread-local symbols in the order of their places in its block."""
    return _sorted_symbols(wasm, "thread-locals by place", SymbolFlags.TLS)


def _sorted_symbols(wasm: WasmModule, key: str, wanted: int) -> list[tuple[int, str]]:
    known: list[tuple[int, str]] | None = wasm.derived.get(key)
    if known is None:
        flags = wasm.dylink.exports if wasm.dylink else {}
        known = []
        for name, export in wasm.exports.items():
            if export.kind != "global" or name in INTERNAL_EXPORTS or name in _LAYOUT:
                continue
            value = data_value(wasm, name)
            flag = flags.get(name, 0) & (SymbolFlags.TLS | SymbolFlags.ABSOLUTE)
            if value is not None and flag == wanted:
                known.append((value, name))
        known.sort(key=lambda entry: entry[0])
        wasm.derived[key] = known
    return known
