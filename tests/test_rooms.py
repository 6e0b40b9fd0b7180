"""The rooms of `dl` and the one order of their imports, read from every import there is, those under TYPE_CHECKING too."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.imports import Graph, cycles, import_graph, imported_names, sources
from tests.support.paths import ROOT
from tests.support.rooms import FACADE, FLOOR, room_of

NAMESPACES = {
    "threads": "threads/__init__.py",
    "memory": "memory/__init__.py",
    # Imports anyio, which most programs do not need: so it is no part of `threads` itself.
    "threads.async_host": "threads/async_host.py",
}
"""What `dl` may import of the packages below it, and the file that says which names that has."""


@pytest.fixture(scope="module")
def graph() -> Graph:
    """Who imports whom in the tree."""
    return import_graph(ROOT)


def test_every_file_is_in_a_room_that_has_its_floor(graph: Graph) -> None:
    """A new folder or a new file beside the rooms gets its place in the order first."""
    assert {room_of(file) for file in graph} - FLOOR.keys() == set()


def test_no_arrow_runs_back_up(graph: Graph) -> None:
    """A file imports only what is on its own floor or on one below, also for types alone."""
    upwards = {
        (file, target)
        for file, targets in graph.items()
        for target in targets
        if FLOOR[room_of(target)] < FLOOR[room_of(file)]
    }

    assert upwards == set()


def test_no_cycle_of_files_crosses_a_room(graph: Graph) -> None:
    """Files that need each other, if only for their types, are in one room and can be read together."""
    rooms = [{room_of(file) for file in files} for files in cycles(graph)]

    assert [crossed for crossed in rooms if len(crossed) > 1 and not crossed <= FACADE] == []


def exported(namespace: str) -> set[str]:
    """Return the names in `__all__` of a namespace."""
    for node in ast.parse((ROOT / NAMESPACES[namespace]).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    raise AssertionError(f"{namespace} has no __all__")


def test_the_packages_below_are_used_through_their_doors() -> None:
    """`dl` imports of `threads` and `memory` only what these packages export."""
    inside = set()
    for path in sources(ROOT):
        file = path.relative_to(ROOT).as_posix()
        for module, name in imported_names(path):
            if not file.startswith("dl/") or module.partition(".")[0] not in ("threads", "memory"):
                continue
            if module not in NAMESPACES or (name is not None and name not in exported(module)):
                inside.add((file, module if module not in NAMESPACES else f"{module}.{name}"))

    assert inside == set()


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"a"}, "c": {"a"}}, [["a", "b"]]),
        ({"a": {"b"}, "b": {"c", "a"}, "c": {"a"}, "d": {"e"}, "e": {"d"}}, [["a", "b", "c"], ["d", "e"]]),
    ],
)
def test_cycles_are_found(graph: Graph, expected: list[list[str]]) -> None:
    """The search for cycles finds each largest one, and none where there is none."""
    assert cycles(graph) == expected


def test_imports_are_found_wherever_they_are(tmp_path: Path) -> None:
    """An import counts under TYPE_CHECKING and inside a function too, by the file that it reaches."""
    (tmp_path / "dl/wasm").mkdir(parents=True)
    for name in ("errors", "wasm/__init__", "wasm/types", "linker"):
        (tmp_path / f"dl/{name}.py").write_text("")
    (tmp_path / "dl/group.py").write_text(
        "import os\n"
        "from typing import TYPE_CHECKING\n"
        "from dl.wasm import types\n"
        "if TYPE_CHECKING:\n    from dl.linker import Linker\n"
        "def late():\n    import dl.errors\n    from dl.wasm import NAME\n"
    )

    assert import_graph(tmp_path)["dl/group.py"] == {
        "dl/wasm/types.py",
        "dl/linker.py",
        "dl/errors.py",
        "dl/wasm/__init__.py",
    }
