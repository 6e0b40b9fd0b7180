"""dlsym: symbols of what is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from dl.dlfcn import RTLD_DEFAULT, ModuleHandle
from dl.errors import InvalidHandleError, SymbolNotFoundError
from dl.link.sources import find_symbol
from dl.modules.linked_module import LinkedModule, breadth_first
from dl.modules.symbols import Symbol
from dl.program.state import LinkerState


def look_up(state: LinkerState, handle: int, name: str, *, tree: bool = True) -> Symbol:
    """Find a symbol. From any thread.

    Args:
        state: the program's.
        handle: a module or `RTLD_DEFAULT`.
        name: the symbol.
        tree: whether what the module needs is searched too.

    Raises:
        SymbolNotFoundError: there is no such symbol.
        InvalidHandleError: no module has this handle.
    """
    scope: Sequence[LinkedModule]
    if handle == RTLD_DEFAULT:
        known = state.global_symbols.get(name)
        if known is not None:
            return known
        scope = state.global_scope
    else:
        module = state.modules.get(ModuleHandle(handle))
        if module is None:
            raise InvalidHandleError(handle, "it was closed" if 0 < handle < state.next_handle else "")
        scope = breadth_first([module]) if tree else [module]
    symbol = find_symbol(name, scope)
    if symbol is None:
        raise SymbolNotFoundError(name, [module.name for module in scope])
    return symbol
