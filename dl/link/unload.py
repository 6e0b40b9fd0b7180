"""How modules leave the program: every group forgets them, and what they hold is given back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from dl.errors import DlError, InitializationError
from dl.glue.trap_functions import trap_functions_module
from dl.groups.entry import Group
from dl.link.generate import load_operation
from dl.link.perform import Change
from dl.link.plan import LinkPlan
from dl.logs import logger
from dl.modules.linked_module import LinkedModule
from dl.program.events import EventKind
from dl.program.main_module import CONSTRUCTORS
from dl.program.operations import DlOperation, HoldIndices, LoadModules, UnloadModules
from dl.program.program import Program
from dl.program.resting import Closed, Rest, Signatures
from threads import found_in

if TYPE_CHECKING:
    from dl.engine.protocol import CompiledModule

log = logger("dl.link")


def unload_failed(program: Program, group: Group, plans: Sequence[LinkPlan], error: BaseException) -> None:
    """Take back loads that are committed, because constructors of theirs failed or were interrupted.

    Every group has their modules by now, and forgets them. Unless another module is bound to one of them already, such as a
    library that a constructor opened: then they stay, since their memory and table elements are in use, but can be found no
    longer; opening them again loads them anew.
    """
    modules = [module for plan in plans for module in plan.new]
    promoted = [module for plan in plans for module in plan.promoted]
    for plan in plans:
        plan.opened.take_back_open(by_guest=plan.request.policy.by_guest)
    for module in modules:
        log.info("unloading %s: %s", module.name, error)
    users: list[LinkedModule] = []
    try:
        # An interrupt may be why the load failed, and another may come: neither must stop half of this.
        with group.replica.waiter.shielded():
            users = remove_modules(program, group, modules, demoted=promoted)
            if users:
                log.info("%s stays: %s uses it", modules[-1].name, users[0].name)
                if not isinstance(error, DlError):
                    # For good: a thread that waits for them must not try again.
                    error = InitializationError(modules[-1].name, CONSTRUCTORS, error)
            else:
                _remove_failed_earlier(program, group)
    finally:
        for module in modules:
            module.construction.finished(error)


def remove_modules(
    program: Program,
    group: Group | None,
    modules: Sequence[LinkedModule],
    *,
    demoted: Sequence[LinkedModule] = (),
    resting: Sequence[Group] | None = None,
) -> list[LinkedModule]:
    """Remove modules from the program and from every group, unless others use them.

    Args:
        program: the program.
        group: the calling thread's, which has made the operation when this returns; None if that does so like all others.
        modules: what goes.
        demoted: modules of which one promotion to the global scope is taken back with them.
        resting: groups whose threads may be inside the modules' code, so that what these hold rests; None if none can be.

    Returns:
        The modules that use them, in which case they stay, but can be found no longer.
    """
    closed = {} if resting is None else _closed(program, modules)
    replica = None if group is None else group.replica
    made, operation = Change(program, group), None
    try:
        with made, program.rendezvous.instigate(replica):
            program.state.demote(demoted)
            # Another thread may have removed some of them since they were chosen.
            present = tuple(m for m in modules if found_in(program.state.modules, m.handle) is m)
            users = program.state.remove_unused(present)
            if not users:
                made.on_failure(partial(program.state.put_back, present))
            if present and not users:
                rest = None if resting is None else _plan_rest(program, made, present, closed)
                indices = None if rest is None else HoldIndices.after(program.state.resting, rest)
                operation = UnloadModules.of(present, indices)
                _commit(program, made, operation, rest)
    finally:
        if operation is not None and made.committed:
            _follow(program, group, operation, resting)
    return users


def _closed(program: Program, modules: Sequence[LinkedModule]) -> dict[int, Closed]:
    """Find what will stand at the table indices of modules, by their handles, and compile it; with no lock held."""
    closed = {module.handle: Closed.of(module) for module in modules}
    for each in closed.values():
        if each.signatures:
            each.code = _compiled(program, each.signatures)
    return {int(handle): each for handle, each in closed.items()}


def _compiled(program: Program, kinds: Signatures) -> CompiledModule | None:
    resting = program.state.resting
    known = resting.code(kinds)
    if known is None:
        try:
            known = program.compiler.compile(
                trap_functions_module(kinds, program.main.anchors), "closed library"
            )
        except DlError as error:
            log.warning("pointers into a closed library will find null: %s", error)
            return None
        resting.keep_code(kinds, known)
    return known


def _plan_rest(
    program: Program,
    made: Change,
    modules: tuple[LinkedModule, ...],
    closed: dict[int, Closed],
) -> Rest:
    """Plan what happens to the table indices of modules that are closed; under the link lock."""
    resting = program.state.resting
    rest = resting.plan(modules, closed)
    made.on_failure(partial(resting.give_up, rest))
    return rest


def _commit(program: Program, made: Change, operation: UnloadModules, rest: Rest | None) -> None:
    """Commit the operation that removes modules; under the link lock, and nothing can find them any longer.

    The calling thread's group makes it afterwards: there is nothing in it that could keep it from being committed.
    """
    loads, state, modules = program.state.loads, program.state, operation.modules
    replaces: dict[int, DlOperation | None] = {}
    for number in sorted({module.load_number for module in modules}):
        load = loads[number]
        replaces[number] = None if load.is_obsolete_after(operation) else _rest_of(program, load, modules)
    undone = min(replaces)
    if rest is not None and state.resting.entry:
        replaces[state.resting.entry] = None

    def done(made_as: int) -> None:
        for number, left in replaces.items():
            if isinstance(left, LoadModules):
                loads[number] = left
            else:
                loads.pop(number, None)
        if rest is not None:
            state.rest_indices(rest, made_as)
        if program.events.listening:
            for module in modules:
                program.events.record(EventKind.UNLOADED, module.name, module.handle)

    made.commit(operation, done, replaces=replaces, only_after=undone, leaves=operation.indices)


def _follow(
    program: Program, group: Group | None, operation: UnloadModules, resting: Sequence[Group] | None
) -> None:
    """Make an operation that was committed, in the calling thread's group, and give back what modules hold; without a lock."""
    # A group may be in the middle of loading them; its thread gives everything back then.
    give_back = partial(_give_back, program, operation.modules, rest=resting is not None)
    try:
        if group is not None:
            group.apply_committed(operation)
    finally:
        program.rendezvous.after_replays(
            partial(program.limbo.hold, resting or (), give_back, operation.subject)
        )


