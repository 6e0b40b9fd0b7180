"""`dlrun --invoke NAME`: call one function instead of running the program; its arguments from words, its results as lines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import click

from dl.dlfcn import MAIN_HANDLE
from dl.errors import SymbolNotFoundError

if TYPE_CHECKING:
    from dl.linker import Linker
    from dl.wasm.types import FuncType


def values_of(words: Sequence[str], kind: FuncType, name: str) -> list[Any]:
    """Return the arguments of a function from words.

    Integers are decimal, or begin with 0x, 0o or 0b; signed or unsigned. Floats are as Python reads them. A v128 is 32
    hexadecimal digits, its first byte first.

    Raises:
        click.UsageError: there are too many or too few, or one is of another type.
    """
    if len(words) != len(kind.params):
        wanted = "1 argument" if len(kind.params) == 1 else f"{len(kind.params)} arguments"
        raise click.UsageError(f"{name} {kind} takes {wanted}, not {len(words)}")
    return [_value(word, param, name) for word, param in zip(words, kind.params, strict=True)]


def _value(word: str, kind: str, name: str) -> Any:
    try:
        if kind in ("i32", "i64"):
            value, bits = int(word, 0), int(kind[1:])
            if -(1 << bits - 1) <= value < 1 << bits:
                return value
        elif kind in ("f32", "f64"):
            return float(word)
        elif kind == "v128" and len(word) == 32:
            return bytes.fromhex(word)
    except ValueError:
        pass
    raise click.UsageError(f"{name}: {word!r} is no {kind}")


def texts_of(result: Any) -> list[str]:
    """Return the results of a call as texts, one each."""
    values = () if result is None else result if isinstance(result, tuple) else (result,)
    return [value.hex() if isinstance(value, bytes) else str(value) for value in values]


def function_of(linker: Linker, name: str) -> tuple[Callable[..., Any], FuncType]:
    """Return a function of a linked program by its name, or by `$LIBRARY$NAME` one of a loaded library; and its type.

    An export whose name begins with `$` comes first.

    Raises:
        SymbolNotFoundError: there is none, or it is data.
    """
    from dl.api.guest import GuestFunction  # noqa: PLC0415  the help needs nothing of the linker

    group = linker.main_group
    try:
        found = group.dlsym(MAIN_HANDLE, name)
    except SymbolNotFoundError as error:
        module, function = _parts(name)
        handles = [m.handle for m in linker.modules if module in (m.name, os.path.basename(m.name))]
        if not handles:
            loaded = linker.program.state.modules.copy().values()
            raise with_similar(error, name, chain.from_iterable(one.symbols for one in loaded)) from None
        try:
            found = group.dlsym(handles[0], function)
        except SymbolNotFoundError as absent:
            raise with_similar(absent, function, linker.program.state.modules[handles[0]].symbols) from None
    if not isinstance(found, GuestFunction):
        raise SymbolNotFoundError(name, (), "it is data, not a function")
    return found, found.type


def with_similar(error: SymbolNotFoundError, name: str, names: Iterable[str]) -> SymbolNotFoundError:
    """Return an error that also says which symbol was meant, unless it gives a reason of its own or nothing is like it."""
    from dl.api.library import similar_symbol  # noqa: PLC0415  only for messages

    if error.reason:
        return error
    return SymbolNotFoundError(name, error.searched, similar=similar_symbol(name, names))


def _parts(name: str) -> tuple[str, str]:
    """Return module and function of `$MODULE$FUNCTION`; empty texts if it is not that."""
    if not name.startswith("$"):
        return "", ""
    module, _, function = name[1:].partition("$")
    return module, function


def invoke(find: Callable[[], tuple[Callable[..., Any], FuncType]], name: str, words: Sequence[str]) -> int:
    """Call a function and print its results, one a line.

    Raises:
        click.UsageError: the words are no arguments of it.
        DlError: there is no such function, or the guest failed.
    """
    function, kind = find()
    for text in texts_of(function(*values_of(words, kind, name))):
        click.echo(text)
    return 0
