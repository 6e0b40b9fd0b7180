"""`dlrun deps FILE`: the tree of libraries that a module needs, and where each is found or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text
from rich.tree import Tree

from dl.cli.arguments import module_argument
from dl.cli.columns import print_columns
from dl.cli.console import output, print_note, shown
from dl.cli.demangling import Demangler, demangle_option, demangler
from dl.cli.endings import NOT_FOUND, NOT_LINKED
from dl.cli.links import GOOD, links_of
from dl.cli.modules import image_of, search_path
from dl.cli.named import tree_by_name
from dl.cli.params import engine_option
from dl.cli.run import library_path_option, module_path_option
from dl.cli.tree import CYCLE, REPEATED, Node
from dl.engine import default_name, engine_named
from dl.engine.requirements import check_capabilities
from dl.errors import DlError, LibraryNotFoundError, MalformedModuleError, UnsupportedModuleError
from dl.link.find import LEGACY_EXCEPTIONS
from dl.link.rehearse import Link
from dl.modules.image import ModuleImage
from dl.modules.kind import ModuleKind, kind_of
from dl.modules.locate import Locator, requester_of
from dl.wasm.rewrite import uses_legacy_exceptions

if TYPE_CHECKING:
    from dl.engine.protocol import Engine


class _Walk:
    """Finds the libraries as a load does, but goes on after what is missing.

    Args:
        locator: finds them.
        engine: the engine that shall run them; None to not look whether it can.
    """

    def __init__(self, locator: Locator, engine: Engine | None = None) -> None:
        self._locator = locator
        self._engine = engine
        self._known: set[str] = set()
        self._by_base_name: dict[str, ModuleImage] = {}
        self._above: set[str] = set()
        self.complete = True

    def tree(self, root: ModuleImage) -> Node:
        """Return the tree below a module."""
        top = Node(root.name, root.name)
        self._look_for_features(root, top)
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
        self._look_for_features(image, node)
        self._remember(image)
        return True

    def _look_for_features(self, image: ModuleImage, node: Node) -> None:
        """Note at a module's node what the engine lacks for it; without an engine, nothing."""
        if self._engine is None or node.error is not None:
            return
        try:
            check_capabilities(self._engine, image.wasm)
            if uses_legacy_exceptions(image.wasm):
                raise UnsupportedModuleError(image.name, LEGACY_EXCEPTIONS)
        except UnsupportedModuleError as error:
            node.error = error.reason
            self.complete = False
        except MalformedModuleError as error:
            node.error = str(error)
            self.complete = False

    def _remember(self, image: ModuleImage) -> None:
        self._known.add(image.identity)
        self._above.add(image.identity)
        if kind_of(image.wasm) is ModuleKind.SIDE:
            # As a load does, it serves its base name from now on.
            self._by_base_name.setdefault(image.base_name, image)


def _needed(image: ModuleImage) -> tuple[str, ...]:
    return image.wasm.dylink.needed if image.wasm.dylink else ()


@click.command(short_help="Show the tree of libraries that a module needs, like ldd.")
@library_path_option
@module_path_option
@click.option(
    "-r",
    "--undefined",
    "undefined",
    is_flag=True,
    help="Show for each library the symbols that nothing defines.",
)
@click.option(
    "-u",
    "--unused",
    "unused",
    is_flag=True,
    help="Show which needs serve no import of the module that has them.",
)
@demangle_option
@engine_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON; its keys are documented and stable.")
@module_argument("file", "FILE")
def deps(
    file: str,
    library_path: tuple[list[Path], ...],
    module_path: tuple[list[Path], ...],
    undefined: bool,
    unused: bool,
    demangle: bool | None,
    engine: str | None,
    as_json: bool,
) -> int:
    """Show the tree of libraries that a module needs, and where each was found.

    With --module-path, or if one of them lies beside it, of a module without a dylink section: the modules that it imports from
    by name. Nothing is compiled or run. Libraries opened at run time are not known beforehand.

    The exit code is 127 if a library is missing or, with -r, an import of some library would keep it from being linked; 1 if
    with -r functions are left that nothing defines, which are looked for when they are called, or with -u needs are left that
    serve nobody; else 0.
    """
    demangled = demangler(demangle)
    directories = search_path(library_path, file)
    image = image_of(file)
    runs_on = engine_named(engine or default_name()) if undefined else None
    top, complete = _tree_of(image, directories, module_path, runs_on)
    links: list[Link] | None = None
    if (undefined or unused) and complete:
        links = links_of(image, directories, module_path, engine=engine)
    if unused and links is not None:
        _mark_unused(top, links)
    open_links = [link for link in links or () if undefined and link.state not in ("linked", "weak")]
    if as_json:
        report = {**top.as_json(), "complete": complete}
        if undefined:
            report["undefined"] = None if links is None else [_link_as_json(o, demangled) for o in open_links]
        print(json.dumps(report, indent=2))
    else:
        title = Text(shown(top.name), style="bold")
        if top.error is not None:
            title.append(f": {shown(top.error)}", style="bold red")
        tree = Tree(title, guide_style="dim")
        _grow(tree, top)
        if not top.needs:
            tree.add("needs no libraries")
        output().print(tree)
        _print_undefined(open_links, demangled)
        if links is None and (undefined or unused):
            print_note("symbols are not looked at while libraries are missing or cannot be run")
    if not complete or any(link.state not in GOOD for link in open_links):
        return NOT_LINKED
    return NOT_FOUND if open_links or any(node.unused for node in top.below()) else 0


def _tree_of(
    image: ModuleImage,
    directories: list[Path],
    module_path: tuple[list[Path], ...],
    engine: Engine | None,
) -> tuple[Node, bool]:
    """Return the tree below a module, and whether all of it was found."""
    named = tree_by_name(image, module_path)
    if named is not None:
        return named
    walk = _Walk(Locator(directories), engine)
    return walk.tree(image), walk.complete


def _mark_unused(top: Node, links: list[Link]) -> None:
    """Note at each node whether the one above it is bound to a symbol of it."""
    used = {(link.importer, link.provider) for link in links}
    for node in top.below():
        for child in node.needs:
            child.unused = (node.path, child.path) not in used


def _link_as_json(link: Link, demangled: Demangler) -> dict[str, Any]:
    written = demangled(link.entry.name)
    return {
        "importer": link.importer,
        "module": link.entry.module,
        "name": link.entry.name,
        "demangled": None if written == link.entry.name else written,
        "kind": link.entry.kind,
        "type": str(link.entry.type),
        "state": link.state,
        "reason": link.meaning,
    }


def _print_undefined(links: list[Link], demangled: Demangler) -> None:
    console = output()
    for importer in dict.fromkeys(link.importer for link in links):
        console.print()
        console.print(Text(shown(importer), style="bold"))
        print_columns(
            console,
            [
                (
                    link.state,
                    f"{link.entry.module}.{demangled(link.entry.name)}",
                    str(link.entry.type),
                    link.meaning,
                )
                for link in links
                if link.importer == importer
            ],
        )


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
    if node.unused:
        line.append(" (unused)", style="bold yellow")
    if node.seen is not None:
        line.append(f" ({'cycle' if node.seen == CYCLE else 'shown above'})", style="dim")
    return line
