"""What the linking of libraries and main modules asks about ordinary modules of the program; see `dl.instances`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from dl.glue.resolution import FromNamespace
from dl.wasm.matching import LinkType
from dl.wasm.module import WasmModule
from dl.wasm.records import Import


class ImportNames(Protocol):
    """The instances that import module names stand for, if they are no library's."""

    def prepare(
        self, module: WasmModule, name: str, *, main: bool, is_library: Callable[[str], bool]
    ) -> None:
        """Instantiate what a module that is to be loaded imports from by name; with no lock held.

        Args:
            module: the module.
            name: what messages call it.
            main: whether it is the main module.
            is_library: whether an import module name is that of a library, and so of no ordinary module.

        Raises:
            DlError: that cannot be read or instantiated, or a main module imports its memory or table from it.
        """

    def find(self, entry: Import) -> tuple[FromNamespace, LinkType, str] | None:
        """Return where each group finds an export that an import names, its type now, and the instance's name."""
