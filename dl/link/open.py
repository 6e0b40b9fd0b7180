"""Opening libraries: the life of a load, from a name to modules whose constructors have run.

A load is prepared and applied in the opening thread's group under the link lock, where everything that can fail does,
and is taken back if it does. Then it is committed at a barrier, which publishes it to every group. Only then, with no lock
held, run relocations and constructors, in the opening thread alone; so a constructor may itself open libraries or start
threads. A second opener of the same module waits until it is ready, the constructing thread does not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from dl.dlfcn import MAIN_HANDLE, DlFlags, ModuleHandle
from dl.errors import (
    DlError,
    InitializationError,
    LibraryNotFoundError,
    LinkerUsageError,
    NotDynamicError,
    SymbolNotFoundError,
    TrapError,
    UnresolvedCallError,
)
from dl.group import InstanceGroup
from dl.groups.libc_threads import INIT_FIRST, has_threads
from dl.link.plan import Load
from dl.modules.image import ModuleImage
from dl.modules.linked_module import LinkedModule, breadth_first
from dl.modules.locate import Locator, SearchPolicy
from dl.program.host_symbols import HostSymbols
from dl.program.main_module import MainKind
from dl.program.operations import DlOperation, UnloadModules
from dl.program.program import Program
from dl.program.side_memory import GuestAllocator
from dl.program.state import LinkerState
from dl.wasm.types import FuncType
from threads import ProtocolError, Rendezvous

log = logging.getLogger("dl.link")

_NOTHING = FuncType((), ())
_RELOCATIONS = "__wasm_apply_data_relocs"
_CONSTRUCTORS = "__wasm_call_ctors"
_INITIALIZE = "_initialize"
_LIBRARY_CONSTRUCTORS = (_CONSTRUCTORS, "__post_instantiate", _INITIALIZE)
"""The first of these runs: what wasm-ld exports; its name in the days of the legacy section; a reactor's."""
START = "_start"


class _CutOffError(Exception):
    """The constructors of a module were interrupted in another thread, so that it is loaded no more."""


