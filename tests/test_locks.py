"""The table of locks in `docs/locking.md` and the locks in the sources are the same."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.support.imports import sources
from tests.support.paths import ROOT

PAGE = ROOT / "docs/locking.md"
MAKERS = re.compile(r"(.*\.)?(\w*Lock|Condition|(Bounded)?Semaphore|Barrier|Turn|platform\.(lock|wake))")
"""What makes a lock when it is called."""


def makes_a_lock(node: ast.expr) -> bool:
    """Tell whether an expression is a new lock, or the default of a dataclass field that is one."""
    if not isinstance(node, ast.Call):
        return False
    made_by = [node.func, *(word.value for word in node.keywords if word.arg == "default_factory")]
    return any(MAKERS.fullmatch(ast.unparse(function)) for function in made_by)


def locks_of(module: str, tree: ast.Module) -> Iterator[str]:
    """Yield the locks that a module makes, as `module.Class.attribute` or `module.name`; one without a name by its line."""

    def within(node: ast.AST, owner: str) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                yield from within(child, f"{module}.{child.name}")
            elif (
                isinstance(child, ast.Assign | ast.AnnAssign)
                and child.value is not None
                and makes_a_lock(child.value)
            ):
                target = child.targets[0] if isinstance(child, ast.Assign) else child.target
                yield f"{owner}.{ast.unparse(target).removeprefix('self.')}"
            elif isinstance(child, ast.expr) and makes_a_lock(child):
                yield f"{owner}.(line {child.lineno})"
            else:
                yield from within(child, owner)

    yield from within(tree, module)


def made() -> list[str]:
    """Return the locks of the tree."""
    found: list[str] = []
    for path in sources(ROOT):
        if path.match("threads/testing/*.py") or path.match("threads/scheduler.py"):
            continue  # tools that run threads one at a time, and no part of a program
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found += locks_of(module, ast.parse(path.read_text(encoding="utf-8")))
    return sorted(found)


def documented() -> list[str]:
    """Return the locks that have a row: the names in the first column of tables that begin with `lock`."""
    names = []
    table = False
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells:
            table = False
        elif cells[0] == "lock":
            table = True
        elif table and not cells[0].startswith("---"):
            names += re.findall(r"`((?:dl|threads|memory)\.[\w.]+)`", cells[0])
    return sorted(names)


def test_every_lock_has_exactly_one_row() -> None:
    """Each lock made in `dl`, `threads` and `memory` has its row, and each row names a lock that is made."""
    assert documented() == made()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("_lock = threading.Lock()", ["m._lock"]),
        ("class A:\n def __init__(self):\n  self._lock: LockLike = platform.lock()", ["m.A._lock"]),
        ("class A:\n  lock: Lock = field(default_factory=threading.Lock)", ["m.A.lock"]),
        ("class A:\n def f(self):\n  return Lock()", ["m.A.(line 3)"]),
        ("with threading.RLock(): pass", ["m.(line 1)"]),
        ("lock = rendezvous.instigate\nwith lock(replica): pass", []),
        ("class A:\n lock = WasiLock()", ["m.A.lock"]),
        ("def f():\n with self._lock:\n  event = threading.Event()", []),
    ],
)
def test_locks_are_found_however_they_are_made(code: str, expected: list[str]) -> None:
    """A lock is found in a module, a class, a dataclass and in the middle of an expression, and using one makes none."""
    assert list(locks_of("m", ast.parse(code))) == expected


def test_the_page_says_what_a_lock_may_take() -> None:
    """Every row of the table of locks has all its columns filled in."""
    rows = [
        line
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if re.match(r"\| (\w[\w ]*, )?`(dl|threads|memory)\.[\w.]+`", line)
    ]

    assert rows
    assert [row for row in rows if not all(cell.strip() for cell in row.split("|")[1:-1])] == []
