"""Programs whose modules import from each other by name: what imports from what, and what would be linked to what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dl.cli.modules import module_directories
from dl.cli.tree import CYCLE, REPEATED, Node
from dl.errors import DlError, LinkError
from dl.link.rehearse import Link
from dl.linker import Linker
from dl.modules.image import ModuleImage
from dl.wasm.matching import export_type, import_types

if TYPE_CHECKING:
    from dl.instances.instance import Module


def opened(linker: Linker, name: str) -> Module | str:
    """Return the module of a name, or why there is none."""
    try:
        return linker.parts.instances().named.open(name) or "not found"
    except DlError as error:
        return str(error)


def tried(linker: Linker, name: str) -> list[tuple[str, str]]:
    """Return where the module of a name was looked for."""
    return [(place, "no such file") for place in linker.parts.instances().named.places(name)]


def _name_of(module: Module, top: Module | None = None) -> str:
    """Return what messages call a module: the file, as it was given for the first."""
    return module.name if module is top else str(module.image.path or module.name)


def _all_modules(linker: Linker, top: Module) -> Iterator[Module]:
    """Yield a module and all that it and they import from, each once."""
    known: set[str] = set()
    pending = [top]
    while pending:
        module = pending.pop()
        if module.image.identity not in known:
            known.add(module.image.identity)
            yield module
            found = [opened(linker, name) for name in module.imported_names()]
            pending += reversed([one for one in found if not isinstance(one, str)])


def _links_of(linker: Linker, module: Module, importer: str) -> Iterator[Link]:
    instances = linker.parts.instances()
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
            yield link("undefined", f"{entry.module} has no such export", _name_of(other))
        elif not export_type(other.image.wasm, export).fits(want):
            yield link(
                "refused", f"{entry.module} exports it as {export.type}, not {entry.type}", entry.module
            )
        else:
            yield link("linked", f"{entry.name} of {entry.module}", _name_of(other))


class _Walk:
    """Finds the modules that are imported from by name, as a link does, but goes on after what is missing."""

    def __init__(self, linker: Linker) -> None:
        self._linker = linker
        self._known: set[str] = set()
        self._above: set[str] = set()
        self.complete = True

    def tree(self, top: Module) -> Node:
        """Return the tree below a module."""
        root = Node(top.name, top.name)
        self._known.add(top.image.identity)
        self._above.add(top.image.identity)
        pending = [(top, root, iter(top.imported_names()))]
        while pending:
            module, node, names = pending[-1]
            name = next(names, None)
            if name is None:
                pending.pop()
                self._above.discard(module.image.identity)
                continue
            child = Node(name)
            node.needs.append(child)
            found = opened(self._linker, name)
            if isinstance(found, str):
                child.error, child.tried = found, tuple(tried(self._linker, name))
                self.complete = False
                continue
            child.path = _name_of(found)
            identity = found.image.identity
            if identity in self._known:
                child.seen = CYCLE if identity in self._above else REPEATED
                if child.seen == CYCLE:
                    child.error = "modules cannot import from each other in a circle"
                    self.complete = False
                continue
            self._known.add(identity)
            self._above.add(identity)
            pending.append((found, child, iter(found.imported_names())))
        return root


def tree_by_name(image: ModuleImage, module_path: Sequence[Sequence[Path]]) -> tuple[Node, bool] | None:
    """Return the tree of the modules that a file imports from by name, and whether it can be linked; see `_by_name`."""
    with _by_name(image, module_path) as found:
        if found is None:
            return None
        walk = _Walk(found[0])
        return walk.tree(found[1]), walk.complete


def links_by_name(image: ModuleImage, module_path: Sequence[Sequence[Path]]) -> list[Link] | None:
    """Return what every import of a file, and of what it imports from, would be linked to; see `_by_name`."""
    with _by_name(image, module_path) as found:
        if found is None:
            return None
        linker, top = found
        return [
            link for one in _all_modules(linker, top) for link in _links_of(linker, one, _name_of(one, top))
        ]


def modules_by_name(image: ModuleImage, module_path: Sequence[Sequence[Path]]) -> list[ModuleImage] | None:
    """Return a file and all modules that it imports from by name; see `_by_name`.

    Raises:
        LinkError: one of them is missing or cannot be read.
    """
    with _by_name(image, module_path) as found:
        if found is None:
            return None
        linker, top = found
        modules = list(_all_modules(linker, top))
        for module in modules:
            for name in module.imported_names():
                reason = opened(linker, name)
                if isinstance(reason, str):
                    raise LinkError(name, f"{reason} (imported by {_name_of(module, top)})")
        return [module.image for module in modules]


@contextmanager
def _by_name(
    image: ModuleImage, module_path: Sequence[Sequence[Path]]
) -> Iterator[tuple[Linker, Module] | None]:
    """Give a linker that knows a file as a module whose imports are found by name; None if it is not linked so.

    Args:
        image: the file.
        module_path: where modules are looked for, before its own directory. Without any, it is linked by name only if one of
            the names is found: the others may be the host's.
    """
    if image.wasm.dylink is not None or image.path is None:
        yield None
        return
    with Linker(None, module_path=module_directories(module_path, str(image.path)), cache=False) as linker:
        module = linker.load(image.path, name=image.name, resolve=False)
        names = module.imported_names()
        there = module_path or any(not isinstance(opened(linker, name), str) for name in names)
        yield (linker, module) if names and there else None