def _rest_of(program: Program, load: LoadModules, gone: tuple[LinkedModule, ...]) -> LoadModules:
    """Return what new groups make in the place of a load some of whose modules are gone."""
    rest = [module for module in load.modules if module not in gone]
    return load_operation(program, rest, load.host_functions, load.table_length)


def _give_back(program: Program, modules: tuple[LinkedModule, ...], *, rest: bool) -> None:
    """Give back seats, table indices and memory; from any thread, with or without the link lock."""
    for module in modules:
        program.state.seats.give_back(module.seat)
        if program.reserve is not None:
            program.reserve.close(module.handle)
        if module.elements is not None and not rest:
            program.state.table.free(module.elements)
        if module.block is not None and program.side_memory is not None:
            program.side_memory.free_later(module.block)


def _remove_failed_earlier(program: Program, group: Group) -> None:
    """Unload what failed before and stayed because of what is gone now."""
    failed = [m for m in program.state.side_modules() if m.construction.failure is not None]
    while failed:
        handles = {module.handle for module in failed}
        others = [m for m in program.state.modules.copy().values() if m.handle not in handles]
        used = [m for m in failed if any(other.uses({m.handle}) for other in others)]
        if not used:
            for module in failed:
                log.info("unloading %s: nothing uses it any longer", module.name)
            remove_modules(program, group, failed)
            return
        failed = [m for m in failed if m not in used]
