"""Exports of ordinary modules as a source of meaning: an import whose module name is that of an instance means its export."""

from __future__ import annotations

from dl.errors import ImportTypeError
from dl.glue.resolution import Binding, FromNamespace
from dl.link.host_numbers import label
from dl.link.sources import Source
from dl.modules.linked_module import LinkedModule
from dl.modules.symbols import FunctionSymbol
from dl.program.import_names import ImportNames
from dl.wasm.matching import import_type
from dl.wasm.records import Import
from dl.wasm.types import FuncType, GlobalType, MemoryType, TableType, TagType


class InstanceExports(Source):
    """The exports of the program's instances, by import module name.

    Args:
        names: the instances; None for a program that has none.
    """

    def __init__(self, names: ImportNames | None) -> None:
        self._names = names

    def _find(self, importer: LinkedModule, entry: Import) -> FromNamespace | None:
        found = None if self._names is None else self._names.find(entry)
        if found is None:
            return None
        place, have, provider = found
        if not have.fits(import_type(importer.wasm, entry)):
            position = next(i for i, other in enumerate(importer.wasm.imports) if other is entry)
            raise ImportTypeError(
                importer.name, label(entry), str(entry.type), str(have.type), provider, position
            )
        return place

    def function(
        self, importer: LinkedModule, entry: Import, kind: FuncType
    ) -> FunctionSymbol | FromNamespace | None:
        """Return the instance's function."""
        return self._find(importer, entry)

    def variable(self, importer: LinkedModule, entry: Import, kind: GlobalType) -> Binding | None:
        """Return the instance's global."""
        return self._find(importer, entry)

    def tag(self, importer: LinkedModule, entry: Import, kind: TagType) -> Binding | None:
        """Return the instance's tag."""
        return self._find(importer, entry)

    def memory(self, importer: LinkedModule, entry: Import, kind: MemoryType) -> Binding | None:
        """Return the instance's memory."""
        return self._find(importer, entry)

    def table(self, importer: LinkedModule, entry: Import, kind: TableType) -> Binding | None:
        """Return the instance's table."""
        return self._find(importer, entry)
