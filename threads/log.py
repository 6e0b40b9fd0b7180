"""The operation log: the operations that some group has yet to make, in one order for all groups."""

# What is kept, and for whom
# ==========================
# Operations are numbered from 1 without gaps, but the log holds one only while some group may have to make it.
# There are two kinds of entries, which differ in the groups that replay them:
#
#  * A *shared* entry (a load, a slot that is set) is what a new group has to make too, so it stays until a later
#    operation replaces it. A group past it is not concerned; a group before it finds a gap, or the replacement.
#  * An *owed* entry undoes something (an unload, a slot set to null). It matters only to the members that had made what it
#    undoes when it was committed. They are known at that moment, and no other ever comes to need it, because what
#    it undoes is replaced in the same step. So it is owed to those members one by one, and is dropped when the last of them
#    has made it or has left. A member that was absent from before is owed nothing, and nothing is kept for it.
#    It may leave a shared entry with its own number, for the groups that it is not owed to: how things are now, where what
#    it does is only a difference to before. So a state that changes with each operation is one entry, and costs a member that
#    is absent one replay, however often it has changed.
#
# The size is therefore the live operations plus what members that lag behind still have to undo, however many operations
# the program has made. Each entry is dropped once and each debt is paid once, at constant cost; numbers of dropped entries
# are swept out of the sorted list when they are the larger half of it.
#
# One step
# ========
# A commit changes several things, and a signal handler may raise between any two of them. So it is recorded first,
# becomes valid by one store (`_committed`), and is carried out afterwards; what an exception cuts off, the next access
# under the lock completes. Every step of carrying it out may be made twice.

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar

from threads.tables import found_in

Op = TypeVar("Op")

__all__ = ["Debtor", "OperationLog"]

_SWEEP_FROM = 32  # numbers of dropped entries that are not worth a sweep


class Debtor(Protocol):
    """A member that may be owed operations; the log keeps its list for it.

    Attributes:
      owed: numbers of the operations owed to it, ascending. An ordered dictionary, because a plain one takes ever
        longer to find its first key when keys are taken from the front.
    """

    owed: OrderedDict[int, None]


class _Owed(Generic[Op]):
    __slots__ = ("debtors", "operation")

    def __init__(self, operation: Op, debtors: dict[Debtor, None]) -> None:
        self.operation = operation
        self.debtors = debtors


class _Commit(Generic[Op]):
    __slots__ = ("debtors", "number", "operation", "replaces")

    def __init__(
        self,
        number: int,
        operation: Op,
        replaces: dict[int, Op | None],
        debtors: dict[Debtor, None] | None,
    ) -> None:
        self.number = number
        self.operation = operation
        self.replaces = replaces
        self.debtors = debtors


