"""Opening a library: all of a `dlopen` on one page.

Reading, parsing and compiling come first, with no lock held. The link lock is held twice, for bookkeeping only: to plan the
load and to commit it. Guest code that belongs to a load (start functions, relocations, constructors, the program's `malloc`)
runs with no lock held, so that nothing a library does can hold up another thread's load.

Between the two, the plan's modules are *arriving*: they have their handles, memory and table indices, and nobody finds them. A
thread that opens one of them meanwhile waits until that load has ended, and looks again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from dl.dlfcn import MAIN_HANDLE, DlFlags, ModuleHandle, has_flag
from dl.errors import LibraryNotFoundError, LinkerUsageError, NotDynamicError
from dl.groups.entry import Group
from dl.groups.registry import Groups
from dl.link.compile import compile_modules
from dl.link.find import (
    FoundModule,
    FoundTree,
    find_main,
    find_tree,
    release_memory,
    reserve_memory,
)
from dl.link.generate import generate_glue, grow_memory
from dl.link.initialize import LoadCutOffError, initialize
from dl.link.named import names_a_library
from dl.link.number import ModuleArrivingError, TreeOutdatedError, enter_scopes, number_modules
from dl.link.perform import Change
from dl.link.place import define_symbols, place_modules
from dl.link.plan import LinkPlan, LoadRequest
from dl.link.resolve import resolve_imports
from dl.link.stock import is_stocked, stock_up
from dl.link.unload import unload_failed
from dl.logs import logger
from dl.modules.image import ModuleImage
from dl.modules.linked_module import LinkedModule
from dl.modules.locate import Requester, SearchPolicy
from dl.program.events import EventKind
from dl.program.operations import LoadModules
from dl.records import replace
from threads import recording, uninterrupted, unwound_whole

log = logger("dl.link")


def open_library(groups: Groups, group: Group, image: ModuleImage, request: LoadRequest) -> ModuleHandle:
    """Load a library and all it needs, or find it loaded.

    Args:
        groups: the program's groups.
        group: the calling thread's.
        image: the library.
        request: what is asked for.

    Raises:
        DlError: it cannot be loaded; the program is as before.
        LinkerUsageError: the calling thread is in the midst of a load.
    """
    program = groups.program
    ignored: list[LinkedModule] = []
    while True:
        program.limbo.drain()
        if group.applying or group.replica.replaying:
            raise LinkerUsageError(
                f"{image.name} cannot be opened in the midst of another load, by a start function or by the program's "
                "malloc, only by a constructor"
            )
        try:
            if has_flag(request.flags, DlFlags.NOLOAD):
                return _find_loaded(groups, group, image, request)
            program.checkpoint("tree", None)
            with recording.span("load", "find", image.name):
                tree = find_tree(program, image, request)
            return _load(groups, group, [tree], request, ignored)
        except ModuleArrivingError as other:
            if not other.module.construction.wait(program.waits, group.replica.waiter, other.module.name):
                # A destructor of it, which this thread runs or is waited for by, opens it again: another instance of it.
                ignored.append(other.module)
        except TreeOutdatedError:
            log.debug("%s: what it needs has changed meanwhile; looking again", image.name)
        except LoadCutOffError:
            # Another thread was loading the same, and was interrupted: nothing is wrong with the library.
            log.debug("%s: its load was cut off in another thread; loading it here", image.name)


def _find_loaded(groups: Groups, group: Group, image: ModuleImage, request: LoadRequest) -> ModuleHandle:
    """Find a library for RTLD_NOLOAD: it may be promoted to the global scope, but is never loaded.

    Raises:
        LibraryNotFoundError: it is not loaded.
    """
    loaded = groups.program.state.loaded(image.identity)
    if loaded is None:
        raise LibraryNotFoundError(image.name, [(image.name, "not loaded, and RTLD_NOLOAD was given")])
    tree = FoundTree(FoundModule(loaded.image, loaded=loaded))
    return _load(groups, group, [tree], request)


def load_main(groups: Groups, group: Group, image: ModuleImage) -> None:
    """Load the main module and all it needs, and initialize them.

    Raises:
        DlError: it cannot be linked or initialized.
    """
    with recording.span("load", "load", image.name):
        _load_main(groups, group, image)


def _load_main(groups: Groups, group: Group, image: ModuleImage) -> None:
    program = groups.program
    info = image.wasm.dylink
    if program.main.no_libraries and (program.options.preload or (info is not None and info.needed)):
        raise NotDynamicError(
            image.name,
            f"needs libraries, or is to get some by preload, but can take none: {program.main.no_libraries}",
        )
    policy = SearchPolicy.of_host((), program.options.paths)
    request = LoadRequest(
        DlFlags.LAZY | DlFlags.GLOBAL,
        lenient=True,
        policy=policy,
        load_needed=program.options.load_needed,
    )
    with recording.span("load", "find", image.name):
        tree = find_main(program, image, request)
    if program.main.makes_memory or len(tree.new) == 1:
        _load(groups, group, [tree], request)
        return
    # Libraries have no memory before the main module, which brings it, is instantiated: two loads, one initialization.
    alone = FoundModule(tree.root.image, main=True)
    _load(groups, group, [FoundTree(alone, [alone]), FoundTree(tree.root, tree.new[1:])], request)


def preload_libraries(groups: Groups, group: Group) -> None:
    """Load the libraries that come first in a program without a main module; they stay, in the global scope.

    With a main module they are loaded with it, by `load_main`.

    Raises:
        DlError: one cannot be loaded.
    """
    program = groups.program
    policy = SearchPolicy.of_host((), program.options.paths)
    for name in program.options.preload:
        image = program.locator.find(name, Requester(), policy, program.state.image_by_base_name)
        program.check_dynamic(image.name)
        request = LoadRequest(DlFlags.LAZY | DlFlags.GLOBAL | DlFlags.NODELETE, policy=policy)
        open_library(groups, group, image, request)


def _load(
    groups: Groups,
    group: Group,
    trees: Sequence[FoundTree],
    request: LoadRequest,
    ignored: Sequence[LinkedModule] = (),
) -> ModuleHandle:
    """Make trees part of the program and initialize them; return the handle of the last tree's root."""
    with unwound_whole():
        return _load_or_undo(groups, group, trees, request, ignored)


