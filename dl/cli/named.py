"""Programs whose modules import from each other by name: what imports from what, and what would be linked to what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dl.errors import DlError
from dl.link.rehearse import Link
from dl.wasm.matching import export_type, import_types

if TYPE_CHECKING:
    from dl.instances.instance import Module
    from dl.linker import Linker


def is_linked_by_name(module: Module) -> bool:
    """Whether a module has no dylink section and imports from others by name."""
    return module.image.wasm.dylink is None and bool(module.imported_names())


def opened(linker: Linker, name: str) -> Module | str:
    """Return the module of a name, or why there is none."""
    try:
        return linker.parts.instances.named.open(name) or "not found"
    except DlError as error:
        return str(error)


def tried(linker: Linker, name: str) -> list[tuple[str, str]]:
    """Return where the module of a name was looked for."""
    return [(place, "no such file") for place in linker.parts.instances.named.places(name)]


def all_modules(linker: Linker, top: Module) -> Iterator[tuple[str, Module]]:
    """Yield a module and all that it and they import from, each once, with the name that it was asked for by."""
    known: set[str] = set()
    pending = [(top.name, top)]
    while pending:
        name, module = pending.pop()
        if module.image.identity in known:
            continue
        known.add(module.image.identity)
        yield name, module
        found = ((name, opened(linker, name)) for name in module.imported_names())
        pending += reversed([(name, one) for name, one in found if not isinstance(one, str)])


def named_links(linker: Linker, top: Module) -> list[Link]:
    """Return what every import of a module, and of all that it imports from, would be linked to; nothing is instantiated."""
    return [link for name, module in all_modules(linker, top) for link in _links_of(linker, name, module)]


def _links_of(linker: Linker, importer: str, module: Module) -> Iterator[Link]:
    instances = linker.parts.instances
    for entry, want in zip(module.imports, import_types(module.image.wasm), strict=True):

        def link(state: str, meaning: str, provider: str | None = None, entry: Any = entry) -> Link:
            return Link(importer, entry, state, meaning, provider)

        if instances.built_in.has(entry) and entry.module not in instances.named.first:
            try:
                served = instances.built_in.find(entry, want, importer, on_programs_memory=False)
            except DlError as error:
                yield link("refused", str(error))
                continue
            if served is not None and not served.external.link_type().fits(want):
                yield link("refused", f"it is {served.external.link_type().type}, not {entry.type}")
            else:
                yield link("linked", "built in" if served is None else f"built in: {served.origin}")
            continue
        other = (
            "nothing defines it"
            if instances.built_in.is_reserved(entry.module)
            else opened(linker, entry.module)
        )
        if isinstance(other, str):
            yield link("undefined", other if other != "not found" else f"module {entry.module} is not found")
            continue
        export = other.image.wasm.exports.get(entry.name)
        if export is None:
            yield link("undefined", f"{entry.module} has no such export", entry.module)
        elif not export_type(other.image.wasm, export).fits(want):
            yield link(
                "refused", f"{entry.module} exports it as {export.type}, not {entry.type}", entry.module
            )
        else:
            yield link("linked", f"{entry.name} of {entry.module}", entry.module)
