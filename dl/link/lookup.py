"""dlsym: symbols of what is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from dl.dlfcn import MAIN_HANDLE, RTLD_DEFAULT, RTLD_NEXT, ModuleHandle
from dl.errors import InvalidHandleError, LinkerUsageError, SymbolNotFoundError
from dl.link.sources import find_symbol, scope_of
from dl.link.tracing import symbols_log
from dl.logs import DEBUG
from dl.modules.linked_module import LinkedModule, breadth_first
from dl.modules.symbols import Symbol
from dl.program.state import LinkerState
from threads import found_in

_HANDLES: dict[int, str] = {RTLD_DEFAULT: "RTLD_DEFAULT", RTLD_NEXT: "RTLD_NEXT"}


def look_up(
    state: LinkerState, handle: int, name: str, *, caller: int | None = None, tree: bool = True
) -> Symbol:
    """Find a symbol. From any thread.

    Args:
        state: the program's.
        handle: a module, `MAIN_HANDLE` or `RTLD_DEFAULT` for the global scope, or `RTLD_NEXT`.
        name: the symbol.
        caller: the module whose code asks. With `RTLD_NEXT` what comes after it is searched; with `RTLD_DEFAULT` what it sees
            itself, which may be more than the global scope.
        tree: whether more than the module itself is searched: what it needs too, and the global scope for the main module.

    Raises:
        SymbolNotFoundError: there is no such symbol.
        InvalidHandleError: no module has this handle.
        LinkerUsageError: `RTLD_NEXT`, and nobody says who asks.
    """
    scope: Sequence[LinkedModule]
    if handle == RTLD_NEXT and tree:
        if caller is None:
            raise LinkerUsageError("RTLD_NEXT needs to know the module that asks: give its handle as caller")
        scope = _after(state, module_of_handle(state, caller))
    elif handle == RTLD_DEFAULT and caller is not None:
        asking = module_of_handle(state, caller)
        known: Symbol | None = None if asking.deep_bind else state.global_symbols.get(name)
        if known is not None:
            return _told(state, handle, name, known, None)
        scope = list(dict.fromkeys((*scope_of(asking, state.global_scope), *state.trees_with(asking))))
    elif handle == RTLD_DEFAULT or (handle == MAIN_HANDLE and tree):
        known = state.global_symbols.get(name)
        if known is not None:
            return _told(state, handle, name, known, None)
        scope = state.global_scope.copy()  # which other threads lengthen
    else:
        module = module_of_handle(state, handle)
        own: Symbol | None = module.symbols.get(name)
        if own is not None:
            return _told(state, handle, name, own, (module,))  # the first of its tree
        scope = breadth_first([module]) if tree else [module]
    symbol = _told(state, handle, name, find_symbol(name, scope), scope)
    if symbol is None:
        raise SymbolNotFoundError(name, [module.name for module in scope])
    return symbol


Found = TypeVar("Found", bound=Symbol | None)


def _told(
    state: LinkerState, handle: int, name: str, symbol: Found, searched: Sequence[LinkedModule] | None
) -> Found:
    """Tell the logger of a look-up; return what it has found.

    Args:
        state: the program's.
        handle: where it was looked for.
        name: the symbol.
        symbol: what was found.
        searched: the modules of the scope, perhaps none; None for the global scope, whose symbols are in one table.
    """
    if symbols_log.isEnabledFor(DEBUG):
        found = None if symbol is None else state.modules.get(symbol.module)
        names = []
        for module in state.global_scope.copy() if searched is None else searched:
            names.append(module.name)
            if module is found:
                break
        symbols_log.debug(
            "dlsym(%s, %s): looked for in %s: %s",
            _HANDLES.get(handle, handle),
            name,
            ", ".join(names) or "no module",
            "not found" if symbol is None else f"found in {found.name if found else 'what is gone'}",
            extra={
                "fields": {
                    "symbol": name,
                    "handle": int(handle),
                    "searched": names,
                    "found": symbol is not None,
                }
            },
        )
    return symbol


def look_up_for_code(state: LinkerState, handle: int, name: str, caller: int) -> Symbol:
    """Find a symbol for a module's own code; see `look_up`.

    What is found by `RTLD_DEFAULT` stays as long as the module: as in glibc, where such a look-up binds like a relocation,
    and those of a handle or of `RTLD_NEXT` do not.
    """

    def find() -> Symbol:
        return look_up(state, handle, name, caller=caller)

    return state.keep_looked_up(module_of_handle(state, caller), find) if handle == RTLD_DEFAULT else find()


def module_of_handle(state: LinkerState, handle: int) -> LinkedModule:
    """Return the loaded module that has a handle.

    Raises:
        InvalidHandleError: there is none; says whether there was one.
    """
    module = found_in(state.modules, ModuleHandle(handle))
    if module is None:
        raise InvalidHandleError(handle, "it was closed" if 0 < handle < state.next_handle else "")
    return module


def _after(state: LinkerState, caller: LinkedModule) -> Sequence[LinkedModule]:
    """Return what RTLD_NEXT searches, as glibc does.

    That is what comes after the caller in the tree of the dlopen that loaded it, which for the main module and what it needs
    from the start is the global scope; in its own tree, when the module that was opened then is gone.
    """
    if caller.loaded_with == MAIN_HANDLE:
        order: Sequence[LinkedModule] = state.global_scope
    else:
        order = breadth_first([state.modules.get(caller.loaded_with, caller)])
    if caller not in order:
        order = breadth_first([caller])
    return order[order.index(caller) + 1 :]
