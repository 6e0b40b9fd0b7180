"""The operation log: what every instance group has made, or has yet to make, in one order for all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

Op = TypeVar("Op")

__all__ = ["OperationLog"]


class OperationLog(Generic[Op]):
    """Committed operations, numbered from 1, appended and never changed.

    Concurrency:
      Readers need no lock: `list.append` is one step under the GIL, and an entry never changes once it can
      be seen. Appending is the rendezvous's alone, under its lock and with its gate closed; that one
      step is the moment an operation is committed.
    """

    __slots__ = ("_operations",)

    def __init__(self) -> None:
        self._operations: list[Op] = []  # guarded by: Rendezvous._lock, for appending only

    @property
    def committed(self) -> int:
        """How many operations are committed; also the number of the last one, 0 if there is none."""
        return len(self._operations)

    def __len__(self) -> int:
        return len(self._operations)

    def __getitem__(self, sequence: int) -> Op:
        """Return operation `sequence`, 1 to `committed`.

        Raises:
          IndexError: nothing with that number is committed.
        """
        if sequence < 1:
            raise IndexError(sequence)
        return self._operations[sequence - 1]

    def since(self, sequence: int) -> Iterator[tuple[int, Op]]:
        """Yield number and operation of all that follow operation `sequence`, up to those committed now."""
        end = len(self._operations)
        for index in range(max(sequence, 0), end):
            yield index + 1, self._operations[index]

    def append(self, operation: Op) -> int:
        """Commit an operation and return its number. For `Rendezvous.commit` only."""
        self._operations.append(operation)
        return len(self._operations)
