"""`dlrun deps FILE`: the tree of libraries that a module needs, and where each is found or not."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.text import Text
from rich.tree import Tree

from dl.cli.console import output, shown
from dl.cli.endings import NOT_LINKED
from dl.cli.named import opened, tried
from dl.cli.run import library_path_option, module_directories, module_path_option, search_path
from dl.errors import DlError, LibraryNotFoundError
from dl.instances.instance import Module
from dl.linker import Linker
from dl.modules.image import ModuleImage, image_from_file
from dl.modules.kind import ModuleKind, kind_of
from dl.modules.locate import Locator, requester_of

CYCLE, REPEATED = "cycle", "repeated"


@dataclass
class Node:
    """A library in the tree.

    Attributes:
        name: as the needed list has it; of the root, the file.
        path: the file found; None when there is none.
        tried: every path that was tried in vain, with what was wrong with it.
        error: why it cannot be linked; None when it can.
        seen: `cycle` when it is one of those above it, `repeated` when it stood in the tree before; its needs are
            shown there.
        needs: what it needs, in order.
    """

    name: str
    path: str | None = None
    tried: tuple[tuple[str, str], ...] = ()
    error: str | None = None
    seen: str | None = None
    needs: list[Node] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the tree in JSON's types."""
        return {
            "name": self.name,
            "found": self.path is not None,
            "path": self.path,
            "error": self.error,
            "tried": [{"path": path, "reason": reason} for path, reason in self.tried],
            "cycle": self.seen == CYCLE,
            "repeated": self.seen == REPEATED,
            "needed": [node.as_json() for node in self.needs],
        }


class _Walk:
    """Finds the libraries as a load does, but goes on after what is missing."""

    def __init__(self, locator: Locator) -> None:
        self._locator = locator
        self._known: set[str] = set()
        self._by_base_name: dict[str, ModuleImage] = {}
        self._above: set[str] = set()
        self.complete = True

    def tree(self, root: ModuleImage) -> Node:
        """Return the tree below a module."""
        top = Node(root.name, root.name)
        self._remember(root)
        pending = [(root, top, iter(_needed(root)))]
        while pending:
            image, node, names = pending[-1]
            name = next(names, None)
            if name is None:
                pending.pop()
                self._above.discard(image.identity)
                continue
            child = Node(name)
            node.needs.append(child)
            found = self._find(name, image, child)
            if found is not None and self._enter(found, child):
                pending.append((found, child, iter(_needed(found))))
        return top

    def _find(self, name: str, needed_by: ModuleImage, node: Node) -> ModuleImage | None:
        try:
            return self._locator.find(name, requester_of(needed_by), known=self._by_base_name.get)
        except LibraryNotFoundError as error:
            node.tried, node.error = error.tried, "not found"
        except DlError as error:
            node.error = str(error)
        self.complete = False
        return None

    def _enter(self, image: ModuleImage, node: Node) -> bool:
        node.path = image.name
        if image.identity in self._known:
            node.seen = CYCLE if image.identity in self._above else REPEATED
            return False
        if image.wasm.dylink is None:
            node.error = "not a shared library: it has no dylink.0 section"
            self.complete = False
        self._remember(image)
        return True

    def _remember(self, image: ModuleImage) -> None:
        self._known.add(image.identity)
        self._above.add(image.identity)
        if kind_of(image.wasm) is ModuleKind.SIDE:
            # As a load does, it serves its base name from now on.
            self._by_base_name.setdefault(image.base_name, image)


def _needed(image: ModuleImage) -> tuple[str, ...]:
    return image.wasm.dylink.needed if image.wasm.dylink else ()


class _NamedWalk:
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
            child.path = str(found.image.path or found.name)
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


@click.command(short_help="Show the tree of libraries that a module needs, like ldd.")
@library_path_option
@module_path_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON; its keys are documented and stable.")
@click.argument("file", metavar="FILE")
def deps(
    file: str, library_path: tuple[list[Path], ...], module_path: tuple[list[Path], ...], as_json: bool
) -> int:
    """Show the tree of libraries that a module needs, and where each was found.

    With --module-path, or if one of them lies beside it, of a module without a dylink section: the modules that it imports from
    by name. Nothing is linked or run. Libraries opened at run time are not known beforehand. The exit code is 0 if everything
    was found, 127 if something is missing.
    """
    top, complete = _tree_of(file, library_path, module_path)
    if as_json:
        print(json.dumps({**top.as_json(), "complete": complete}, indent=2))
    else:
        tree = Tree(Text(shown(top.name), style="bold"), guide_style="dim")
        _grow(tree, top)
        if not top.needs:
            tree.add("needs no libraries")
        output().print(tree)
    return 0 if complete else NOT_LINKED


def _tree_of(
    file: str, library_path: tuple[list[Path], ...], module_path: tuple[list[Path], ...]
) -> tuple[Node, bool]:
    """Return the tree below a file, and whether all of it can be linked."""
    image = image_from_file(Path(file), file)
    if image.wasm.dylink is None:
        with Linker(None, module_path=module_directories(module_path, file), cache=False) as linker:
            module = linker.load(file, resolve=False)
            if module_path or any(not isinstance(opened(linker, n), str) for n in module.imported_names()):
                named = _NamedWalk(linker)
                return named.tree(module), named.complete
    walk = _Walk(Locator(search_path(library_path, file)))
    return walk.tree(image), walk.complete


def _grow(tree: Tree, top: Node) -> None:
    pending = [(tree, top)]
    while pending:
        branch, node = pending.pop()
        for child in node.needs:
            twig = branch.add(_line(child))
            for path, reason in child.tried:
                twig.add(Text(f"{shown(path)}: {shown(reason)}", style="dim"))
            pending.append((twig, child))


def _line(node: Node) -> Text:
    line = Text(shown(node.name))
    if node.path is not None:
        line.append(" => ", style="dim")
        line.append(shown(node.path))
    if node.error is not None:
        line.append(f"{':' if node.path else ' =>'} {shown(node.error)}", style="bold red")
    if node.seen is not None:
        line.append(f" ({'cycle' if node.seen == CYCLE else 'shown above'})", style="dim")
    return line
