"""docs/wamr.md has all 88 rows, and each names tests that exist."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

TESTS = ROOT / "tests"
ROWS = [
    f"{part}{number}"
    for part, last in (("A", 23), ("B", 30), ("C", 16), ("D", 19))
    for number in range(1, last + 1)
]
COLUMNS = 5


def rows() -> list[list[str]]:
    """The rows of the tables, without heads."""
    lines = (ROOT / "docs/wamr.md").read_text(encoding="utf-8").splitlines()
    cells = [
        [c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines
        if re.match(r"\| [ABCD]\d+ \|", line)
    ]
    assert all(len(row) == COLUMNS for row in cells)
    return cells


@functools.cache
def functions(path: Path) -> set[str]:
    """What pytest collects from a file, as `name` and `Class::name`."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
    return found


def test_every_row_is_there_once() -> None:
    """All 88 rows, in order."""
    assert [row[0] for row in rows()] == ROWS
    assert len(ROWS) == 88


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_row_says_both_sides_and_names_tests(row: list[str]) -> None:
    """Each row says what happens here and there, and every test that it names is collected."""
    _, what, here, there, tests = row
    assert what
    assert here
    assert there
    named = re.findall(r"`([^`]+)`", tests)
    assert named
    assert ", ".join(f"`{name}`" for name in named) == tests
    for name in named:
        file, _, function = name.partition("::")
        assert function.rpartition("::")[2].startswith("test_")
        assert function in functions(TESTS / file), name
