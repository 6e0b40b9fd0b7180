"""What serves each import of an instance: the sources, asked in one order.

1. What was given. With `strict`, nothing else.
2. The instance that is registered under the import's module name.
3. What is built in: `imports=` of the linker, WASI, and of `env` the program's own memory and table.
4. The module of that name: of `modules=`, the module path, or a finder; see `dl.instances.named`. One of `modules=` comes
   before 3, since it was named.

Whatever serves an import, its type is checked in one place, here, by the rules of `dl.wasm.matching`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dl.engine.preview1 import FUNCTIONS, PREVIEW1
from dl.errors import ImportTypeError, MissingSymbol, UnresolvedSymbolsError, UnsupportedModuleError
from dl.glue.names import BASE_NAMESPACE, TABLE_NAME
from dl.glue.resolution import FromNamespace
from dl.instances.externals import External, Memory, Table
from dl.instances.given import GivenImports
from dl.instances.instance import ImportSource, Instance, Origin
from dl.instances.made import HostMade
from dl.program.program import Program
from dl.text import shown
from dl.wasm.matching import LinkType, import_types
from dl.wasm.module import WasmModule
from dl.wasm.records import Import
from dl.wasm.types import FuncType, Limits, TableType

ENV = "env"
_OF_THE_ENGINE = FUNCTIONS.keys() | {"proc_exit", "sched_yield"}
"""Functions of the engine's WASI, which work on the memory of whichever instance calls them."""


class Served:
    """What serves an import.

    Attributes:
        external: the external.
        origin: where it came from.
        provider: the instance that exports it; empty for none.
    """

    __slots__ = ("external", "origin", "provider")

    def __init__(self, external: External, origin: Origin, provider: str = "") -> None:
        self.external = external
        self.origin = origin
        self.provider = provider


class BuiltIns:
    """What the program has without any module: `imports=` of the linker, WASI, its own memory and table.

    Args:
        program: the program.
        made: makes host functions and globals.
    """

    def __init__(self, program: Program, made: HostMade) -> None:
        self._program = program
        self._made = made
        self._own: dict[str, External] = {}

    def is_reserved(self, namespace: str) -> bool:
        """Whether an import module name is the linker's own, and stands for no module."""
        return (
            namespace in ("", ENV)
            or namespace.startswith("GOT.")
            or self._program.host.has_namespace(namespace)
        )

    def own(self, kind: str) -> External | None:
        """Return the program's own memory or table; None if it has none, or one that is no object."""
        known = self._own.get(kind)
        if known is not None:
            return known
        main, reach = self._program.main, self._made.reach
        if kind == "memory" and main.makes_memory and main.memory_type is not None:
            known = Memory(reach, LinkType.of_host(main.memory_type), FromNamespace(BASE_NAMESPACE, "memory"))
        elif kind == "table" and main.makes_table:
            table = TableType("funcref", Limits(0, None, shared=False, is64=False))
            known = Table(reach, LinkType.of_host(table), main.anchors.table)
        return None if known is None else self._own.setdefault(kind, known)

    def has(self, entry: Import) -> bool:
        """Whether there is something for an import, whatever its type."""
        host = self._program.host
        if entry.name in host.user.get(entry.module, {}) or entry.name in host.system.get(entry.module, {}):
            return True
        return self._own_kind(entry) is not None and self.own(entry.kind) is not None

    @staticmethod
    def _own_kind(entry: Import) -> str | None:
        names = {"memory": "memory", "table": TABLE_NAME}
        return entry.kind if entry.module == ENV and names.get(entry.kind) == entry.name else None

    def find(
        self, entry: Import, want: LinkType, importer: str, *, on_programs_memory: bool
    ) -> Served | None:
        """Return what serves an import, if anything does.

        Args:
            entry: the import.
            want: its type.
            importer: the module's name.
            on_programs_memory: whether the module's memory is the program's, on which its WASI works.

        Raises:
            ImportTypeError: it is of another kind or type.
            UnsupportedModuleError: it is a system function that cannot work on the module's memory.
        """
        host = self._program.host
        value = host.user.get(entry.module, {}).get(entry.name)
        if value is not None:
            return Served(self._made.for_import(value, entry, want, importer, "the host"), "host")
        if isinstance(want.type, FuncType) and entry.name in host.system.get(entry.module, {}):
            function = self._system(entry, want.type, importer, on_programs_memory=on_programs_memory)
            return Served(self._made.importable(function, want), "system")
        if self._own_kind(entry) is not None:
            own = self.own(entry.kind)
            if own is not None:
                return Served(own, "program")
        return None

    def _system(
        self, entry: Import, kind: FuncType, importer: str, *, on_programs_memory: bool
    ) -> FromNamespace:
        if on_programs_memory:
            found = self._program.host.bind_system(entry.module, entry.name, kind, importer)
            assert found is not None
            return found
        if self._program.shares_memory:
            raise UnsupportedModuleError(
                importer,
                f"imports {entry.module}.{entry.name}, but its memory is not the program's, and WASI of a program with several "
                "threads works on that one only",
            )
        if entry.module != PREVIEW1 or entry.name not in _OF_THE_ENGINE:
            raise UnsupportedModuleError(
                importer,
                f"imports {entry.module}.{entry.name}, which works on the program's memory only, not on one of its own",
            )
        return FromNamespace(PREVIEW1, entry.name)


