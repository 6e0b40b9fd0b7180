"""What one group has of the program's instances and externals that are objects of the user's: see `dl.instances`."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, cast

from dl.glue.resolution import FromNamespace
from dl.program.operations import (
    MADE,
    ExternalSource,
    Filling,
    Instantiate,
    MakeGlobal,
    ShareMemory,
    instance_namespace,
)
from dl.wasm.types import FuncType

if TYPE_CHECKING:
    from dl.engine.protocol import EngineExternal, EngineInstance, EngineTable, Store


class GroupExternals:
    """One group's instances and externals. Belongs to the group's thread; changes by operations only.

    Attributes:
        callables: the API's callables, by the object that they are called through.
        functions: the API's function objects, by the key of the function in this store.
        functions_seen: how many of the program's exported functions were looked at for `functions`.
        memories: the API's views of memories, by the object that shows them.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._instances: dict[int, EngineInstance] = {}
        self._made: dict[int, EngineExternal] = {}
        self._found: dict[FromNamespace, EngineExternal] = {}
        self.callables: dict[object, Callable[..., Any]] = {}
        self.functions: dict[Hashable, Any] = {}
        self.functions_seen = 0
        self.memories: dict[object, Any] = {}

    def instantiate(self, operation: Instantiate) -> None:
        """Instantiate a module from a list of externals.

        Raises:
            InstantiationError: the engine refuses an import, or a limit was reached.
            TrapError: its start function or an active segment trapped.
        """
        given = [self.find(source) for source in operation.imports]
        if operation.lines is not None:
            self._store.find_lines(operation.code, operation.lines)
        instance = self._store.instantiate(operation.code, operation.name, given)
        if operation.filling is not None:
            self._fill(instance, operation.filling)
        self._store.define_instance(instance_namespace(operation.number), instance)
        self._instances[operation.number] = instance

    def _fill(self, instance: EngineInstance, filling: Filling) -> None:
        table = cast("EngineTable", instance.external(filling.table))
        for index, source in enumerate(filling.functions):
            table.set(index, self.find(source))
        if filling.start is not None:
            instance.function(filling.start, FuncType((), ()))()

    def make_global(self, operation: MakeGlobal) -> None:
        """Make a global.

        Raises:
            ValueConversionError: the value is of another type.
            EngineError: the engine refuses it.
        """
        self._made[operation.number] = self._store.new_global(operation.kind, operation.value)

    def share_memory(self, operation: ShareMemory) -> None:
        """Make a shared memory importable."""
        self._store.define_memory(instance_namespace(operation.number), MADE, operation.memory)

    def find(self, source: ExternalSource) -> EngineExternal:
        """Return an external of this group.

        Raises:
            KeyError: there is none.
        """
        if not isinstance(source, FromNamespace):
            return source
        known = self._found.get(source)
        if known is None:
            known = self._found[source] = self._look_up(source)
        return known

    def _look_up(self, source: FromNamespace) -> EngineExternal:
        if source.namespace[:1] == "i" and source.namespace[1:].isdigit():
            number = int(source.namespace[1:])
            if number in self._made:
                return self._made[number]
            if number in self._instances:
                return self._instances[number].external(source.name)
        return self._store.external(source.namespace, source.name)
