"""Functions at the top of a module, which other processes find by their names."""

from __future__ import annotations

import dl

TEN = 10
asked: list[str] = []

doubled = dl.HostFunction(lambda number: 2 * number, ("i32",), ("i32",))


def forty() -> int:
    """A host function."""
    return 40


def find(name: str) -> bytes | None:
    """A finder that knows nothing, and remembers what it was asked for."""
    asked.append(name)
    return None