def names_to_open(
    module: WasmModule,
    given: GivenImports,
    registered: Mapping[str, Instance],
    first: frozenset[str],
    built_in: BuiltIns,
) -> list[str]:
    """Return the names of the modules that something of a module's imports may come from, in the order of its imports."""
    names: dict[str, None] = {}
    for position, entry in enumerate(module.imports):
        if entry.module in names or given.find(position, entry) is not None:
            continue
        instance = registered.get(entry.module)
        if instance is not None and entry.name in instance.exports:
            continue
        if entry.module in first or not (built_in.is_reserved(entry.module) or built_in.has(entry)):
            names[entry.module] = None
    return list(names)


class ImportSearch:
    """Finds what serves the imports of one module.

    Args:
        module: the module.
        name: what messages call the instance.
        given: what was given.
        registered: the instances by name.
        named: those that modules of its import module names stand for.
        first: names that come before what is built in.
        built_in: what is built in.
        made: makes host functions and globals.
        strict: whether only what was given counts.
        searched: where modules were looked for in vain, for messages.

    Attributes:
        on_programs_memory: whether the module's memory is the program's; known once its imports were found.
    """

    def __init__(
        self,
        module: WasmModule,
        name: str,
        given: GivenImports,
        registered: Mapping[str, Instance],
        named: Mapping[str, Instance],
        first: frozenset[str],
        built_in: BuiltIns,
        made: HostMade,
        *,
        strict: bool,
        searched: Sequence[str] = (),
    ) -> None:
        self._module = module
        self._name = name
        self._given = given
        self._registered = registered
        self._named = named
        self._first = first
        self._built_in = built_in
        self._made = made
        self._strict = strict
        self._searched = searched
        self.on_programs_memory = False

    def all(self) -> tuple[list[External], list[ImportSource]]:
        """Return what serves every import, each of a type that fits, and where it came from.

        Raises:
            ImportTypeError: a type does not fit.
            UnresolvedSymbolsError: nothing serves some of them.
        """
        imports = self._module.imports
        served = self._serve(lambda _entry: True)
        missing = [
            MissingSymbol(self._name, entry.module, entry.name, str(entry.type))
            for position, entry in enumerate(imports)
            if position not in served
        ]
        if missing:
            searched = dict.fromkeys([*self._registered, *self._named, *self._searched])
            raise UnresolvedSymbolsError(self._name, missing, list(searched))
        whole = [served[position] for position in range(len(imports))]
        sources = [
            ImportSource(entry.module, entry.name, entry.kind, found.origin, found.provider)
            for entry, found in zip(imports, whole, strict=True)
        ]
        return [found.external for found in whole], sources

    def some(self, wanted: Callable[[Import], bool]) -> dict[tuple[str, str], External]:
        """Return what serves those imports that are wanted, by module and field; see `all`."""
        imports = self._module.imports
        served = self._serve(wanted)
        return {(imports[p].module, imports[p].name): found.external for p, found in sorted(served.items())}

    def _serve(self, wanted: Callable[[Import], bool]) -> dict[int, Served]:
        """Return what serves those imports that are wanted, each of a type that fits, by position."""
        imports, types = self._module.imports, import_types(self._module)
        served: dict[int, Served] = {}
        # Which functions of WASI are meant depends on the memory that they work on.
        for position in sorted(range(len(imports)), key=lambda position: imports[position].kind != "memory"):
            entry, want = imports[position], types[position]
            found = self._find(position, entry, want) if wanted(entry) else None
            if found is None:
                continue
            self._check(position, entry, want, found)
            served[position] = found
            if entry.kind == "memory" and entry.index == 0:
                self.on_programs_memory = found.external is self._built_in.own("memory")
        return served

    def _find(self, position: int, entry: Import, want: LinkType) -> Served | None:
        value = self._given.find(position, entry)
        if value is not None:
            return Served(self._made.for_import(value, entry, want, self._name, "what was given"), "given")
        if self._strict:
            return None
        found = self._exported(self._registered, entry, "registered")
        if found is None and entry.module in self._first:
            found = self._exported(self._named, entry, "module")
        if found is None:
            found = self._built_in.find(entry, want, self._name, on_programs_memory=self.on_programs_memory)
        return found or self._exported(self._named, entry, "module")

    @staticmethod
    def _exported(instances: Mapping[str, Instance], entry: Import, origin: Origin) -> Served | None:
        instance = instances.get(entry.module)
        external = None if instance is None else instance.exports.get(entry.name)
        return None if instance is None or external is None else Served(external, origin, instance.name)

    def _check(self, position: int, entry: Import, want: LinkType, found: Served) -> None:
        have = found.external.link_type()
        if have.fits(want):
            return
        provider = found.provider or {
            "given": "what was given",
            "host": "the host",
            "system": "the system interface",
            "program": "the program",
        }.get(found.origin, "the host")
        raise ImportTypeError(
            self._name,
            f"{shown(entry.module)}.{shown(entry.name)}",
            str(entry.type),
            described(have),
            provider,
            position,
        )


def described(kind: LinkType) -> str:
    """Return a type for a message: a function's with the word that others begin with."""
    return f"function {kind.type}" if isinstance(kind.type, FuncType) else str(kind.type)
