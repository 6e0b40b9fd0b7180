"""Modules that were read to be instantiated, their instances, and where each import of an instance came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from dl.errors import ImportTypeError, LinkerUsageError, MissingSymbol, ProgramExited, SymbolNotFoundError
from dl.instances.externals import External, Function
from dl.instances.rules import Initialize
from dl.modules.image import ModuleImage
from dl.options import parse_signature
from dl.program.main_module import START
from dl.records import dataclass
from dl.wasm.records import Export, Import
from dl.wasm.types import FuncType

if TYPE_CHECKING:
    from dl.instances.program_instances import ProgramInstances

Origin: TypeAlias = Literal["given", "registered", "module", "host", "system", "program"]
"""Where an import came from: the list or names that were given; an instance registered under the import's module name; a module
found by that name; `imports=` of the linker; WASI and WASIX; or the program's own memory and table."""


@dataclass(frozen=True)
class ImportSource:
    """What served one import of an instance.

    Attributes:
        module: the import's module name.
        name: its field name.
        kind: "func", "table", "memory", "global" or "tag".
        origin: see `Origin`.
        provider: the name of the instance that exports it; empty if the host or the program gave it.
    """

    module: str
    name: str
    kind: str
    origin: Origin
    provider: str = ""


Given: TypeAlias = "Sequence[Any] | Mapping[Any, Any] | None"
"""Imports as the user gives them; see `Linker.instantiate`."""


class Module:
    """A module that was read, and can be instantiated any number of times.

    Attributes:
        name: what messages call it.
    """

    def __init__(self, program: ProgramInstances, image: ModuleImage) -> None:
        self._program = program
        self._image = image
        self.name = image.name
        self.registered_as: str | None = None

    @property
    def image(self) -> ModuleImage:
        """The parsed module; for the linker's own use."""
        return self._image

    @property
    def imports(self) -> tuple[Import, ...]:
        """What it imports, in order: module name, field name, kind and type of each."""
        return self._image.wasm.imports

    @property
    def exports(self) -> dict[str, Export]:
        """What it exports, by name: kind and type of each."""
        return dict(self._image.wasm.exports)

    def imported_names(self) -> list[str]:
        """Return the names of the modules that it imports from and that are neither registered nor built in."""
        return self._program.names(self)

    def missing_imports(self, imports: Given = None) -> list[MissingSymbol]:
        """Return the imports that nothing serves: not `imports`, no registered or named module, nothing that is built in.

        Modules that it imports from by name are read for this, and none is instantiated.

        Args:
            imports: what would be given to `instantiate`.

        Raises:
            DlError: a module that it imports from cannot be read.
        """
        return self._program.missing(self, imports)

    def resolve(self, imports: Given = None) -> list[MissingSymbol]:
        """Read the modules that it and they import from, by name; return what is still missing, of all of them.

        Raises:
            DlError: one of them cannot be read, or they import from each other in a circle.
        """
        return self._program.resolve(self, imports)

    def instantiate(
        self,
        imports: Given = None,
        *,
        name: str | None = None,
        strict: bool = False,
        initialize: Initialize = True,
    ) -> Instance:
        """Instantiate it; see `Linker.instantiate`."""
        return self._program.instantiate(self, imports, name=name, strict=strict, initialize=initialize)

    def __repr__(self) -> str:
        return f"<Module {self.name}>"


class Instance:
    """An instance of a module, in every thread of the program.

    Attributes:
        name: what messages call it.
        module: what it is an instance of.
        exports: what it exports, by name, each external as one object.
        sources: what served each of its imports, in their order.
        dependencies: the instances that modules it imports from by name stand for, by that name.
    """

    def __init__(
        self,
        module: Module,
        name: str,
        exports: Mapping[str, External],
        sources: Sequence[ImportSource],
        dependencies: Mapping[str, Instance],
    ) -> None:
        self.name = name
        self.module = module
        self.exports = dict(exports)
        self.sources = tuple(sources)
        self.dependencies = dict(dependencies)

    def __getitem__(self, name: str) -> Any:
        """Return an export.

        Raises:
            SymbolNotFoundError: it exports nothing of this name.
        """
        found = self.exports.get(name)
        if found is None:
            raise SymbolNotFoundError(name, [self.name])
        return found

    def lookup(self, name: str, signature: FuncType | str | None = None) -> Function:
        """Find a function: an export by its name, or one of a module that it imports from by `$module$function`.

        Args:
            name: the name. An export of exactly this name comes first, also if it begins with `$`.
            signature: what its type must be, as text or `FuncType`; None for any.

        Raises:
            SymbolNotFoundError: there is no such function, or no such module among those that it imports from.
            ImportTypeError: its type is another.
        """
        found = self.exports.get(name)
        where = self
        if found is None and name.startswith("$"):
            of, _, function = name[1:].partition("$")
            dependency = self.dependencies.get(of) if of and function else None
            if dependency is None:
                reason = (
                    "not of the form $module$function"
                    if not (of and function)
                    else f"{self.name} imports from no module {of}"
                )
                raise SymbolNotFoundError(name, [self.name], reason)
            where, found = dependency, dependency.exports.get(function)
        if not isinstance(found, Function):
            reason = "" if found is None else f"{where.name} exports it as a {found.kind}"
            raise SymbolNotFoundError(name, [where.name], reason)
        if signature is not None:
            kind = (
                signature if isinstance(signature, FuncType) else parse_signature(signature, references=True)
            )
            if kind != found.type:
                raise ImportTypeError(self.name, name, str(kind), str(found.type), where.name)
        return found

    def run(self) -> int:
        """Call `_start` of a command; return its exit code.

        Raises:
            LinkerUsageError: it exports no `_start`.
            TrapError: it trapped.
        """
        start: Callable[[], object] | External | None = self.exports.get(START)
        if not isinstance(start, Function):
            raise LinkerUsageError(f"{self.name} exports no _start: it is no command")
        try:
            start()
        except ProgramExited as exited:
            return exited.code
        return 0

    def __repr__(self) -> str:
        return f"<Instance {self.name}>"
