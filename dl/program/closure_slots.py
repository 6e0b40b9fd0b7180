"""Table indices whose function is made at run time: closures of the guest, callbacks of the host, dynamic calls.

The indices come from a pool that grows in steps. What an index holds is set by a link operation, so that every group has
it before it could see the pointer, and groups made later get it from the log. Of several operations on one index only
the last matters to who replays from the start: the others are marked and skipped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from dl.engine.protocol import CompiledModule
from dl.glue.trampolines import (
    callback_module,
    closure_module,
    invoker_module,
)
from dl.program.operations import GrowTable, SetSlot
from dl.wasm.types import FuncType

if TYPE_CHECKING:
    from dl.group import InstanceGroup
    from dl.program.operations import DlOperation
    from dl.program.program import Program
    from dl.program.state import LinkerState
    from threads import Rendezvous

log = logging.getLogger("dl.link")

SLOTS_PER_GROWTH = 100
"""Table elements by which the pool grows (WASIX ABI, `closure_allocate`)."""

_MAX_CODES = 1024
"""Compiled trampolines that a linker keeps: signatures come from the guest, so their number must be bounded."""


class ClosureSlots:
    """The pool, and the operations on its indices. All fields that change are guarded by the link lock.

    Args:
        program: engine, memory, and places of table and stack pointer.
        state: the linker state, whose table the pool grows.
        rendezvous: the link lock and the barrier.
        find_group: returns the calling thread's group, if it has one.

    Attributes:
        checkpoint: called with the name of each step of an operation as it is about to begin; what it raises fails the
            operation there. For fault injection.
    """

    def __init__(
        self,
        program: Program,
        state: LinkerState,
        rendezvous: Rendezvous[DlOperation],
        find_group: Callable[[], InstanceGroup | None],
    ) -> None:
        self._program = program
        self._places = program.plan.places
        self._state = state
        self._rendezvous = rendezvous
        self._find_group = find_group
        self.checkpoint: Callable[[str], None] = lambda _step: None
        self._free: list[int] = []
        self._pool: set[int] = set()
        self._used: set[int] = set()
        self._contents: dict[int, SetSlot] = {}
        self._codes: dict[tuple[str, FuncType], CompiledModule] = {}

    def __contains__(self, address: int) -> bool:
        """Whether a table index belongs to the pool, used or not. From any thread."""
        return address in self._pool

    def in_use(self) -> int:
        """Indices handed out and not given back. From any thread."""
        return len(self._used)

    def allocate(self) -> int:
        """Hand out an index; calls through it trap until something is placed there.

        Raises:
            ResourceLimitError: the table cannot grow.
        """
        group = self._find_group()
        with self._rendezvous.instigate(group.replica if group else None):
            if not self._free:
                self._grow(group)
            address = self._free.pop()
            self._used.add(address)
        return address

    def _grow(self, group: InstanceGroup | None) -> None:
        table = self._state.table
        region = table.allocate(SLOTS_PER_GROWTH, 0, "closures")

        def grown() -> None:
            addresses = range(region.address, region.end)
            self._pool.update(addresses)
            self._free.extend(reversed(addresses))
            log.debug("closures: table indices %d to %d", region.address, region.end - 1)

        self._perform(group, GrowTable(table.reach()), grown, lambda: table.free(region))

    def place(self, address: int, code: CompiledModule, first: int, second: int = 0) -> bool:
        """Place a trampoline at an index in every group, replacing what is there.

        Args:
            address: an index that `allocate` handed out.
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
        group = self._find_group()
        address = operation.address
        with self._rendezvous.instigate(group.replica if group else None):
            if address not in self._used:
                return False
            former = self._contents.get(address) or SetSlot(address)

            def changed() -> None:
                self._contents[address] = operation
                former.superseded = True

            def take_back() -> None:
                if group is not None and group.replica.closed is None:
                    with group.replica.waiter.shielded():
                        group.set_slot(former)

            if former.code is not None or operation.code is not None:
                self._perform(group, operation, changed, take_back)
            if release:
                self._used.remove(address)
                self._free.append(address)
        return True

    def _perform(
        self,
        group: InstanceGroup | None,
        operation: GrowTable | SetSlot,
        done: Callable[[], None],
        take_back: Callable[[], None],
    ) -> None:
        """Make an operation in the calling thread's group and commit it; in the link lock.

        Args:
            group: the calling thread's.
            operation: what to do.
            done: keeps the books once it is committed, also if Ctrl-C comes right behind the point of no return.
            take_back: undoes what was done before, if it is not.
        """
        rendezvous = self._rendezvous
        before = rendezvous.committed
        try:
            if group is not None:
                self.checkpoint("apply")
                group.apply_first(operation)
            self.checkpoint("commit")
            rendezvous.commit(group.replica if group else None, operation)
        finally:
            if rendezvous.committed == before:
                take_back()
            else:
                done()

    def closure_code(self, kind: FuncType) -> CompiledModule:
        """Return the trampoline of a closure; its numbers are the backing function's table index and the environment.

        Raises:
            InvalidModuleError: the engine refuses the signature.
        """
        memory = self._program.memory_type
        assert memory is not None
        return self._code("closure", kind, lambda: closure_module(kind, memory, self._places))

    def invoker_code(self, kind: FuncType) -> CompiledModule | None:
        """Return the trampoline that calls functions of a signature dynamically; None without a memory to lend it."""
        memory = self._program.memory_type
        if memory is None or (memory.limits.shared and not self._program.shares_memory):
            return None
        return self._code("invoker", kind, lambda: invoker_module(kind, memory, self._places))

    def callback_code(self, kind: FuncType, dispatcher: str) -> CompiledModule:
        """Return the trampoline that passes its first number on to a host function."""
        return self._code("callback", kind, lambda: callback_module(kind, dispatcher, self._places))

    def _code(self, purpose: str, kind: FuncType, make: Callable[[], bytes]) -> CompiledModule:
        known = self._codes.get((purpose, kind))
        if known is None:
            known = self._program.compiler.compile(make(), f"{purpose} {kind}")
            if len(self._codes) >= _MAX_CODES:
                self._codes.clear()
            self._codes[purpose, kind] = known
        return known
