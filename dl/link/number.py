"""The second phase of a load: its new modules become modules of the program, with handles."""

from __future__ import annotations

from functools import partial

from dl.dlfcn import MAIN_HANDLE, DlFlags, has_flag
from dl.link.find import FoundModule, FoundTree
from dl.link.plan import LinkPlan
from dl.logs import logger
from dl.modules.construction import Construction
from dl.modules.linked_module import LinkedModule, breadth_first
from dl.program.seats import MAIN_SEAT

log = logger("dl.link")


class TreeOutdatedError(Exception):
    """A module that the tree took for loaded has gone since: the tree must be found again."""


class ModuleArrivingError(Exception):
    """Another thread is loading or unloading one of the modules: that must end first.

    Attributes:
        module: that module.
    """

    def __init__(self, module: LinkedModule) -> None:
        super().__init__(module)
        self.module = module


def number_modules(plan: LinkPlan, tree: FoundTree) -> None:
    """Make a module of the program of each new one, dependencies first; under the link lock.

    Raises:
        ResourceLimitError: there are too many modules.
        TreeOutdatedError: the tree must be found again.
        ModuleArrivingError: the load of another thread must end first.
    """
    state = plan.program.state
    others = {module.image.identity: module for module in state.arriving.values()} | state.ending
    others = {identity: module for identity, module in others.items() if module not in plan.ignored}
    linked: dict[str, LinkedModule] = {}

    def known(found: FoundModule) -> LinkedModule | None:
        identity = found.image.identity
        module = linked.get(identity) or state.loaded(identity)
        if module is None and identity in others:
            raise ModuleArrivingError(others[identity])
        if module is None and found.loaded is not None:
            raise TreeOutdatedError
        if module is not None:
            linked[identity] = module
        return module

    # Looked at before anything is taken, so that a load that has to wait holds nothing that others wait for.
    fresh = [found for found in tree.new if known(found) is None]
    taken = set(fresh)
    for found in (tree.root, *tree.new):
        for needed in (found, *found.needed):
            if needed not in taken:
                known(needed)

    first = end = state.next_handle
    plan.change.on_failure(lambda: state.return_handles(first, end))
    for found in fresh:
        handle = MAIN_HANDLE if found.main else state.take_handle(found.image.name)
        end = state.next_handle
        seat = MAIN_SEAT if found.main else state.seats.take(found.image.digest)
        if not found.main:
            plan.change.on_failure(partial(state.seats.give_back, seat))
        module = LinkedModule(found.image, Construction(state.constructions), handle, seat)
        linked[found.image.identity] = module
        state.arriving[handle] = module
        plan.new.append(module)
        # A thread that waits for this load looks again when it is undone.
        plan.change.give_back(partial(module.construction.finished, TreeOutdatedError()))
        plan.change.on_failure(lambda handle=handle: state.arriving.pop(handle, None))  # type: ignore[misc]
        log.debug("%s: handle %d", module.name, handle)
    for found in fresh:
        module = linked[found.image.identity]
        module.code, module.copy = found.code, found.copy
        module.block, found.block = found.block, None
        block, side_memory = module.block, plan.program.side_memory
        if block is not None and side_memory is not None:
            module.memory_base = block.address
            plan.change.give_back(partial(side_memory.free, block))
        module.needed = [linked[needed.image.identity] for needed in found.needed]
    plan.new.sort(key=lambda module: module.handle)
    plan.root = linked[tree.root.image.identity]
    if tree.root.main:
        plan.root.needed = [linked[needed.image.identity] for needed in tree.root.needed]


def enter_scopes(plan: LinkPlan) -> None:
    """Decide which modules the new ones see, and which enter the global scope with this load."""
    flags = plan.request.flags
    tree = breadth_first([plan.opened])
    is_global, is_deep = has_flag(flags, DlFlags.GLOBAL), has_flag(flags, DlFlags.DEEPBIND)
    if is_global:
        plan.promoted = tree
    scope = tuple(tree)
    for module in plan.new:
        module.loaded_with = plan.opened.handle
        module.deep_bind = is_deep
        if is_deep or not is_global:
            module.scope = scope
