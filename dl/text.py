"""Texts for messages: names from files, and lists that may be long."""

from __future__ import annotations

from collections.abc import Sequence

MOST_LISTED = 100
_MOST_SHOWN = 400


def shown(name: str) -> str:
    """Return a name from a file as a message may show it: on one line, and not without end."""
    name = str(name)  # what a caller gave may be no text, which the message had better show too
    if len(name) > _MOST_SHOWN:
        name = f"{name[:_MOST_SHOWN]}... ({len(name)} characters)"
    return name if name.isprintable() else repr(name)[1:-1]


def first_of(texts: Sequence[str], count: int) -> str:
    """Join texts for a message; of more than can be read, the first."""
    listed = ", ".join(texts[:MOST_LISTED])
    return f"{listed} and {count - MOST_LISTED} more" if count > MOST_LISTED else listed
