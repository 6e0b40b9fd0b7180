"""Who imports whom, read from the sources: those under TYPE_CHECKING and inside functions too."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

PACKAGES = ("dl", "threads", "memory")

Graph = dict[str, set[str]]
"""File → the files of ours that it imports, each as a path from the root of the checkout."""


def sources(root: Path) -> list[Path]:
    """Return the files of the packages of a checkout, in order."""
    return sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))


def imported_names(path: Path) -> Iterator[tuple[str, str | None]]:
    """Yield what a file imports, wherever in it: a module, and the name taken from it if there is one."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((name.name, None) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from ((node.module or "", name.name) for name in node.names)


def file_of(root: Path, module: str) -> str | None:
    """Return the file of a module of ours, or None."""
    plain = Path(*module.split("."))
    for path in (plain.with_suffix(".py"), plain / "__init__.py"):
        if plain.parts[0] in PACKAGES and (root / path).exists():
            return path.as_posix()
    return None


def import_graph(root: Path) -> Graph:
    """Return who imports whom in a checkout."""
    graph: Graph = {}
    for path in sources(root):
        name = path.relative_to(root).as_posix()
        graph[name] = set()
        for module, taken in imported_names(path):
            target = (file_of(root, f"{module}.{taken}") if taken else None) or file_of(root, module)
            if target is not None and target != name:
                graph[name].add(target)
    return graph


def cycles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return the largest sets of files in which each reaches each, in order of their size (Tarjan's algorithm)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in number:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], number[target])
        if low[node] == number[node]:
            members = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(members) > 1:
                found.append(sorted(members))

    for node in sorted(graph):
        if node not in number:
            visit(node)
    return sorted(found, key=lambda members: (-len(members), members))
