"""How the objects that a user holds come to the externals that they stand for, in the group of whichever thread asks.

An external of a program is known by where each group finds it (`FromNamespace`): the export of an instance with a number, or
what the host has made under a number. So one object serves every group, and an operation that uses it can be replayed. Only a
function that no instance exports, which came out of a table or a global, is known in the one group that it came from.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dl.errors import LinkerClosedError, LinkerUsageError, ValueConversionError
from dl.glue.resolution import FromNamespace
from dl.groups.entry import Group
from dl.groups.errors import raises_dl_errors
from dl.groups.registry import Groups
from dl.instances.budget import MemoryBudget
from dl.link.perform import Change
from dl.program.operations import DlOperation, ExternalSource
from dl.program.program import Program
from dl.wasm.matching import LinkType
from dl.wasm.types import FuncType, ValType

if TYPE_CHECKING:
    from dl.engine.protocol import EngineFunction
    from dl.instances.externals import Function

_FUNCTIONS = frozenset(("funcref",))


class Reach:
    """The way of one program's objects to their externals.

    Concurrency: any thread that has a group. `_exported` only grows; each step on it is atomic under the GIL.

    Attributes:
        groups: the program's groups.
        program: what they share.
        budget: bounds the memories of instances.
    """

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        self.program: Program = groups.program
        self.budget = MemoryBudget(groups.program.options.limits)
        self._numbers = itertools.count(1)
        self._exported: list[Function] = []

    def next_number(self, subject: str) -> int:
        """Return a number for an instance or external.

        Args:
            subject: what it is for, for messages.

        Raises:
            ResourceLimitError: there were `Limits.instances`.
        """
        number, limits = next(self._numbers), self.program.options.limits
        if number > limits.instances:
            raise limits.refusal(
                "instances", subject, f"there are {limits.instances} instances and externals"
            )
        return number

    def group(self) -> Group:
        """Return the calling thread's group.

        Raises:
            LinkerUsageError: it has none, or the engine has no externals.
            LinkerClosedError: the linker is closed.
        """
        ended = self.program.ended
        if isinstance(ended, LinkerClosedError):
            raise LinkerClosedError("the linker is closed") from ended
        group = self.groups.current()
        group.check_owner()
        return group

    def check_engine(self) -> None:
        """Check that the program's engine has externals.

        Raises:
            LinkerUsageError: it has not.
        """
        engine = self.program.engine
        if not engine.capabilities.externals:
            raise LinkerUsageError(
                f"engine {engine.name} lacks externals: it has no instances that are objects"
            )

    def find(self, source: ExternalSource, owner: Group | None = None) -> tuple[Group, Any]:
        """Return the calling thread's group, up to date, and an external in it.

        Args:
            source: where groups find it.
            owner: the one group that has it; None for all.

        Raises:
            LinkerUsageError: the calling thread's group has no such external.
        """
        group = self.group()
        group.synchronize()
        if owner is not None and group is not owner:
            raise LinkerUsageError(
                f"this function came out of a table of thread {owner.name!r} and is known only there"
            )
        try:
            return group, group.instances.externals.find(source)
        except KeyError as error:
            raise LinkerUsageError(f"thread {group.name!r} has no such external: {error}") from None

    @raises_dl_errors
    def perform(self, operation: DlOperation) -> None:
        """Make an operation in the calling thread's group, and commit it for all.

        Raises:
            DlError: it cannot be made; the program is as before.
        """
        group = self.group()
        if group.applying or group.replica.replaying:
            raise LinkerUsageError(
                "nothing can be instantiated in the midst of another load, by a start function"
            )
        self.program.limbo.drain()
        with Change(self.program, group) as change:
            change.apply(operation, lambda _group: None)
            with self.program.rendezvous.instigate(group.replica):
                change.commit(operation, lambda _number: None)

    # functions, which tables and globals hold

    def exported(self, function: Function) -> None:
        """Take note of a function that every group finds by name, so that a reference to it means this object."""
        self._exported.append(function)

    def function_object(self, group: Group, found: EngineFunction) -> Function:
        """Return the object for a function of a group's store: the one that it was exported as, if it was."""
        from dl.instances.externals import Function  # noqa: PLC0415  each needs the other

        externals = group.instances.externals
        known: Function | None = externals.functions.get(found.key)
        while known is None and externals.functions_seen < len(self._exported):
            function = self._exported[externals.functions_seen]
            externals.functions_seen += 1
            if isinstance(function.source, FromNamespace):
                external: Any = externals.find(function.source)
                externals.functions.setdefault(external.key, function)
            known = externals.functions.get(found.key)
        if known is None:
            kind = found.type()
            known = externals.functions[found.key] = Function(self, LinkType.of_host(kind), found, only=group)
        return known

    # values

    def to_engine(self, kind: ValType, value: Any) -> Any:
        """Return a value of a reference type as the engine takes it.

        Raises:
            ValueConversionError: a function is asked for, and it is none.
        """
        from dl.instances.externals import Function  # noqa: PLC0415  each needs the other

        if kind not in _FUNCTIONS or value is None:
            return value
        if not isinstance(value, Function):
            raise ValueConversionError(FuncType((kind,), ()), f"{value!r} is neither a dl.Function nor None")
        return value.in_engine()

    def from_engine(self, group: Group, kind: ValType, value: Any) -> Any:
        """Return a value of the engine's as the user holds it."""
        return self.function_object(group, value) if kind in _FUNCTIONS and value is not None else value

    def converting(self, kind: FuncType, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of the user's as the engine calls it: with its arguments and results converted."""
        if not _FUNCTIONS.intersection(kind.references()):
            return function

        def call(*arguments: Any) -> Any:
            group = self.groups.current()
            value = function(
                *(self.from_engine(group, k, v) for k, v in zip(kind.params, arguments, strict=True))
            )
            if len(kind.results) == 1:
                return self.to_engine(kind.results[0], value)
            if not isinstance(value, (tuple, list)) or len(value) != len(kind.results):
                return value  # which the engine refuses, and says why
            return tuple(self.to_engine(k, v) for k, v in zip(kind.results, value, strict=True))

        return call
