"""Bind a stub to a function that an instance has come to define since its library was loaded.

A stub continues at a table index, and a function of an instance has none: so it is given one, in every group, by an operation
that stays for the life of the program, as the instance does.
"""

from __future__ import annotations

from dl.errors import UnresolvedCallError
from dl.glue.placement import PlacedFunction
from dl.glue.resolution import FromNamespace
from dl.groups.registry import Groups
from dl.link.generate import load_operation
from dl.link.perform import Change
from dl.modules.linked_module import LinkedModule
from dl.program.operations import UnloadModules
from dl.wasm.records import Import
from dl.wasm.types import FuncType


def place_late(groups: Groups, module: LinkedModule, entry: Import, found: FromNamespace) -> int:
    """Return the table index of an instance's function, which it gets now if it has none; in a thread that has a group.

    Args:
        groups: the program's groups.
        module: whose stub it is.
        entry: the stub's import.
        found: where each group finds the function.

    Raises:
        UnresolvedCallError: the call is part of another load, by a start function.
        ResourceLimitError: there is no table index left.
    """
    program, group = groups.program, groups.current()
    state, kind = program.state, entry.type
    assert isinstance(kind, FuncType)
    key = found.namespace, found.name, kind
    known = state.host_addresses.get(key)
    if known is not None:
        return known
    if group.applying or group.replica.replaying:
        raise UnresolvedCallError(
            module.name,
            entry.module,
            entry.name,
            "an instance defines it, but it is called by a start function",
        )
    with Change(program, group) as change, program.rendezvous.instigate(group.replica):
        known = state.host_addresses.get(key)
        if known is not None:  # another thread was first
            return known
        region = state.table.allocate(1, 0, module.name)
        change.on_failure(lambda: state.table.free(region))
        placed = PlacedFunction(found.namespace, found.name, kind, region.address)
        operation = load_operation(program, (), (placed,), state.table.reach())
        undo = UnloadModules((), ((region.address, 1),))
        change.apply(operation, lambda own: undo.apply(own.instances))
        change.commit(operation, lambda _number: state.host_addresses.setdefault(key, region.address))
    return region.address
