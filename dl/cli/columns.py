"""Tables of text: columns as wide as what they hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from dl.cli.console import shown

_GAP = "  "


def print_columns(console: Console, rows: Iterable[Sequence[str]], indent: int = 1) -> None:
    """Print rows of as many cells each: columns as wide as what they hold, the last as it is.

    Args:
        console: where to.
        rows: the rows; control characters in them are escaped.
        indent: how many steps to the right.
    """
    cells = [[shown(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)][:-1]
    for row in cells:
        line = Text(_GAP * indent)
        for position, (cell, width) in enumerate(zip(row, widths, strict=False)):
            line.append(cell, style="cyan" if position == 0 else "")
            line.append(" " * (width - cell_len(cell)) + _GAP)
        line.append(row[-1])
        line.rstrip()
        console.print(line)
