"""Link operations: the changes that every instance group makes, in the order of the operation log.

An operation knows how to apply itself to a group's instances, and whether a later one makes it obsolete. The log then drops it
(`threads.log`): nothing of the program runs in between, so a group that has not made it yet need not, and a new group makes
only what is still in effect.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from dl.dlfcn import ModuleHandle
from dl.glue.placement import PlacedFunction, ThreadLocalModule
from dl.glue.resolution import FromNamespace
from dl.glue.trap_functions import TrapFunctions
from dl.modules.linked_module import LinkedModule
from dl.modules.source_lines import SourceLines
from dl.program.limbo import Subject
from dl.program.resting import Rest, RestingIndices
from dl.records import dataclass
from dl.wasm.types import GlobalType

if TYPE_CHECKING:
    from dl.engine.protocol import CompiledModule, EngineExternal, EngineMemory


class OperatedInstances(Protocol):
    """What operations ask of one group; see `dl.groups.instances`."""

    def load(self, operation: LoadModules) -> None:
        """Instantiate modules and place their functions."""

    def unload(self, operation: UnloadModules) -> None:
        """Clear modules' table elements and forget their instances."""

    def hold_indices(self, operation: HoldIndices) -> None:
        """Place the functions that stand at the table indices of closed libraries."""

    def grow_table(self, length: int) -> None:
        """Make the table have at least this many elements."""

    def set_slot(self, operation: SetSlot) -> None:
        """Place a trampoline at a table index, or null."""

    def instantiate(self, operation: Instantiate) -> None:
        """Instantiate a module that is no library, from a list of externals."""

    def make_global(self, operation: MakeGlobal) -> None:
        """Make a global of the host's."""

    def share_memory(self, operation: ShareMemory) -> None:
        """Make a shared memory of the host's importable."""


