"""The code in README.md and in docs/ runs, has types, and names files that exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*/README.md"))]
LANGUAGES = {"python", "sh", "console", "text", "toml", "c", "c++"}

# To be removed: files that a page names and that are being made.
COMING = {"tests/contracts/", "tests/threads/"}


class Block(NamedTuple):
    """A block of code in a page.

    Attributes:
        where: page and line.
        language: the first word behind the fence.
        sketch: whether it says of itself, by the word `sketch` behind its language, that it cannot run.
        code: its lines.
    """

    where: str
    language: str
    sketch: bool
    code: str


def blocks() -> list[Block]:
    """Return the blocks of all pages."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            words = match[1].split()
            where = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}"
            found.append(Block(where, words[0] if words else "", "sketch" in words, match[2]))
    return found


PYTHON = [block for block in blocks() if block.language == "python" and not block.sketch]


def test_every_block_has_a_language() -> None:
    """Each block says what it is, so that none is left out because nothing knows how to try it."""
    assert [(block.where, block.language) for block in blocks() if block.language not in LANGUAGES] == []
    assert len(PYTHON) >= 3


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.where)
def test_a_python_block_prints_what_its_comments_promise(block: Block) -> None:
    """Each block of Python runs from the checkout as it is, and prints what stands behind its calls of `print`."""
    done = subprocess.run(
        [sys.executable, "-c", block.code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    promised = [comment.strip() for comment in re.findall(r"print\(.*\)\s+# (.*)", block.code)]

    assert done.returncode == 0, done.stderr
    assert promised
    assert done.stdout.splitlines()[-len(promised) :] == promised


@pytest.mark.timeout(300)
def test_python_blocks_pass_the_strict_type_checker(tmp_path: Path) -> None:
    """What a user copies from a page passes `mypy --strict`."""
    pytest.importorskip("mypy")
    for number, block in enumerate(PYTHON):
        (tmp_path / f"block{number}.py").write_text(block.code)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}/cache", "."],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": f"{ROOT}:{ROOT / 'examples'}"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "block", [block for block in blocks() if block.language == "sh"], ids=lambda block: block.where
)
def test_a_shell_block_names_scripts_that_exist(block: Block) -> None:
    """Each block of shell commands is shell, and the files of the checkout that it starts are there."""
    subprocess.run(["bash", "-n", "-c", block.code], check=True, timeout=30)
    named = re.findall(r"\b(?:scripts|benchmarks|examples|fixtures|tests)/[\w./-]+", block.code)

    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    "page",
    [
        page for page in PAGES if page.name != "behaviours.md"
    ],  # names tests and fixtures, and has a test of its own
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_files_that_a_page_names_exist(page: Path) -> None:
    """A path in backquotes that begins at the root of the checkout leads to something."""
    text = page.read_text(encoding="utf-8")
    named = re.findall(
        r"`((?:dl|threads|memory|tests|scripts|benchmarks|examples|docs)/[\w./-]+)(?:::[\w:]+)?`", text
    )

    assert {name for name in named if not (ROOT / name).exists()} - COMING == set()
