"""What every test owes its reader: one sentence that says what is claimed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

FILES = sorted((ROOT / "tests").rglob("test_*.py"))


def functions_of(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield the test functions of a file, those of classes too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node


def fault_of(claim: str | None) -> str | None:
    """Say what is wrong with a docstring as a claim, or None."""
    if claim is None:
        return "has no docstring"
    text = " ".join(claim.split())
    if not text.endswith("."):
        return "does not end with a full stop"
    if re.search(r"[.!?]\s+[A-Z`$_]", text):
        return "is more than one sentence"
    return None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "tests")))
def test_every_test_states_its_claim_in_one_sentence(path: Path) -> None:
    """Each test function has a docstring of exactly one sentence."""
    faults = {test.name: fault for test in functions_of(path) if (fault := fault_of(ast.get_docstring(test)))}

    assert faults == {}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "tests")))
def test_every_file_of_tests_says_what_it_is_about(path: Path) -> None:
    """Each file of tests has a docstring."""
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("claim", "fault"),
    [
        (None, "has no docstring"),
        ("A load is one step", "does not end with a full stop"),
        ("A load is one step. It is over soon.", "is more than one sentence"),
        ("A load, e.g. of a.so, is one step.", None),
    ],
)
def test_a_faulty_claim_is_found(claim: str | None, fault: str | None) -> None:
    """A missing docstring, a sentence without its end and a second sentence are each found."""
    assert fault_of(claim) == fault
