"""Link operations: the changes that every instance group makes, in the order of the operation log."""

from __future__ import annotations

from dataclasses import dataclass

from dl.dlfcn import ModuleHandle
from dl.engine.protocol import CompiledModule
from dl.glue.placement import ThreadLocalModule
from dl.modules.linked_module import LinkedModule


@dataclass(frozen=True, eq=False)
class GrowTable:
    """A link operation: the table has this many elements from now on."""

    table_length: int


@dataclass(eq=False)
class SetSlot:
    """A link operation: what a table index holds from now on.

    Attributes:
        address: the table index.
        code: the trampoline's compiled module; None for null.
        first: the first number that the trampoline keeps.
        second: the second.
        superseded: whether a later operation on the index is committed. Set once; who replays may skip this one then,
            because the later one is in the log already and nothing of the program runs before it.
    """

    address: int
    code: CompiledModule | None = None
    first: int = 0
    second: int = 0
    superseded: bool = False


@dataclass(frozen=True, eq=False)
class LoadModules:
    """A link operation: modules that every group instantiates.

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


@dataclass(frozen=True, eq=False)
class UnloadModules:
    """A link operation: modules that every group forgets.

    Attributes:
        modules: what goes.
        table_runs: first index and number of the table elements that become null.
    """

    modules: tuple[LinkedModule, ...]
    table_runs: tuple[tuple[int, int], ...]


DlOperation = LoadModules | UnloadModules | GrowTable | SetSlot
"""What every group must do."""