class OperationLog(Generic[Op]):
    """Committed operations, numbered from 1; those that nobody needs any longer are dropped.

    Attributes:
      oldest_start: a group may join with no operation made, or with this many or more of them made; with fewer it may have
        made something whose undoing the log has dropped.

    Concurrency:
      all methods are called under the rendezvous' lock, except `committed`, `len`, `log[n]` and `since`, which any
      thread may use at any time: each reads one entry, or a copy. Both are atomic, without a GIL too.
    """

    __slots__ = ("_committed", "_numbers", "_operations", "_owed", "_unfinished", "oldest_start")

    def __init__(self) -> None:
        self._committed = 0  # one store to it is the commit
        # Shared entries by number, ascending. Its last key may be above `_committed`: not committed, then.
        self._operations: dict[int, Op] = {}
        self._numbers: list[
            int
        ] = []  # keys of _operations, and numbers of some entries that have been dropped
        self._owed: dict[int, _Owed[Op]] = {}
        self._unfinished: _Commit[Op] | None = None
        self.oldest_start = 0

    @property
    def committed(self) -> int:
        """Number of the last committed operation, 0 if there is none."""
        return self._committed

    def __len__(self) -> int:
        """Return how many entries are live."""
        return len(self._operations) + len(self._owed)

    def __getitem__(self, sequence: int) -> Op:
        """Return operation `sequence`.

        Raises:
          IndexError: nothing with that number is committed, or nobody needs it any longer.
        """
        if not 1 <= sequence <= self._committed:
            message = f"operation {sequence} is not committed; the last one is {self._committed}"
            raise IndexError(message)
        owed = self._owed.get(sequence)
        if owed is not None:
            return owed.operation
        try:
            return self._operations[sequence]
        except KeyError:
            message = f"operation {sequence} has been dropped: no group needs it any longer"
            raise IndexError(message) from None

    def since(self, sequence: int) -> Iterator[tuple[int, Op]]:
        """Yield number and operation of the shared entries after `sequence`: what a group at that number replays."""
        committed = self._committed
        for number, operation in self._operations.copy().items():
            if sequence < number <= committed:
                yield number, operation

    def append(
        self,
        operation: Op,
        *,
        replaces: Mapping[int, Op | None] | None = None,
        owed_to: Iterable[Debtor] | None = None,
        leaves: Op | None = None,
    ) -> int:
        """Commit an operation and return its number. For `Rendezvous.commit` only.

        Args:
          operation: what to commit.
          replaces: earlier operations to drop (None) or to replace, in the same step. One that has been dropped stays so.
          owed_to: the members that need it, if it undoes something; None if a new group needs it too.
          leaves: what all other groups make in its place, new ones too; None for nothing. Only with `owed_to`.
        """
        self.finish()
        number = self._committed + 1
        debtors = None if owed_to is None else dict.fromkeys(owed_to)
        self._unfinished = _Commit(number, operation, dict(replaces or ()), debtors)
        shared = operation if debtors is None else leaves
        if shared is not None:
            self._operations[number] = shared
        else:
            self._operations.pop(number, None)  # of an attempt that did not come to its commit
        self._committed = number  # the point of no return
        self.finish()
        return number

    def finish(self) -> None:
        """Carry out what an exception may have cut off after its commit."""
        commit = self._unfinished
        if commit is None or commit.number > self._committed:
            return
        number = commit.number
        if number in self._operations and (not self._numbers or self._numbers[-1] < number):
            self._numbers.append(number)
        if commit.debtors is not None:
            self.oldest_start = number
            if commit.debtors:
                self._owed[number] = _Owed(commit.operation, commit.debtors)
                for debtor in commit.debtors:
                    debtor.owed[number] = None
        for earlier, smaller in commit.replaces.items():
            self._replace(earlier, smaller)
        if len(self._numbers) > 2 * len(self._operations) + _SWEEP_FROM:
            self._numbers = list(self._operations)
        self._unfinished = None

    def next(self, debtor: Debtor, sequence: int) -> tuple[int, Op] | None:
        """Return the operation that a member which has made `sequence` makes next, None if nothing is left for it."""
        self.finish()
        owed = next(iter(debtor.owed), None)
        numbers, operations = self._numbers, self._operations
        for i in range(bisect_right(numbers, sequence), len(numbers)):
            number = numbers[i]
            if owed is not None and owed <= number:
                break
            if number in operations:
                return number, operations[number]
        return None if owed is None else (owed, self._owed[owed].operation)

    def paid(self, debtor: Debtor, number: int) -> None:
        """A member has made an operation; if it was owed, it is no longer."""
        self.finish()
        self._pay(debtor, number)

    def forgive(self, debtor: Debtor) -> None:
        """Owe a member nothing any longer: it has left."""
        self.finish()
        for number in list(debtor.owed):
            self._pay(debtor, number)

    def _pay(self, debtor: Debtor, number: int) -> None:
        owed = found_in(self._owed, number)
        if owed is not None:
            owed.debtors.pop(debtor, None)
            if not owed.debtors:
                del self._owed[number]
        debtor.owed.pop(number, None)

    def _replace(self, number: int, smaller: Op | None) -> None:
        if number in self._operations:
            # Debts of the same number stay: what is replaced is what the others make.
            if smaller is None:
                del self._operations[number]
            else:
                self._operations[number] = smaller
            return
        owed = self._owed.get(number)
        if owed is None:
            return
        if smaller is not None:
            owed.operation = smaller
            return
        for debtor in list(owed.debtors):
            self._pay(debtor, number)