class DlOperation(ABC):
    """A change that every group makes."""

    @abstractmethod
    def apply(self, instances: OperatedInstances) -> None:
        """Make the change in one group, in its thread.

        Raises:
            DlError: it cannot be made.
        """

    @abstractmethod
    def is_obsolete_after(self, later: DlOperation) -> bool:
        """Whether a group that makes a later operation, or needs not make it, need not make this one."""


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
        host_functions: functions of the host that it places; they keep their table indices when the modules go.
        based: the modules whose bases its generated code imports.
    """

    modules: tuple[LinkedModule, ...]
    table_length: int
    placement: CompiledModule | None
    thread_local: tuple[ThreadLocalModule, ...]
    keeps_glue: frozenset[ModuleHandle]
    binds_thread_locals: bool
    host_functions: tuple[PlacedFunction, ...] = ()
    based: tuple[LinkedModule, ...] = ()

    def table_indices(self) -> Iterator[int]:
        """Yield the table indices at which it places functions."""
        for module in self.modules:
            if module.elements is not None:
                yield from range(module.elements.address, module.elements.end)
        for function in self.host_functions:
            yield function.address

    def apply(self, instances: OperatedInstances) -> None:
        """Instantiate the modules and place their functions."""
        instances.load(self)

    def is_obsolete_after(self, later: DlOperation) -> bool:
        """Whether all its modules go with a later operation, and it places nothing else."""
        return (
            isinstance(later, UnloadModules)
            and not self.host_functions
            and all(module in later.modules for module in self.modules)
        )


@dataclass(frozen=True, eq=False)
class UnloadModules(DlOperation):
    """Modules that every group forgets.

    Attributes:
        modules: what goes.
        table_runs: first index and number of the table elements that become null.
        indices: what stands at the table indices of closed libraries after that; None if nothing changes.
    """

    modules: tuple[LinkedModule, ...]
    table_runs: tuple[tuple[int, int], ...]
    indices: HoldIndices | None = None

    @classmethod
    def of(cls, modules: tuple[LinkedModule, ...], indices: HoldIndices | None = None) -> UnloadModules:
        """Return the operation that removes modules and all their table elements.

        Args:
            modules: what goes.
            indices: what happens to their table indices; None if they are used again immediately.
        """
        runs = tuple((m.elements.address, m.elements.size) for m in modules if m.elements is not None)
        return cls(modules, runs, indices)

    @property
    def subject(self) -> Subject:
        """What `dl.program.limbo` calls the modules."""
        return tuple(module.handle for module in self.modules)

    def apply(self, instances: OperatedInstances) -> None:
        """Clear the table elements and forget the instances."""
        instances.unload(self)

    def is_obsolete_after(self, later: DlOperation) -> bool:  # noqa: ARG002  handles are never reused
        """Never: the log drops it when every group that has loaded the modules has made it."""
        return False


@dataclass(frozen=True, eq=False)
class HoldIndices(DlOperation):
    """What stands at the table indices of closed libraries.

    One entry of the log, which each close replaces: so a group that was absent makes it once, however many closes it missed.

    Attributes:
        version: how many closes there were, this one included.
        functions: everything that is placed.
        begun: what this close adds to the version before; the rest of that stays.
        cleared: first index and number of the elements that become null with this close.
    """

    version: int
    functions: tuple[TrapFunctions, ...]
    begun: tuple[TrapFunctions, ...]
    cleared: tuple[tuple[int, int], ...]

    @classmethod
    def after(cls, resting: RestingIndices, rest: Rest) -> HoldIndices:
        """Return what stands where when a close is carried out."""
        return cls(resting.closes + 1, resting.functions(rest), rest.functions, rest.cleared)

    def apply(self, instances: OperatedInstances) -> None:
        """Place the functions."""
        instances.hold_indices(self)

    def is_obsolete_after(self, later: DlOperation) -> bool:  # noqa: ARG002  it is replaced, never repeated
        """Never."""
        return False


@dataclass(frozen=True, eq=False)
class GrowTable(DlOperation):
    """The table has at least this many elements from now on."""

    table_length: int

    def apply(self, instances: OperatedInstances) -> None:
        """Grow the table."""
        instances.grow_table(self.table_length)

    def is_obsolete_after(self, later: DlOperation) -> bool:  # noqa: ARG002  what follows it in the log needs it
        """Never."""
        return False


@dataclass(frozen=True, eq=False)
class SetSlot(DlOperation):
    """What a table index holds from now on.

    Attributes:
        address: the table index.
        code: the trampoline's compiled module; None for null.
        first: the first number that the trampoline keeps, 32 bits.
        second: the second.
    """

    address: int
    code: CompiledModule | None = None
    first: int = 0
    second: int = 0

    def apply(self, instances: OperatedInstances) -> None:
        """Place the trampoline, or null."""
        instances.set_slot(self)

    def is_obsolete_after(self, later: DlOperation) -> bool:
        """Whether a later operation sets the same index."""
        return isinstance(later, SetSlot) and later.address == self.address


ExternalSource: TypeAlias = "FromNamespace | EngineExternal"
"""Where a group finds an external: by namespace and name; or the external itself, of a program that has one group only."""


def instance_namespace(number: int) -> str:
    """Namespace under which each group defines an instance or external, by its number in the program."""
    return f"i{number}"


MADE = "external"
"""The name of an external that the host has made, in its namespace."""


@dataclass(frozen=True, eq=False)
class _Stays(DlOperation):
    """An operation whose effect stays as long as the program: nothing that was instantiated so can be taken away.

    Attributes:
        number: of the instance or external, in the program.
    """

    number: int

    def is_obsolete_after(self, later: DlOperation) -> bool:  # noqa: ARG002  see above
        """Never."""
        return False


@dataclass(frozen=True)
class Filling:
    """A table of a module that is filled when it is instantiated, before its start function runs.

    Attributes:
        table: the name under which the module exports the table.
        functions: where the group finds each element.
        start: the name under which it exports its start function; None for none.
    """

    table: str
    functions: tuple[FromNamespace, ...]
    start: str | None


@dataclass(frozen=True, eq=False)
class Instantiate(_Stays):
    """A module that is no library, which every group instantiates from a list.

    Attributes:
        code: the module.
        name: what messages call it.
        imports: where the group finds each import.
        filling: what the group does before any of its code runs; None for nothing.
        lines: what finds its source lines; None if it says nothing of them.
    """

    code: CompiledModule
    name: str
    imports: tuple[ExternalSource, ...]
    filling: Filling | None = None
    lines: SourceLines | None = None

    def apply(self, instances: OperatedInstances) -> None:
        """Instantiate it."""
        instances.instantiate(self)


@dataclass(frozen=True, eq=False)
class MakeGlobal(_Stays):
    """A global that the host makes.

    Attributes:
        kind: its type.
        value: what it holds to begin with.
    """

    kind: GlobalType
    value: Any

    def apply(self, instances: OperatedInstances) -> None:
        """Make it."""
        instances.make_global(self)


@dataclass(frozen=True, eq=False)
class ShareMemory(_Stays):
    """A shared memory that the host makes."""

    memory: EngineMemory

    def apply(self, instances: OperatedInstances) -> None:
        """Make it importable."""
        instances.share_memory(self)
