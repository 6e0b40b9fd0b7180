"""What would be linked to what: the part of `dlrun inspect --links` that asks the linker."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dl.assembly import Options, assemble, new_locator
from dl.cli.named import links_by_name
from dl.limits import Limits
from dl.link.plan import LinkPlan
from dl.link.rehearse import Link, rehearse
from dl.modules.image import ModuleImage
from dl.modules.kind import ModuleKind, kind_of
from dl.options import MemoryType
from dl.wasm.types import MemoryType as WasmMemoryType

GOOD = {"linked", "late", "weak"}
"""States of imports that do not keep a module from being linked."""


def links_of(
    image: ModuleImage,
    library_path: Iterable[Path],
    module_path: Sequence[Sequence[Path]] = (),
    *,
    engine: str | None = None,
    visit: Callable[[LinkPlan], object] = lambda _plan: None,
    instead: Mapping[str, ModuleImage] | None = None,
) -> list[Link]:
    """Return what a program or library, and all that it needs, would be linked to; nothing of it is compiled or run.

    Args:
        image: the program or library.
        library_path: where bare library names are looked for.
        module_path: where modules are looked for by import names, before the program's own directory.
        engine: the engine's name; None for the default one.
        visit: called with the plan of the load, before it is undone.
        instead: modules to take in the place of the files that have their identity.

    Raises:
        DlError: a module is missing, or cannot be linked whatever its imports mean.
    """
    by_name = links_by_name(image, module_path)
    if by_name is not None:
        return by_name
    side = kind_of(image.wasm) is ModuleKind.SIDE
    memory = None
    if side:
        shared = any(isinstance(e.type, WasmMemoryType) and e.type.limits.shared for e in image.wasm.imports)
        memory = MemoryType(shared=shared)
    locator = new_locator(list(library_path), None, Limits())
    options = Options(memory=memory, cache=False, default_files=False, engine=engine)
    parts = assemble(None if side else image, locator, options)
    if instead:
        loaded = locator.loaded
        locator.loaded = lambda identity: loaded(identity) or instead.get(identity)
    try:
        return rehearse(parts.program, image, main=not side, visit=visit)
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
