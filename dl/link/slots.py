"""Table indices whose function is made at run time: closures of the guest, callbacks of the host, dynamic calls.

What an index holds is set by a link operation, so that every group has it before it could see the pointer, and later groups
get it from the log.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from dl.groups.entry import Group
from dl.groups.registry import Groups
from dl.link.perform import Change
from dl.logs import logger
from dl.program.closure_slots import SLOTS_PER_GROWTH, ClosureSlots
from dl.program.operations import DlOperation, GrowTable, SetSlot
from threads import Replica, protect, uninterrupted, unwound_whole

if TYPE_CHECKING:
    from typing_extensions import Self

    from dl.engine.protocol import CompiledModule

log = logger("dl.link")


class SlotOperations:
    """Hands out table indices of a program, and sets what they hold.

    Args:
        groups: the program's groups.

    Attributes:
        pool: which indices there are; guarded by the link lock.
    """

    def __init__(self, groups: Groups, pool: ClosureSlots) -> None:
        self._groups = groups
        self._program = groups.program
        self.pool = pool

    def allocation(self) -> Allocation:
        """Return what hands out one index for a `with`, and takes it back if that ends with an exception."""
        return Allocation(self)

    def take(self, taken: Callable[[int], object]) -> None:
        """Hand out an index to `taken`, in one step that Ctrl-C does not cut in two; see `Allocation.take`."""
        group, limits = self._groups.find(), self._program.options.limits
        with Change(self._program, group) as change, self._program.rendezvous.instigate(_replica(group)):
            if self.pool.in_use() >= limits.closures:
                raise limits.refusal("closures", "a closure", f"{self.pool.in_use()} are in use")
            if self.pool.all_in_use():
                self._grow(change)
            with uninterrupted():
                taken(self.pool.take())

    def _grow(self, change: Change) -> None:
        table = self._program.state.table
        region = table.allocate(SLOTS_PER_GROWTH, 0, "closures")
        change.on_failure(lambda: table.free(region))
        operation = GrowTable(table.reach())
        self._program.checkpoint("apply", None)
        change.apply(operation, lambda _group: None)

        def done(_number: int) -> None:
            self.pool.add(range(region.address, region.end))

        # No later one replaces it: a group that has made an earlier one, and not this, finds slots of this region next
        # in the log. The pool never shrinks, so there are as many as the most closures ever in use need.
        change.commit(operation, done)
        log.debug("closures: table indices %d to %d", region.address, region.end - 1)

    def place(self, address: int, code: CompiledModule, first: int, second: int = 0) -> bool:
        """Place a trampoline at an index in every group, replacing what is there.

        Args:
            address: an index that was handed out.
            code: of `dl.glue.trampolines`.
            first: the first number that it keeps, 32 bits.
            second: the second.

        Returns:
            False if the index is not handed out.

        Raises:
            InstantiationError: the engine refuses an instance.
        """
        return self._set(SetSlot(address, code, first, second), release=False)

    def free(self, address: int) -> bool:
        """Take an index back: in every group it holds null, so that calls through it trap, and may be handed out again.

        Returns:
            False if the index is not handed out.
        """
        return self._set(SetSlot(address), release=True)

    def _set(self, operation: SetSlot, *, release: bool) -> bool:
        group = self._groups.find()
        pool, address = self.pool, operation.address
        with Change(self._program, group) as change, self._program.rendezvous.instigate(_replica(group)):
            if address not in pool.used:
                return False
            record = pool.records.get(address)
            former = SetSlot(address) if record is None else record.operation
            if former.code is not None or operation.code is not None:
                self._program.checkpoint("apply", None)
                change.apply(operation, lambda own: own.set_back(former))
                change.commit(
                    operation,
                    lambda number: pool.note(operation, number),
                    replaces={} if record is None else {record.last: None},
                    # Only groups that may hold a function there have to clear it.
                    only_after=None if operation.code is not None or record is None else record.first,
                )
            if release:
                pool.release(address)
        return True


class Allocation:
    """One index of the table, for as long as it takes to put it to use.

    The block that it is made for either ends well, and the index is its owner's, or with an exception, Ctrl-C at any moment
    among them, and the index is free again.
    """

    def __init__(self, slots: SlotOperations) -> None:
        self._slots = slots
        self._guard = unwound_whole()
        self._address: int | None = None

    def take(self) -> int:
        """Hand out an index; calls through it trap until something is placed there.

        Raises:
            ResourceLimitError: the table cannot grow, or `Limits.closures` are in use.
        """
        self._slots.take(self._note)
        assert self._address is not None
        return self._address

    def _note(self, address: int) -> None:
        self._address = address

    def __enter__(self) -> Self:
        self._guard.__enter__()
        return self

    @protect
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                self._give_back()
        finally:
            try:
                self._guard.__exit__(kind, error, trace)
            except BaseException:  # Ctrl-C, held back until here
                with uninterrupted():
                    self._give_back()
                raise

    def _give_back(self) -> None:
        address, self._address = self._address, None
        if address is not None:
            self._slots.free(address)


def _replica(group: Group | None) -> Replica[DlOperation] | None:
    return None if group is None else group.replica
