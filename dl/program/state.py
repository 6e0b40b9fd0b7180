"""The linker state: what linking changes, and all instance groups of a program share."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from dl.dlfcn import INVALID_HANDLE, MAIN_HANDLE, ModuleHandle
from dl.errors import ResourceLimitError
from dl.limits import Limits
from dl.modules.construction import Construction, Constructions
from dl.modules.image import ModuleImage
from dl.modules.linked_module import LinkedModule, StubTarget, breadth_first
from dl.modules.symbols import FirstDefinitions, Symbol
from dl.program.operations import LoadModules
from dl.program.resting import Rest, RestingIndices
from dl.program.seats import Seats
from dl.program.table import TableSpace
from dl.records import dataclass, field
from dl.wasm.types import FuncType, GlobalType
from threads import Count, found_in, new_count


@dataclass(eq=False)
class LazyAddress:
    """A table index that stands for a function which nothing defined when its address was taken.

    Attributes:
        name: the function.
        type: its signature.
        takers: the modules that hold the index, and the position of the import that means it; some may be gone.
    """

    name: str
    type: FuncType
    takers: list[tuple[LinkedModule, int]] = field(default_factory=list)


@dataclass
class LinkerState:
    """Shared by all groups; guarded by the link lock, which the thread that changes it holds.

    Readers that only look up what a committed load has published (`modules`, `symbols`) need no lock: entries are added
    whole and never changed, and dictionaries are copied before they are walked.

    `stub_lock` guards the stub targets of every module and what its code has looked up, and makes binding either and removing a
    module exclude each other: a stub is bound to a module, and `uses` sees it, or it does not find the module any longer. A
    leaf, taken with the link lock held or without.

    Attributes:
        limits: the program's.
        modules: by handle, the main module first.
        by_identity: handle of the module that a resolved path or a name of bytes stands for.
        by_base_name: the libraries that a base name may stand for, in the order they were loaded; the main module is none.
        next_handle: the next handle.
        seats: the numbers by which generated code names modules.
        resting: the table indices of closed libraries.
        global_scope: modules whose symbols all see, in search order.
        global_symbols: the first definition of each name in the global scope.
        copies: how many loaded modules there are of each content, by digest, and of each copy of it.
        table: table indices.
        linker_addresses: addresses the linker defines itself, by symbol name, bytes.
        host_addresses: table indices of host functions whose address was taken.
        placing: table indices that a load under way places a function at, with a module of that load.
        variables: the module that has the one global of a number of the user's, by namespace, name and type.
        lazy_addresses: table indices that stand for functions which nothing defined, and what for.
        loads: the operation that loads modules, by its number in the log; without those whose modules are gone.
        arriving: modules of the loads under way: planned, and not yet committed.
        ending: modules whose destructors run, by identity: a thread that opens one of them waits.
        opens: how many modules were opened by name.
        loaded_ever: how many modules were entered; never less than before.
        constructions: which thread constructs which module.
        changes: how often what a look-up finds may have become another; a look-up's answer stands while it is the same. Grows
            after what it counts.
    """

    table: TableSpace
    limits: Limits = field(default_factory=Limits)
    modules: dict[ModuleHandle, LinkedModule] = field(default_factory=dict)
    by_identity: dict[str, ModuleHandle] = field(default_factory=dict)
    by_base_name: dict[str, tuple[LinkedModule, ...]] = field(default_factory=dict)
    next_handle: int = MAIN_HANDLE + 1
    seats: Seats = field(default_factory=Seats)
    resting: RestingIndices = field(default_factory=RestingIndices)
    global_scope: list[LinkedModule] = field(default_factory=list)
    global_symbols: FirstDefinitions = field(default_factory=FirstDefinitions)
    copies: dict[bytes, Counter[int]] = field(default_factory=dict)
    linker_addresses: dict[str, int] = field(default_factory=dict)
    host_addresses: dict[tuple[str, str, FuncType], int] = field(default_factory=dict)
    placing: dict[int, LinkedModule] = field(default_factory=dict)
    variables: dict[tuple[str, str, GlobalType], LinkedModule] = field(default_factory=dict)
    lazy_addresses: dict[int, LazyAddress] = field(default_factory=dict)
    loads: dict[int, LoadModules] = field(default_factory=dict)
    arriving: dict[ModuleHandle, LinkedModule] = field(default_factory=dict)
    _constructed: Iterator[int] = field(default_factory=lambda: itertools.count(1), repr=False)
    ending: dict[str, LinkedModule] = field(default_factory=dict)
    opens: int = 0
    loaded_ever: int = 0
    constructions: Constructions = field(default_factory=Constructions)
    changes: Count = field(default_factory=new_count)
    stub_lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def take_handle(self, module: str) -> ModuleHandle:
        """Return the next handle.

        Args:
            module: who gets it, for messages.

        Raises:
            ResourceLimitError: there are `Limits.libraries` modules, or all numbers have been given.
        """
        if self.next_handle >= INVALID_HANDLE:
            raise ResourceLimitError(module, "every module handle has been given; they are never used again")
        present = len(self.modules) + len(self.arriving)
        if present >= self.limits.libraries:
            raise self.limits.refusal("libraries", module, f"{present} modules are loaded already")
        handle = ModuleHandle(self.next_handle)
        self.next_handle += 1
        return handle

    def return_handles(self, first: int, end: int) -> None:
        """Take back the handles of a failed load, unless others were given since."""
        if self.next_handle == end:
            self.next_handle = first

    def side_modules(self) -> list[LinkedModule]:
        """Return the loaded modules but the main module."""
        return [module for handle, module in self.modules.copy().items() if handle != MAIN_HANDLE]

    def module(self, handle: int) -> LinkedModule | None:
        """Return a module by its handle, also one that is being loaded. From any thread; as to the order, see `present`."""
        return found_in(self.arriving, ModuleHandle(handle)) or found_in(self.modules, ModuleHandle(handle))

    def present(self) -> list[LinkedModule]:
        """Return what is being loaded, and what is loaded, being unloaded included. From any thread."""
        # `publish` enters a module before it takes it from those that arrive. Whoever takes no lock reads in the other order:
        # a module that is published in between would be in neither.
        return list((self.arriving.copy() | self.modules.copy()).values())

    def is_side_module(self, handle: int) -> bool:
        """Whether a handle is that of a loaded side module."""
        return handle != MAIN_HANDLE and ModuleHandle(handle) in self.modules

    def loaded(self, identity: str) -> LinkedModule | None:
        """Return the loaded module that a path or a name stands for."""
        handle = found_in(self.by_identity, identity)
        return None if handle is None else self.modules.get(handle)

    def image(self, identity: str) -> ModuleImage | None:
        """Return the image of the loaded module that a path or a name stands for."""
        module = self.loaded(identity)
        return None if module is None else module.image

    def image_by_base_name(self, name: str) -> ModuleImage | None:
        """Return the image of the library that a bare name stands for: of several, the one that was loaded first."""
        modules = self.by_base_name.get(name)
        return modules[0].image if modules else None

    def base_names(self) -> list[tuple[str, str]]:
        """Return the name and the base name of every module."""
        return [(module.name, module.image.base_name) for module in self.modules.copy().values()]

    def publish(self, modules: Iterable[LinkedModule], promoted: Iterable[LinkedModule]) -> None:
        """Enter committed modules, and put modules into the global scope; each dlopen that does so counts."""
        for module in modules:
            self.modules[module.handle] = module
            self.loaded_ever += 1
            self._add_copy(module)
            self.by_identity[module.image.identity] = module.handle
            if module.handle != MAIN_HANDLE:
                base_name = module.image.base_name
                # A new tuple, since readers take no lock.
                self.by_base_name[base_name] = (*found_in(self.by_base_name, base_name, ()), module)
            self.arriving.pop(module.handle, None)
        promoted = list(promoted)
        added = self.not_global(promoted)
        for module in added:
            self.global_symbols.append(module.symbols)
        for module in promoted:
            module.global_opens += 1
        # In place: readers that walk the list without a lock may find what is added meanwhile.
        self.global_scope += added
        self.changes.value += 1

    def note_open(self, root: LinkedModule) -> None:
        """Note that a published module was opened by name, so that its tree is one by itself; the first time counts."""
        if not root.first_open:
            self.opens += 1
            root.first_open = self.opens

    def trees_with(self, module: LinkedModule) -> Iterator[LinkedModule]:
        """Yield the modules of every tree that was opened and contains a module, in the order of the opens.

        Nothing for the main module and what it needs: they see the global scope only, as in ELF.

        Not kept with the module, as ELF does: few stubs ask, and nothing is left behind by loads that are taken back.
        """
        main = self.modules.get(MAIN_HANDLE)
        if main is not None and module in breadth_first([main]):
            return
        roots = [root for root in self.modules.copy().values() if root.first_open]
        for root in sorted(roots, key=lambda root: root.first_open):
            if self.loaded(root.image.identity) is root:
                tree = breadth_first([root])
                if module in tree:
                    yield from tree

    def not_global(self, modules: Iterable[LinkedModule]) -> list[LinkedModule]:
        """Return those of some modules that are not in the global scope."""
        return [module for module in modules if not module.global_opens]

    def copies_of(self, digest: bytes) -> set[int]:
        """Return which copies of a content the loaded modules are. From any thread."""
        return set(found_in(self.copies, digest, ()))

    def bind_stub(
        self, module: LinkedModule, position: int, find: Callable[[], StubTarget | None]
    ) -> StubTarget | None:
        """Return what a stub of a module is bound to, binding it if it is not bound yet. From any thread.

        Args:
            module: the module whose import the stub is.
            position: the import's position.
            find: looks the import up; called under `stub_lock`, so it must not wait.
        """
        with self.stub_lock:
            known = module.stub_targets.get(position)
            if known is None:
                known = find()
                if known is not None:
                    module.stub_targets[position] = known
            return known

    def keep_looked_up(self, module: LinkedModule, find: Callable[[], Symbol]) -> Symbol:
        """Return a symbol that a module's own code asks for; its library stays as long as the module does.

        Args:
            module: whose code asks.
            find: looks the symbol up; called under `stub_lock`, so it must not wait.
        """
        with self.stub_lock:
            symbol = find()
            if symbol.module != module.handle and not module.closing:
                module.looked_up.setdefault(symbol.module, symbol.name)
            return symbol

    def take_unreachable(self) -> list[LinkedModule]:
        """Mark the modules that nothing keeps any longer as closing, and make them unfindable; return them.

        Under the link lock. A module is kept by being open, by RTLD_NODELETE and its like, by its construction or destruction,
        by a load under way, and by any module that is kept and needs it or is bound to it.
        """
        with self.stub_lock:
            kept: set[ModuleHandle] = set()
            pending = [
                m
                for m in self.modules.values()
                if m.opens or m.stays or m.closing or m.construction.thread is not None
            ]
            pending += self.arriving.values()
            while pending:
                module = pending.pop()
                if module.handle in kept:
                    continue
                kept.add(module.handle)
                used = {m.handle for m in module.needed} | module.bound_to()
                pending += [self.modules[h] for h in used if h in self.modules and h not in kept]
            gone = [m for h, m in self.modules.items() if h not in kept]
            for module in gone:
                module.closing = True
                module.construction = Construction(self.constructions)
                self.ending[module.image.identity] = module
            self.forget_names(gone)
        return gone

    def rest_indices(self, rest: Rest, entry: int) -> None:
        """Carry out what a close does to table indices; the second time does nothing. Under the link lock.

        Args:
            rest: what it does.
            entry: the number in the log under which groups that were absent learn of it.
        """
        if self.resting.entry != entry:
            self.resting.closes += 1
            self.resting.entry = entry
        done = self.resting.done(rest)
        for library in done.begun:
            self.table.rest(library.region)
        for library in done.over:
            self.table.free(library.region, rested=True)

    def constructed(self, module: LinkedModule) -> None:
        """Note that a module's constructors have run; those of other modules of its load may not have."""
        module.constructed = next(self._constructed)

    def closed(self, module: LinkedModule) -> None:
        """Note that a module's end is over; wake the threads that wait to load it anew."""
        if found_in(self.ending, module.image.identity) is module:
            del self.ending[module.image.identity]
        module.construction.finished()

    def module_with_function(self, address: int) -> LinkedModule | None:
        """Return the module whose function is at a table index; None if it is no module's."""
        for module in self.present():
            if module.elements is not None and module.elements.address <= address < module.elements.end:
                return module
        return None

    def users(self, modules: Sequence[LinkedModule]) -> list[LinkedModule]:
        """Return the other modules, loaded or arriving, that need or are bound to some of these; under `stub_lock`."""
        handles = frozenset(module.handle for module in modules)
        others = (*self.modules.values(), *self.arriving.values())
        return [m for m in others if m.handle not in handles and m.uses(handles)]

    def remove_unused(self, modules: Sequence[LinkedModule]) -> list[LinkedModule]:
        """Remove modules, unless others use them.

        Returns:
            The modules that use them, in which case they stay, but can be found no longer.
        """
        with self.stub_lock:
            users = self.users(modules)
            self.forget_names(modules)
            if not users:
                for module in modules:
                    if self.modules.pop(module.handle, None) is not None:
                        self._drop_copy(module)
                self._drop_from_local_scopes(modules)
                self.changes.value += 1
        return users

    def put_back(self, modules: Sequence[LinkedModule]) -> None:
        """Take back that modules were removed; they can be found no longer all the same."""
        for module in modules:
            self.modules[module.handle] = module
            self._add_copy(module)
        self.changes.value += 1

    def _drop_from_local_scopes(self, gone: Sequence[LinkedModule]) -> None:
        """Take modules out of what others see, which would keep them, and what they saw in turn."""
        for module in (*self.modules.values(), *self.arriving.values()):
            if module.scope is not None and any(other in gone for other in module.scope):
                # A new tuple, since readers take no lock.
                module.scope = tuple(other for other in module.scope if other not in gone)

    def forget_names(self, modules: Sequence[LinkedModule]) -> None:
        """Make modules unfindable by path, name or global scope; their handles stay."""
        for module in modules:
            if found_in(self.by_identity, module.image.identity) == module.handle:
                del self.by_identity[module.image.identity]
            self._drop_base_name(module)
            module.global_opens = 0
        self._drop_from_scope()

    def _add_copy(self, module: LinkedModule) -> None:
        # A new counter, since readers walk the old one without a lock.
        copies = Counter(found_in(self.copies, module.image.digest))
        copies[module.copy] += 1
        self.copies[module.image.digest] = copies

    def _drop_copy(self, module: LinkedModule) -> None:
        left = self.copies[module.image.digest] - Counter((module.copy,))
        if left:
            self.copies[module.image.digest] = left
        else:
            del self.copies[module.image.digest]

    def _drop_base_name(self, module: LinkedModule) -> None:
        base_name = module.image.base_name
        left = tuple(other for other in self.by_base_name.pop(base_name, ()) if other is not module)
        if left:
            self.by_base_name[base_name] = left

    def demote(self, modules: Iterable[LinkedModule]) -> None:
        """Take back one promotion of modules: they leave the global scope unless another dlopen put them there too."""
        for module in modules:
            module.global_opens = max(module.global_opens - 1, 0)
        self._drop_from_scope()

    def _drop_from_scope(self) -> None:
        scope = [module for module in self.global_scope if module.global_opens]
        if len(scope) == len(self.global_scope):
            return
        self.global_scope = scope  # a new list, since readers walk the old one without a lock
        self.global_symbols = FirstDefinitions(module.symbols for module in scope)
        self.changes.value += 1


@dataclass
class Undo:
    """What takes back the steps of a change that fails, last step first."""

    steps: list[Callable[[], object]] = field(default_factory=list)

    def on_failure(self, step: Callable[[], object]) -> None:
        """Add the step that takes back what was just done."""
        self.steps.append(step)

    def run(self) -> None:
        """Take everything back."""
        while self.steps:
            self.steps.pop()()
