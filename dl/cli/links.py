"""What would be linked to what: the part of `dlrun inspect --links` that asks the linker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dl.assembly import Options, assemble, new_locator
from dl.cli.named import is_linked_by_name, named_links
from dl.cli.run import module_directories
from dl.limits import Limits
from dl.link.rehearse import Link, rehearse
from dl.linker import Linker
from dl.modules.image import ModuleImage
from dl.modules.kind import ModuleKind, kind_of
from dl.options import MemoryType
from dl.wasm.types import MemoryType as WasmMemoryType

GOOD = {"linked", "late", "weak"}
"""States of imports that do not keep a module from being linked."""


def links_of(
    image: ModuleImage, library_path: Iterable[Path], module_path: Sequence[Sequence[Path]] = ()
) -> list[Link]:
    """Return what a program or library, and all that it needs, would be linked to; nothing of it is compiled or run.

    Args:
        image: the program or library.
        library_path: where libraries are looked for.
        module_path: where modules are looked for by their names, before the program's own directory.

    Raises:
        DlError: a module is missing, or cannot be linked whatever its imports mean.
    """
    if image.wasm.dylink is None and image.path is not None:
        with Linker(
            None, module_path=module_directories(module_path, str(image.path)), cache=False
        ) as linker:
            top = linker.load(image.path, name=image.name, resolve=False)
            if is_linked_by_name(top):
                return named_links(linker, top)
    side = kind_of(image.wasm) is ModuleKind.SIDE
    memory = None
    if side:
        shared = any(isinstance(e.type, WasmMemoryType) and e.type.limits.shared for e in image.wasm.imports)
        memory = MemoryType(shared=shared)
    locator = new_locator(list(library_path), None, Limits())
    options = Options(memory=memory, cache=False, default_files=False)
    parts = assemble(None if side else image, locator, options)
    try:
        return rehearse(parts.program, image, main=not side)
    finally:
        parts.stop(None)


def links_as_json(links: Iterable[Link]) -> list[dict[str, Any]]:
    """Return links in JSON's types."""
    return [
        {
            "importer": link.importer,
            "module": link.entry.module,
            "name": link.entry.name,
            "kind": link.entry.kind,
            "type": str(link.entry.type),
            "state": link.state,
            "meaning": link.meaning,
            "provider": link.provider,
        }
        for link in links
    ]
