"""Link operations: the changes that every instance group makes, in the order of the operation log.

An operation knows how to apply itself to a group's instances. `obsolete` says that a later operation, which is committed, makes
it unnecessary: a group that replays the log from before both skips it, since nothing of the program runs in between.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

from dl.dlfcn import ModuleHandle
from dl.engine.protocol import CompiledModule
from dl.glue.placement import ThreadLocalModule
from dl.modules.linked_module import LinkedModule


class OperatedInstances(Protocol):
    """What operations ask of one group; see `dl.groups.instances`."""

    def load(self, operation: LoadModules) -> None:
        """Instantiate modules and place their functions."""

    def unload(self, operation: UnloadModules) -> None:
        """Clear modules' table elements and forget their instances."""

    def grow_table(self, length: int) -> None:
        """Make the table have at least this many elements."""

    def set_slot(self, operation: SetSlot) -> None:
        """Place a trampoline at a table index, or null."""


class DlOperation(ABC):
    """A change that every group makes."""

    @abstractmethod
    def apply(self, instances: OperatedInstances) -> None:
        """Make the change in one group, in its thread.

        Raises:
            DlError: it cannot be made.
        """

    @property
    def obsolete(self) -> bool:
        """Whether a group that has not applied it may skip it. Once true it stays so."""
        return False


@dataclass(frozen=True, eq=False)
class LoadModules(DlOperation):
    """Modules that every group instantiates.

    Attributes:
        modules: in instantiation order, which is handle order.
        table_length: elements the table has from now on.
        placement: code that places functions and sets up thread-local storage; None when there is nothing to do.
        thread_local: modules whose thread-local storage a new thread sets up with it, in parameter order.
        keeps_glue: modules whose import module stays reachable by name.
        binds_thread_locals: whether import modules have addresses that depend on the thread.
    """

    modules: tuple[LinkedModule, ...]
    table_length: int
    placement: CompiledModule | None
    thread_local: tuple[ThreadLocalModule, ...]
    keeps_glue: frozenset[ModuleHandle]
    binds_thread_locals: bool

    def apply(self, instances: OperatedInstances) -> None:
        """Instantiate the modules and place their functions."""
        instances.load(self)


@dataclass(frozen=True, eq=False)
class UnloadModules(DlOperation):
    """Modules that every group forgets.

    Attributes:
        modules: what goes.
        table_runs: first index and number of the table elements that become null.
    """

    modules: tuple[LinkedModule, ...]
    table_runs: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, modules: tuple[LinkedModule, ...]) -> UnloadModules:
        """Return the operation that removes modules and all their table elements."""
        runs = tuple((m.elements.address, m.elements.size) for m in modules if m.elements is not None)
        return cls(modules, runs)

    def apply(self, instances: OperatedInstances) -> None:
        """Clear the table elements and forget the instances."""
        instances.unload(self)


@dataclass(frozen=True, eq=False)
class GrowTable(DlOperation):
    """The table has at least this many elements from now on."""

    table_length: int

    def apply(self, instances: OperatedInstances) -> None:
        """Grow the table."""
        instances.grow_table(self.table_length)


@dataclass(eq=False)
class SetSlot(DlOperation):
    """What a table index holds from now on.

    Attributes:
        address: the table index.
        code: the trampoline's compiled module; None for null.
        first: the first number that the trampoline keeps, 32 bits.
        second: the second.
        superseded: whether a later operation on the index is committed. Set once, under the link lock.
    """

    address: int
    code: CompiledModule | None = None
    first: int = 0
    second: int = 0
    superseded: bool = False

    def apply(self, instances: OperatedInstances) -> None:
        """Place the trampoline, or null."""
        instances.set_slot(self)

    @property
    def obsolete(self) -> bool:
        """Whether a later operation on the index is committed."""
        return self.superseded
