"""The tree that `dlrun deps` shows: its nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dl.records import dataclass, field

CYCLE, REPEATED = "cycle", "repeated"


@dataclass
class Node:
    """A library in the tree.

    Attributes:
        name: as the needed list has it; of the root, the file.
        path: the file found; None when there is none.
        tried: every path that was tried in vain, with what was wrong with it.
        error: why it cannot be linked; None when it can.
        seen: `cycle` when it is one of those above it, `repeated` when it stood in the tree before; its needs are
            shown there.
        needs: what it needs, in order.
        unused: whether who needs it is bound to none of its symbols; None if nobody has looked.
    """

    name: str
    path: str | None = None
    tried: tuple[tuple[str, str], ...] = ()
    error: str | None = None
    seen: str | None = None
    needs: list[Node] = field(default_factory=list)
    unused: bool | None = None

    def below(self) -> Iterator[Node]:
        """Yield this node and all below it."""
        pending = [self]
        while pending:
            node = pending.pop()
            yield node
            pending += reversed(node.needs)

    def as_json(self) -> dict[str, Any]:
        """Return the tree in JSON's types."""
        return {
            "name": self.name,
            "found": self.path is not None,
            "path": self.path,
            "error": self.error,
            "tried": [{"path": path, "reason": reason} for path, reason in self.tried],
            "cycle": self.seen == CYCLE,
            "repeated": self.seen == REPEATED,
            "unused": self.unused,
            "needed": [node.as_json() for node in self.needs],
        }
