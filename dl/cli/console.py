"""What goes to the terminal: one console for results, one for messages, and text that is safe to print.

Names come from modules, so from anyone: a control character in one must not move the cursor or forge a line.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

_NO_WRAPPING = 1_000_000
"""Columns of what is not a terminal: a line stays a line, so that other programs can read it."""


def output() -> Console:
    """Return the console for results: standard output, plain and unwrapped when it is not a terminal."""
    return _console(sys.stdout)


def messages() -> Console:
    """Return the console for messages: standard error."""
    return _console(sys.stderr)


def _console(file: TextIO) -> Console:
    # Running a program prints nothing, and rich takes longer to import than the linker.
    from dl.cli.plain_console import PlainConsole  # noqa: PLC0415

    # A terminal by its own word: rich would take FORCE_COLOR for one and wrap what goes into a file.
    terminal = file.isatty() and os.environ.get("TERM") != "dumb"
    return PlainConsole(
        file=file,
        force_terminal=terminal,
        no_color=None if terminal else True,
        width=None if terminal else _NO_WRAPPING,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
    )


def shown(text: str) -> str:
    """Return text as it may be printed: what is not printable, line ends included, is written as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def print_error(message: object) -> None:
    """Print an error as one line on standard error."""
    _print_line("error", "bold red", message)


def print_warning(message: object) -> None:
    """Print what may be a mistake, and stops nothing, as one line on standard error."""
    _print_line("warning", "bold yellow", message)


def _print_line(kind: str, style: str, message: object) -> None:
    from rich.text import Text  # noqa: PLC0415  see `_console`

    line = Text("dlrun: ")
    line.append(kind, style=style)
    line.append(f": {shown(str(message))}")
    messages().print(line)


def print_note(message: str, *, style: str = "") -> None:
    """Print one line that belongs to the error before it, on standard error."""
    from rich.text import Text  # noqa: PLC0415  see `_console`

    messages().print(Text(f"  {shown(message)}", style=style))