def _load_or_undo(
    groups: Groups,
    group: Group,
    trees: Sequence[FoundTree],
    request: LoadRequest,
    ignored: Sequence[LinkedModule],
) -> ModuleHandle:
    plans: list[LinkPlan] = []
    try:
        for tree in trees:
            asked = request if tree is trees[-1] else replace(request, continued=True)
            plan = LinkPlan(groups.program, Change(groups.program, group), asked, ignored)
            plans.append(plan)
            _link(group, tree, plan)
            groups.program.events.deliver()
        new = [module for plan in plans for module in plan.new]
        if plan.opened.handle == MAIN_HANDLE:
            for module in new:
                module.stays = True
        initialize(groups, group, new, plan.opened)
    except BaseException as error:
        published = [plan for plan in plans if plan.published]
        if published:
            unload_failed(groups.program, group, published, error)
        raise
    groups.program.events.deliver()
    if groups.program.compiler.plan is not None:
        groups.program.compiler.plan.save()
    return plan.opened.handle


def _link(group: Group, tree: FoundTree, plan: LinkPlan) -> None:
    """Make a tree part of the program, up to where its constructors may run."""
    program, change = plan.program, plan.change
    checkpoint, lock = program.checkpoint, program.rendezvous.instigate
    try:
        if program.names is not None:
            for found in tree.new:
                program.names.prepare(
                    found.image.wasm,
                    found.image.name,
                    main=found.main,
                    is_library=partial(names_a_library, program, found.image),
                )
        compile_modules(program, tree)
        with recording.span("load", "reserve memory"):
            reserve_memory(program, tree)
        with change:
            # Ctrl-C waits for the end of the planning: between taking something and noting it must come nothing.
            # It commits nothing, so this group need not have made what others have committed.
            with lock(group.replica, current=False), uninterrupted():
                with recording.span("load", "number", tree.root.image.name):
                    number_modules(plan, tree)
                # No module joins the load from here on.
                checkpoint("place", None)
                with recording.span("load", "place", plan.opened.name):
                    place_modules(plan)
                # Addresses are final: a symbol's address is a look-up from here on.
                checkpoint("define", None)
                define_symbols(plan)
                enter_scopes(plan)
                checkpoint("resolve", None)
                with recording.span("load", "resolve", plan.opened.name):
                    resolve_imports(plan)
                if not plan.new:
                    _publish(plan, None, 0)
                    return
            # The plan is complete, and belongs to this thread alone.
            checkpoint("generate", None)
            grow_memory(plan)
            with recording.span("load", "generate", plan.opened.name):
                operation = generate_glue(plan)
            checkpoint("instantiate", None)
            stock_up(plan, operation)
            with recording.span("load", "instantiate", plan.opened.name, modules=[m.name for m in plan.new]):
                change.apply(operation, lambda own: own.take_back(operation))
            # Everything that can fail has happened, unless a thread has come for which there are no blocks yet.
            while not change.committed:
                with lock(group.replica):
                    if is_stocked(program):
                        change.commit(operation, lambda number: _publish(plan, operation, number))
                        continue
                stock_up(plan, operation)
            # The point of no return: every group has the modules before its next guest instruction.
    finally:
        release_memory(program, tree)
    for module in plan.new:
        log.info("loaded %s as %d at %#x", module.name, module.handle, module.memory_base)


def _publish(plan: LinkPlan, operation: LoadModules | None, number: int) -> None:
    """Enter the outcome into the linker state. Cannot fail; the second call does nothing."""
    if plan.published:
        return
    if operation is not None:
        plan.program.state.loads[number] = operation
        for module in plan.new:
            module.load_number = number
    plan.program.state.publish(plan.new, plan.promoted)
    plan.opened.opens += 1
    plan.opened.guest_opens += plan.request.policy.by_guest
    if has_flag(plan.request.flags, DlFlags.NODELETE):
        plan.opened.stays = True
    plan.program.state.note_open(plan.opened)
    for function in plan.host_functions:
        plan.program.state.placing.pop(function.address, None)
    plan.published = True
    if plan.program.events.listening:
        for module in plan.new:
            plan.program.events.record(EventKind.LOADED, module.name, module.handle)
