"""dlclose: when a library leaves the program, and in which order its end comes.

Counts are those of ELF. A library stays while it is open (each dlopen counts), and while a library that stays needs it or is
bound to a symbol of it; for good, if it was opened with RTLD_NODELETE, or is the main module or needed by it from the start.
What no such path reaches goes together, cycles included:

1. Nobody can find it any longer: by name, by path or in the global scope. A thread that opens it again waits, and loads it
   anew.
2. Its destructors run, those of users before those of what they use, else in reverse order of construction, in the closing
   thread, with no lock held. They may open and close libraries. One that fails does not save its library, nor does Ctrl-C
   between two of them, which leaves the rest out.
3. One operation removes it from every group: table indices are cleared, instances forgotten.
4. Its memory and its table indices rest until no thread can be inside its code any longer (`dl.program.limbo`), and the
   indices longer still, so that a function pointer that somebody kept reaches no other function: its call traps, and names
   the library (`dl.program.resting`).
"""

from __future__ import annotations

from collections.abc import Callable

from dl.dlfcn import MAIN_HANDLE, ModuleHandle
from dl.errors import InvalidHandleError, LinkerUsageError, StalePointerError, TrapError
from dl.groups.entry import Group
from dl.groups.registry import Groups
from dl.link.finalizers import Finalizers
from dl.link.order import users_first
from dl.link.unload import remove_modules
from dl.logs import logger
from dl.modules.linked_module import LinkedModule
from dl.program.events import EventKind
from dl.program.state import LinkerState
from threads import found_in, recording, uninterrupted, unwound_whole

log = logger("dl.link")


def close_library(
    groups: Groups, finalizers: Finalizers, group: Group, handle: int, *, by_guest: bool = False
) -> None:
    """Take back one dlopen of a library; the last one, if nothing else uses it, unloads it and what only it needed.

    Args:
        groups: the program's groups.
        finalizers: what libraries have registered to run at their end.
        group: the calling thread's.
        handle: what dlopen returned. The main module's is accepted, and nothing happens.
        by_guest: whether the guest asks, which can take back its own opens only.

    Raises:
        InvalidHandleError: no module has this handle, it was closed, or is not open.
        FinalizationError: a destructor failed; the library is unloaded nevertheless.
        LinkerUsageError: the calling thread is in the midst of a load.
    """
    program = groups.program
    if group.applying or group.replica.replaying:
        raise LinkerUsageError("no library can be closed in the midst of a load, by a start function")
    if handle == MAIN_HANDLE:
        return

    def take_back() -> None:
        _open_module(program.state, handle, by_guest=by_guest).take_back_open(by_guest=by_guest)

    failures: list[BaseException] = []
    with unwound_whole(), recording.span("load", "dlclose", str(int(handle))):
        while _unload_unreachable(groups, finalizers, group, take_back, failures):
            # What they kept while their destructors ran may have been closed meanwhile, by them or by another thread.
            take_back = _nothing
    program.events.deliver()
    program.limbo.drain()
    if failures:
        raise failures[0]


def _nothing() -> None:
    pass


def _unload_unreachable(
    groups: Groups,
    finalizers: Finalizers,
    group: Group,
    take_back: Callable[[], None],
    failures: list[BaseException],
) -> bool:
    """Take an open back, and unload what nothing keeps any longer; return whether that was anything.

    Args:
        groups: the program's groups.
        finalizers: what libraries have registered to run at their end.
        group: the calling thread's.
        take_back: takes the open back, under the link lock.
        failures: gets what destructors raise.
    """
    program = groups.program
    gone: list[LinkedModule] = []
    try:
        with program.rendezvous.instigate(group.replica, current=False), uninterrupted():
            take_back()
            gone += program.state.take_unreachable()
            if program.events.listening:
                for module in gone:
                    program.events.record(EventKind.CLOSED, module.name, module.handle)
        if not gone:
            return False
        program.events.deliver()
        for module in users_first(gone, program.state.modules):
            log.debug("%s: its destructors", module.name)
            with recording.span("load", "finalize", module.name):
                failures += finalizers.run(group, module)
        with uninterrupted():
            _remove(groups, group, gone)
    except BaseException:
        # Nobody else would: they can be found no longer, and threads wait to load them anew.
        _remove(groups, group, gone)
        program.events.deliver()
        raise
    return True


def closed_call(state: LinkerState, number: int) -> None:
    """End a call through a function pointer into a closed library; the host side of `dl.glue.trap_functions`.

    Raises:
        StalePointerError: always, while its table index rests.
    """
    library = state.resting.library(number)
    if library is None:
        raise TrapError("call of a function pointer into a library that was closed")
    raise StalePointerError(library.name, int(library.handle))


def _remove(groups: Groups, group: Group, gone: list[LinkedModule]) -> None:
    """Remove the modules of a list from the program, and from the list."""
    if not gone:
        return
    try:
        with group.replica.waiter.shielded():
            try:
                remove_modules(groups.program, group, gone, resting=groups.all())
            except BaseException:
                # Their destructors have run: there is no way back. This group makes the operation like all others, then, or
                # ends alone.
                remove_modules(groups.program, None, gone, resting=groups.all())
                raise
    finally:
        while gone:
            module = gone.pop()
            log.info("unloaded %s, which was %d", module.name, module.handle)
            groups.program.state.closed(module)


def _open_module(state: LinkerState, handle: int, *, by_guest: bool) -> LinkedModule:
    module = found_in(state.modules, ModuleHandle(handle))
    if module is None or module.closing:
        raise InvalidHandleError(handle, "it was closed" if 0 < handle < state.next_handle else "")
    if by_guest and module.opens and not module.guest_opens:
        raise InvalidHandleError(handle, f"{module.name} is open, but the program itself has not opened it")
    if not module.opens:
        raise InvalidHandleError(handle, f"{module.name} is not open: other modules keep it loaded")
    return module
