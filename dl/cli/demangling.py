"""Names of C++ and Rust as their authors wrote them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import click

from dl.cli.params import F
from dl.text import demangle_function

Demangler = Callable[[str], str]


def demangle_option(command: F) -> F:
    """Give a command `-C`, whose value `demangler` takes."""
    return click.option(
        "-C/",
        "--demangle/--no-demangle",
        "demangle",
        default=None,
        help="Show names of C++ and Rust as they were written; needs the extra `demangle`.",
    )(command)


def demangler(wanted: bool | None) -> Demangler:
    """Return what makes of a symbol's name the one that its author wrote; of any other name, itself.

    Args:
        wanted: whether names are to be demangled; None for if there is a library that can.

    Raises:
        click.UsageError: they are to be, and there is none.
    """
    if wanted is False:
        return str
    demangle = demangle_function()
    if demangle is None:
        if wanted:
            raise click.UsageError(
                "names cannot be demangled without a library that is not here: pip install 'wasix-dl[demangle]'"
            )
        return str

    @lru_cache(maxsize=4096)
    def demangled(name: str) -> str:
        return demangle(name) or name

    return demangled


def is_named(name: str, wanted: str, demangled: Demangler) -> bool:
    """Whether a symbol is the one that a user means: by its own name, or as its author wrote it, with arguments or without."""
    if name == wanted:
        return True
    written = demangled(name)
    return written != name and (written == wanted or written.startswith(f"{wanted}("))
