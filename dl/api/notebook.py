"""Tables that a notebook shows: what names say is text, and neither many rows nor long names make them large."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

MOST_ROWS = 100
MOST_CHARACTERS = 100

_LEFT = ' style="text-align: left"'
"""Notebooks align cells to the right, where names are hard to compare."""


def shortened(text: str) -> str:
    """Return a text, and of a long one its ends."""
    half = MOST_CHARACTERS // 2
    return text if len(text) <= MOST_CHARACTERS else f"{text[:half]}…{text[-half:]}"


def cut(text: object) -> str:
    """Return a text as HTML shows it, and of a long one its ends."""
    import html  # noqa: PLC0415  slow to import, and seldom needed

    return html.escape(shortened(str(text)))


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]], count: int) -> str:
    """Return a table: a caption, a row of titles, and the first rows.

    Args:
        caption: text.
        head: texts; none for a table whose rows begin with their titles.
        rows: cells of each row; what is not shown is not asked for.
        count: how many rows there are.
    """
    top = "".join(f"<th{_LEFT}>{cut(text)}</th>" for text in head)
    parts = [f"<table><caption>{cut(caption)}</caption>", f"<tr>{top}</tr>" if head else ""]
    for row in islice(rows, MOST_ROWS):
        cells = [f"<td{_LEFT}>{f'<code>{text}</code>' if (text := cut(cell)) else ''}</td>" for cell in row]
        if not head:
            cells[0] = f"<th{_LEFT}>{cut(row[0])}</th>"
        parts.append(f"<tr>{''.join(cells)}</tr>")
    if count > MOST_ROWS:
        parts.append(f'<tr><td colspan="{max(len(head), 2)}">and {count - MOST_ROWS:,} more</td></tr>')
    return "".join([*parts, "</table>"])
