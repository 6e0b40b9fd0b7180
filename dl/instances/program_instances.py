"""The instances of a program that are objects: instantiated from lists of externals, or because of what other modules import.

Modules are instantiated dependencies first, each module of a name once, without recursion: a tree of any depth is a stack of
frames. Modules that import from each other in a circle are refused, before any of the circle is instantiated.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dl.engine.requirements import check_capabilities
from dl.errors import (
    ImportCycleError,
    InitializationError,
    InstantiationError,
    LinkerUsageError,
    MissingSymbol,
    TrapError,
    UnresolvedSymbolsError,
    UnsupportedModuleError,
)
from dl.glue.resolution import FromNamespace
from dl.groups.registry import Groups
from dl.instances.budget import check_sizes, memory_sizes
from dl.instances.externals import External, Function, Memory, external_for
from dl.instances.given import GivenImports
from dl.instances.instance import Given, ImportSource, Instance, Module
from dl.instances.made import HostMade
from dl.instances.named import NamedModules
from dl.instances.reach import Reach
from dl.instances.rules import (
    Initialize,
    check_application,
    check_changes,
    check_dependency,
    check_for_threads,
    initializers,
)
from dl.instances.serve import BuiltIns, ImportSearch, names_to_open
from dl.instances.waits import InstanceWaits
from dl.link.find import form_reader
from dl.link.host_libraries import module_image
from dl.modules.construction import Construction
from dl.modules.source_lines import source_lines, source_lines_of_copy
from dl.options import ModuleSource, NamingOptions
from dl.program.operations import Instantiate, instance_namespace
from dl.records import dataclass, field
from dl.wasix.system import System
from dl.wasm.matching import LinkType, export_type
from dl.wasm.module import WasmModule
from dl.wasm.records import Import
from dl.wasm.rewrite import numbered_copy

if TYPE_CHECKING:
    from dl.engine.protocol import CompiledModule

_MOST_COPIES = 64
"""Modules of one content that stack traces tell apart."""


@dataclass(eq=False)
class _Frame:
    """A module that is being instantiated, and how far its dependencies are.

    Attributes:
        name: the name that it was asked for by; of the first, what messages call it.
        module: the module; None for one that is loaded otherwise, and only needs its dependencies.
        given: what was given for its imports.
        needed: the names that it imports from.
        found: the instances of those that are there.
        construction: its load, if it is the one instance of a name.
        searched: where names were looked for in vain.
        next: how many of `needed` are done.
        instance: the instance, once it is there.
    """

    name: str
    module: Module | None
    given: GivenImports
    needed: list[str]
    found: dict[str, Instance] = field(default_factory=dict)
    construction: Construction | None = None
    searched: list[str] = field(default_factory=list)
    next: int = 0
    instance: Instance | None = None


class ProgramInstances:
    """The instances and externals of one program.

    `_lock` guards the other fields that change; a leaf. Threads that need the same module wait for the one that
    instantiates it, as they do for constructors of libraries (`dl.modules.construction`).

    Args:
        groups: the program's groups.
        options: how modules are found by name.
        system: the program's system interface.

    Attributes:
        made: makes externals of the host's.
        built_in: what serves imports without any module.
        named: modules by name.
    """

    def __init__(self, groups: Groups, options: NamingOptions, system: System) -> None:
        program = groups.program
        self._groups = groups
        self._program = program
        self._reach = Reach(groups)
        self._waits = InstanceWaits(program, system)
        self._isolate = options.isolate
        self._lock = threading.Lock()
        self._loading: dict[Module, Construction] = {}
        self._shared: dict[Module, Instance] = {}
        self._names_of: dict[bytes, list[str]] = {}
        self._by_name: dict[str, Instance] = {}
        self.made = HostMade(self._reach)
        self.built_in = BuiltIns(program, self.made)
        self.named = NamedModules(self, program.locator, options.modules, options.module_path, options.finder)
        program.locator.finder = self.named.library
        program.names = self

    # modules

    def load(self, source: ModuleSource | Module, name: str | None, *, resolve: bool) -> Module:
        """Read a module; see `Linker.load`."""
        if isinstance(source, Module):
            return source
        module = Module(self, module_image(self._program.locator, source, name))
        if resolve:
            missing = self.resolve(module, None)
            if missing:
                raise UnresolvedSymbolsError(module.name, missing, list(self.named.registered))
        return module

    def missing(self, module: Module, imports: Given) -> list[MissingSymbol]:
        """Return what nothing serves of a module's imports; see `Module.missing_imports`."""
        given = GivenImports(imports, module.imports, module.name)
        missing = []
        for position, entry in enumerate(module.imports):
            if given.find(position, entry) is not None or self.built_in.has(entry):
                continue
            instance = self.named.registered.get(entry.module)
            if instance is not None and entry.name in instance.exports:
                continue
            reserved = self.built_in.is_reserved(entry.module) and entry.module not in self.named.first
            other = None if reserved else self.named.open(entry.module)
            if other is None or entry.name not in other.image.wasm.exports:
                missing.append(MissingSymbol(module.name, entry.module, entry.name, str(entry.type)))
        return missing

    def resolve(self, module: Module, imports: Given) -> list[MissingSymbol]:
        """Read all that a module and its dependencies import from; see `Module.resolve`."""
        missing = self.missing(module, imports)
        # Names on the way from the first module, and whether all that one imports from was looked at.
        path: list[tuple[Module, list[str]]] = [(module, self._names(module, imports))]
        on_path, done = {module.image.identity}, set[Module]()
        while path:
            names = path[-1][1]
            if not names:
                done.add(path[-1][0])
                on_path.discard(path.pop()[0].image.identity)
                continue
            other = self.named.open(names.pop(0))
            if other is None or other in done:
                continue
            self._check_cycle(other, on_path, lambda: [one for one, _ in path])
            on_path.add(other.image.identity)
            missing += self.missing(other, None)
            path.append((other, self._names(other, None)))
        return missing

    def names(self, module: Module) -> list[str]:
        """Return the names of the modules that a module imports from; see `Module.imported_names`."""
        return self._names(module, None)

    def _names(self, module: Module, imports: Given) -> list[str]:
        return self._needed(module.image.wasm, GivenImports(imports, module.imports, module.name))

    @staticmethod
    def _check_cycle(module: Module, on_path: set[str], path: Callable[[], Sequence[Module]]) -> None:
        """Check that a module is not among those that wait for it.

        Args:
            module: the module.
            on_path: the identities of those.
            path: returns them, in order.

        Raises:
            ImportCycleError: it is.
        """
        if module.image.identity in on_path:
            waiting = path()
            first = next(i for i, one in enumerate(waiting) if one.image.identity == module.image.identity)
            raise ImportCycleError(waiting[0].name, [one.name for one in (*waiting[first:], module)])

    # instances

    def instantiate(
        self,
        source: ModuleSource | Module,
        imports: Given,
        *,
        name: str | None,
        strict: bool,
        initialize: Initialize,
    ) -> Instance:
        """Instantiate a module, and before it what it imports from by name; see `Linker.instantiate`."""
        self._reach.check_engine()
        if initialize not in (True, False, "wasi"):
            raise LinkerUsageError(f'initialize must be True, False or "wasi", not {initialize!r}')
        module = self.load(source, name, resolve=False)
        name = name or module.name
        given = GivenImports(imports, module.imports, name)
        root = _Frame(name, module, given, [] if strict else self._needed(module.image.wasm, given))
        self._with_dependencies([root], isolate=self._isolate, strict=strict, initialize=initialize)
        assert root.instance is not None
        return root.instance

    def _with_dependencies(
        self, frames: list[_Frame], *, isolate: bool, strict: bool = False, initialize: Initialize = True
    ) -> None:
        """Instantiate what the first frame needs, and itself unless it only asks for that."""
        root = frames[0]
        on_path = set() if root.module is None else {root.module.image.identity}
        try:
            while frames:
                frame = frames[-1]
                if frame.next < len(frame.needed):
                    self._next_dependency(frames, on_path, isolate=isolate)
                    continue
                if frame.module is not None:
                    is_root = frame is root
                    on_path.discard(frame.module.image.identity)
                    frame.instance = self._instantiate(
                        frame,
                        frame.module,
                        strict=strict and is_root,
                        initialize=initialize if is_root else initialize or True,
                    )
                self._ended(frame)  # while it is among those that are ended if something comes between
                frames.pop()
                if frames and frame.instance is not None:
                    frames[-1].found[frame.name] = frame.instance
                    frames[-1].next += 1
        finally:
            for frame in frames:
                self._ended(frame)

    def instance(self, name: str) -> Instance | None:
        """Return the one instance of a name; see `Linker.instance`."""
        known = self.named.registered.get(name)
        module = self.named.find(name)
        return known or (None if module is None else self._shared.get(module))

    def _needed(self, module: WasmModule, given: GivenImports) -> list[str]:
        return names_to_open(module, given, self.named.registered, self.named.first, self.built_in)

    def _next_dependency(self, frames: list[_Frame], on_path: set[str], *, isolate: bool) -> None:
        """Find the next instance that the last frame needs, or begin to make it."""
        frame = frames[-1]
        name = frame.needed[frame.next]
        module = self.named.open(name)
        if module is None:
            frame.searched += self.named.places(name)
            frame.next += 1
            return
        self._check_cycle(module, on_path, lambda: [one.module for one in frames if one.module is not None])
        construction = None
        if not isolate:
            construction = self._begin(module, frame)
            if construction is None:
                frame.found[name] = self._shared[module]
                frame.next += 1
                return
        # Noted first: from here on it is ended with the frame.
        on_path.add(module.image.identity)
        frames.append(_Frame(name, module, GivenImports(None, (), name), [], construction=construction))
        check_dependency(module.image.wasm, name, frame.name)
        frames[-1].needed = self._needed(module.image.wasm, frames[-1].given)

    def _begin(self, module: Module, frame: _Frame) -> Construction | None:
        """Begin to instantiate the module of a name; None when its instance is there, perhaps by another thread."""
        while True:
            with self._lock:
                if module in self._shared:
                    return None
                other = self._loading.get(module)
                if other is None:
                    begun = self._loading[module] = Construction(self._program.state.constructions)
                    return begun
            if not other.wait(self._program.waits, self._reach.group().replica.waiter, module.name):
                raise ImportCycleError(frame.name, [module.name, frame.name, module.name])

    def _ended(self, frame: _Frame) -> None:
        if frame.construction is None or frame.module is None:
            return
        with self._lock:
            self._loading.pop(frame.module, None)
            if frame.instance is not None:
                self._shared[frame.module] = frame.instance
        frame.construction.finished()
        frame.construction = None

    def _instantiate(
        self, frame: _Frame, module: Module, *, strict: bool, initialize: Initialize
    ) -> Instance:
        """Instantiate one module, whose dependencies are there."""
        wasm = module.image.wasm
        check_sizes(wasm, module.name, self._program.options.limits)
        # Before its imports are looked at: a module that is invalid is invalid whatever it imports.
        code = self._compiled(module, frame.name)
        if self._program.shares_memory:
            check_for_threads(wasm, frame.name)
        search = ImportSearch(
            wasm,
            frame.name,
            frame.given,
            self.named.registered,
            frame.found,
            self.named.first,
            self.built_in,
            self.made,
            strict=strict,
            searched=frame.searched,
        )
        externals, sources = search.all()
        if initialize:
            check_application(wasm, frame.name, on_programs_memory=search.on_programs_memory)
        number = self._reach.next_number(frame.name)
        waits = self._waits.rewritten(module.image)
        filling = waits and self._waits.filling(waits[0], wasm, externals, self.built_in.own("memory"))
        operation = Instantiate(
            number,
            code,
            frame.name,
            tuple(one.source for one in externals),
            filling,
            source_lines(wasm) if waits is None else source_lines_of_copy(wasm, waits[1]),
        )
        sizes = memory_sizes(wasm, self._program.options.limits)
        self._perform(operation, sum(sizes.values()))
        instance = self._made(frame, module, number, externals, sources)
        for export in wasm.exports.values():
            memory = instance.exports[export.name]
            if isinstance(memory, Memory) and export.index in sizes and not memory.type.limits.shared:
                self._reach.budget.follow(memory, sizes.pop(export.index))
        function = ""
        try:
            for function in initializers(wasm, initialize):
                instance[function]()
        except TrapError as error:
            raise InitializationError(frame.name, function, error) from error
        return instance

    def _perform(self, operation: Instantiate, size: int) -> None:
        """Instantiate a module in every group.

        Args:
            operation: what to do.
            size: bytes of its memories.
        """
        budget, name = self._reach.budget, operation.name
        budget.take(name, size)
        try:
            self._reach.perform(operation)
        except TrapError as error:
            # Its memories stay in the store.
            raise InitializationError(name, "instantiation", error) from error
        except BaseException as error:
            budget.give_back(size)
            if isinstance(error, InstantiationError):
                raise InstantiationError(name, error.reason) from error
            raise

    def _compiled(self, module: Module, name: str) -> CompiledModule:
        """Return a module's code: the same for all of one content, but of its own under another name, for stack traces.

        Raises:
            InvalidModuleError: the engine refuses the module.
            UnsupportedModuleError: it needs what the engine lacks.
        """
        image = module.image
        check_capabilities(self._program.engine, image.wasm)
        with self._lock:
            names = self._names_of.setdefault(image.digest, [])
            if name not in names and len(names) < _MOST_COPIES:
                names.append(name)
            copy = names.index(name) if name in names else 0
        waits = self._waits.rewritten(image)
        wasm, digest = (image.wasm.data, image.digest) if waits is None else (waits[0].wasm, waits[1])
        return self._program.compiler.compile(
            numbered_copy(wasm, copy), name, None if copy else digest, form_reader(self._program, image)
        )

    def _made(
        self,
        frame: _Frame,
        module: Module,
        number: int,
        externals: Sequence[External],
        sources: Sequence[ImportSource],
    ) -> Instance:
        """Return the object for an instance: what it exports of its imports are the objects that were imported."""
        wasm = module.image.wasm
        imported: dict[tuple[str, int], External] = {
            (entry.kind, entry.index): external
            for entry, external in zip(wasm.imports, externals, strict=True)
        }
        exports: dict[str, External] = {}
        for export in wasm.exports.values():
            place = export.kind, export.index
            external = imported.get(place)
            if external is None:
                source = FromNamespace(instance_namespace(number), export.name)
                external = imported[place] = external_for(self._reach, export_type(wasm, export), source)
                if isinstance(external, Function):
                    self._reach.exported(external)
            exports[export.name] = external
        return Instance(module, frame.name, exports, sources, frame.found)

    # what libraries and main modules import; see `dl.program.import_names.ImportNames`

    def prepare(
        self, module: WasmModule, name: str, *, main: bool, is_library: Callable[[str], bool]
    ) -> None:
        """Instantiate what a library or main module imports from by name."""
        if not self.named.is_used():
            return
        frame = _Frame(name, None, GivenImports(None, (), name), [])
        frame.needed = [one for one in self._needed(module, frame.given) if not is_library(one)]
        if not frame.needed and not self.named.registered:
            return
        self._reach.check_engine()
        self._with_dependencies([frame], isolate=False)  # what libraries import is one for all of them
        with self._lock:
            self._by_name.update(frame.found)
        for entry in module.imports:
            if entry.module in ("env", "GOT.mem", "GOT.func") or self.find(entry) is None:
                continue
            if self._program.shares_memory:
                check_changes(entry, name)
            if main and entry.kind in ("memory", "table"):
                raise UnsupportedModuleError(
                    name,
                    f"imports its {entry.kind} from the module {entry.module}, but that of a main module is the program's; use "
                    "Linker(None, ...).instantiate",
                )

    def find(self, entry: Import) -> tuple[FromNamespace, LinkType, str] | None:
        """Return the export of an instance that an import names."""
        for instances in (self.named.registered, self._by_name):
            instance = instances.get(entry.module)
            external = None if instance is None else instance.exports.get(entry.name)
            if instance is not None and external is not None and isinstance(external.source, FromNamespace):
                return external.source, external.link_type(), instance.name
        return None

    def close(self) -> None:
        """Release what finders gave, and leave the waits of other programs' memories."""
        self._waits.close()
        self.named.close()
