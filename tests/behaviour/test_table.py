"""The table of behaviours names tests that exist, and leaves no behaviour without a test or a reason."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path, PurePosixPath

import pytest

from tests.support.collected import functions

TESTS = Path(__file__).resolve().parents[1]
FIXTURES = TESTS.parent / "fixtures"
PAGE = TESTS.parent / "docs" / "behaviours.md"

EMSCRIPTEN_CASES = 83
COLUMNS = 4
NOT_OURS = "does not apply: "


def rows() -> list[list[str]]:
    """The table's rows, without heads."""
    cells = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    heads = {"group", "#", "---"}
    return [row for row in cells if row[0] not in heads]


@functools.cache
def runs(case: str) -> set[str]:
    """The runs of a fixture."""
    path = FIXTURES / case / "case.json"
    return {run["name"] for run in json.loads(path.read_text())} if path.exists() else set()


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[1][:40])
def test_a_behaviour_has_tests_or_a_reason(row: list[str]) -> None:
    """Each test in a row exists, as a function that is collected or as a run of a fixture; a row without any has a reason."""
    assert len(row) == COLUMNS
    named = re.findall(r"`([^`]+)`", row[3])
    assert ", ".join(f"`{name}`" for name in named) == row[3]
    assert bool(named) != row[2].startswith(NOT_OURS)
    for name in named:
        if "::" in name:
            file, _, function = name.partition("::")
            assert PurePosixPath(file).name.startswith("test_")
            assert function in functions(TESTS / file), name
        else:
            case, _, run = name.partition("/")
            assert run in runs(case), name


def test_every_case_has_its_row() -> None:
    """The numbered cases are all there, in order, and none is there twice."""
    numbers = [int(row[0]) for row in rows() if row[0].isdigit()]

    assert numbers == list(range(1, EMSCRIPTEN_CASES + 1))


def test_every_run_for_the_table_is_in_it() -> None:
    """The programs that were made for this table are used in it, each run at least once."""
    named = {name for row in rows() for name in re.findall(r"`behaviours/([^`]+)`", row[3])}

    assert named == runs("behaviours")