class Loader:
    """Loads modules into a program.

    Args:
        program: memory and engine.
        state: the linker state; changed under the link lock.
        host: the host's symbols.
        locator: finds libraries.
        rendezvous: the link lock and the barrier.
        current_group: returns the calling thread's group.

    Attributes:
        checkpoint: called with the name of each step of a load as it is about to begin; what it raises fails the load
            there. For fault injection.
    """

    def __init__(
        self,
        program: Program,
        state: LinkerState,
        host: HostSymbols,
        locator: Locator,
        rendezvous: Rendezvous[DlOperation],
        current_group: Callable[[], InstanceGroup],
    ) -> None:
        self._program = program
        self._state = state
        self._host = host
        self._locator = locator
        self._rendezvous = rendezvous
        self._current_group = current_group
        locator.loaded = state.image
        self.checkpoint: Callable[[str], None] = lambda _step: None

    def load_main(self, group: InstanceGroup, image: ModuleImage, policy: SearchPolicy) -> None:
        """Load the main module and all it needs, and initialize them.

        Args:
            group: the main group.
            image: the main module.
            policy: which files may be opened for it.

        Raises:
            DlError: it cannot be linked or initialized.
        """
        plan = self._program.plan
        needed = image.wasm.dylink is not None and bool(image.wasm.dylink.needed)
        if needed and plan.no_libraries:
            raise NotDynamicError(image.name, f"needs libraries, but can take none: {plan.no_libraries}")
        load = self._new_load(DlFlags.LAZY | DlFlags.GLOBAL, lenient=True, policy=policy)
        with self._rendezvous.instigate(group.replica):
            alone = self._program.memory_comes_from_main
            root = load.find_main(image) if alone else load.find_tree(image, main=True)
            root.memory_base, root.table_base = plan.memory_base, plan.table_base
            if not plan.no_libraries:
                load.place_main_functions(root)
            load.place()
            side_memory = self._program.side_memory
            if isinstance(side_memory, GuestAllocator):
                self._state.linker_addresses["__heap_base"] = side_memory.heap_base
            self._link(group, load, root)
            new = load.new
            if alone and needed:
                load = self._new_load(DlFlags.LAZY | DlFlags.GLOBAL, lenient=True, policy=policy)
                load.find_needed(root)
                load.place()
                self._link(group, load, root)
                new = [*new, *load.new]
        self._initialize(group, new, root)

    def open(
        self,
        group: InstanceGroup,
        image: ModuleImage,
        flags: DlFlags,
        *,
        lenient: bool,
        policy: SearchPolicy,
    ) -> ModuleHandle:
        """Load a library and all it needs, or find it loaded.

        Args:
            group: the calling thread's.
            image: the library.
            flags: those of dlopen.
            lenient: whether functions that nothing defines become stubs whatever the flags say.
            policy: who asks, and which files may be opened for it.

        Raises:
            DlError: it cannot be loaded; the program is as before.
            LinkerUsageError: the calling thread is in the midst of a load.
        """
        while True:
            try:
                return self._open(group, image, flags, lenient=lenient, policy=policy)
            except _CutOffError:  # noqa: PERF203  it is what the loop is for
                # Another thread was loading the same, and was interrupted: nothing is wrong with the library.
                log.debug("%s: its load was cut off in another thread; loading it here", image.name)
            except ProtocolError as error:
                raise LinkerUsageError(
                    f"{image.name} cannot be opened in the midst of another load, by a start function or by the program's "
                    f"malloc, only by a constructor: {error}"
                ) from error

    def _open(
        self,
        group: InstanceGroup,
        image: ModuleImage,
        flags: DlFlags,
        *,
        lenient: bool,
        policy: SearchPolicy,
    ) -> ModuleHandle:
        load = self._new_load(flags, lenient=lenient, policy=policy)
        with self._rendezvous.instigate(group.replica):
            committed = self._rendezvous.committed
            if flags & DlFlags.NOLOAD and image.identity not in self._state.by_identity:
                raise LibraryNotFoundError(
                    image.name, [(image.name, "not loaded, and RTLD_NOLOAD was given")]
                )
            try:
                self.checkpoint("tree")
                root = load.find_tree(image)
                self.checkpoint("place")
                load.place()
                self._link(group, load, root)
            except BaseException as error:
                with group.replica.waiter.shielded():
                    if self._rendezvous.committed == committed:
                        group.forget(load.new)
                        load.undo.run()
                    else:  # Ctrl-C right behind the point of no return
                        load.publish()
                        self._remove(group, load.new, error)
                raise
        self._initialize(group, load.new, root)
        return root.handle

    def _new_load(self, flags: DlFlags, *, lenient: bool, policy: SearchPolicy) -> Load:
        self._state.side_memory = self._program.side_memory
        return Load(
            state=self._state,
            engine=self._program.engine,
            host=self._host,
            locator=self._locator,
            flags=flags,
            lenient=lenient,
            policy=policy,
            grow_memory_to=self._program.grow_memory_to,
            wait_slots=self._program.plan.wait_slots,
        )

    def _link(self, group: InstanceGroup, load: Load, root: LinkedModule) -> None:
        """Turn a placed tree into an operation, apply it in the instigating group, publish it, and commit it."""
        self.checkpoint("define")
        load.define()
        scope = load.enter_scopes(root)
        self.checkpoint("resolve")
        load.resolve(root, scope)
        if not load.new:
            load.publish()
            return
        self.checkpoint("generate")
        operation = load.generate()
        self.checkpoint("instantiate")
        group.apply_first(operation)
        self.checkpoint("commit")
        self._rendezvous.commit(group.replica, operation)
        # Only now: whoever finds a symbol may call it, and every group has it from here on.
        load.publish()
        for module in load.new:
            log.info("loaded %s as %d at %#x", module.name, module.handle, module.memory_base)

    # initialization

    def _initialize(
        self, group: InstanceGroup, modules: Sequence[LinkedModule], root: LinkedModule | None = None
    ) -> None:
        """Run relocations of all new modules, then their constructors, dependencies first.

        What other threads are constructing of the tree is waited for in between, as new modules may rely on it.
        """
        try:
            for module in modules:
                self.checkpoint("relocate")
                self._run(group, module, _RELOCATIONS)
            if root is not None:
                for module in breadth_first([root]):
                    self._wait_until_ready(group, module)
            for module in self._construction_order(modules):
                self.checkpoint("construct")
                self._construct(group, module)
        except BaseException as error:
            self._unload(group, modules, error)
            raise
        for module in modules:
            module.construction.finished()

    def _construction_order(self, modules: Sequence[LinkedModule]) -> list[LinkedModule]:
        """Return the modules dependencies first: the main module after what it needs, though it is instantiated before.

        Unless side modules live from its allocator, which begins to work with the main module's initialization.
        """
        main_first = isinstance(self._program.side_memory, GuestAllocator)
        return sorted(modules, key=lambda m: m.handle == MAIN_HANDLE and not main_first)

    def _construct(self, group: InstanceGroup, module: LinkedModule) -> None:
        if module.handle != MAIN_HANDLE:
            constructors = (name for name in _LIBRARY_CONSTRUCTORS if name in module.wasm.exports)
            self._run(group, module, next(constructors, _CONSTRUCTORS))
            return
        # A command's _start runs its constructors, a reactor's _initialize does; an Emscripten main has neither.
        if START not in module.wasm.exports:
            if _INITIALIZE in module.wasm.exports:
                self._run(group, module, _INITIALIZE)
            elif self._program.plan.kind is MainKind.PIE:
                self._run(group, module, _CONSTRUCTORS)
        elif self._program.shares_memory and has_threads(module):
            # A program that is used without being run: its first thread must not be a nobody to its locks.
            self._run(group, module, INIT_FIRST)
        self._start_allocator(module)

    def _start_allocator(self, main: LinkedModule) -> None:
        side_memory = self._program.side_memory
        if not isinstance(side_memory, GuestAllocator):
            return
        pointer, nothing = FuncType(("i32",), ("i32",)), FuncType(("i32",), ())
        for name, kind in (("malloc", pointer), ("free", nothing)):
            export = main.wasm.exports.get(name)
            if export is None or export.type != kind:
                raise LinkerUsageError(
                    f"side modules' data must come from {main.name}'s allocator, but it exports no {name} {kind}"
                )
        side_memory.start(
            lambda size: int(self._current_group().call_export(main, "malloc", pointer, size)),
            lambda address: self._current_group().call_export(main, "free", nothing, address),
        )

    def _run(self, group: InstanceGroup, module: LinkedModule, function: str) -> None:
        export = module.wasm.exports.get(function)
        if export is None:
            return
        if export.type != _NOTHING:
            reason = f"exported as {export.type}, not as a function {_NOTHING}"
            raise InitializationError(module.name, function, SymbolNotFoundError(function, (), reason))
        log.debug("%s: %s", module.name, function)
        try:
            group.call_export(module, function, _NOTHING)
        except (TrapError, SymbolNotFoundError, UnresolvedCallError) as error:
            raise InitializationError(module.name, function, error) from error

    def _unload(self, group: InstanceGroup, modules: Sequence[LinkedModule], error: BaseException) -> None:
        """Take back a load whose constructors failed: every group has its modules by now, and forgets them.

        Unless somebody else is bound to one of them already, such as a library that a constructor opened: then they stay,
        since their memory and table elements are in use, but can be found no more; opening them again loads them anew.
        """
        if not modules:
            return
        for module in modules:
            log.info("unloading %s: %s", module.name, error)
        try:
            # An interrupt may be why the load failed, and another may come: neither must stop half of this.
            with group.replica.waiter.shielded(), self._rendezvous.instigate(group.replica):
                users = [m for m in self._state.modules.values() if m not in modules and m.uses(modules)]
                if users:
                    log.info("%s stays: %s uses it", modules[-1].name, users[0].name)
                    self._state.forget_names(modules)
                    if not isinstance(error, DlError):
                        # For good: who waits for them must not try again.
                        error = InitializationError(modules[-1].name, _CONSTRUCTORS, error)
                else:
                    self._remove(group, modules, error)
                    self._remove_unused(group)
        finally:
            for module in modules:
                module.construction.finished(error)

    def _remove_unused(self, group: InstanceGroup) -> None:
        """Unload what failed before and stayed because of what is gone now; under the link lock."""
        failed = [m for m in self._state.modules.values() if m.construction.failure is not None]
        while failed:
            used = [
                m
                for m in failed
                if any(other not in failed and other.uses([m]) for other in self._state.modules.values())
            ]
            if not used:
                for module in failed:
                    log.info("unloading %s: nobody uses it any more", module.name)
                self._remove(group, failed)
                return
            failed = [m for m in failed if m not in used]

    def _remove(
        self, group: InstanceGroup, modules: Sequence[LinkedModule], error: BaseException | None = None
    ) -> None:
        """Have every group forget modules, and give back what they hold; under the link lock."""
        runs = tuple((m.elements.address, m.elements.size) for m in modules if m.elements is not None)
        operation = UnloadModules(tuple(modules), runs)
        self._state.remove(modules)
        group.apply_first(operation)
        self._rendezvous.commit(group.replica, operation)
        for module in modules:
            # A follower may be instantiating it this moment; afterwards none does.
            module.residence.end()
            if module.elements is not None:
                self._state.table.free(module.elements)
            if module.block is not None and self._program.side_memory is not None:
                self._program.side_memory.free(module.block)
            if error is not None:
                module.construction.finished(error)

    def _wait_until_ready(self, group: InstanceGroup, module: LinkedModule) -> None:
        """Wait for another thread's constructors; the thread that runs them does not wait for itself.

        Raises:
            InitializationError: they failed.
            _CutOffError: they were interrupted.
        """
        construction = module.construction
        if construction.thread is not None:
            construction.wait(group.linker.threads.waits, group.replica.waiter, module.name)
        if construction.failure is None:
            return
        if isinstance(construction.failure, DlError):
            raise InitializationError(module.name, _CONSTRUCTORS, construction.failure)
        raise _CutOffError
