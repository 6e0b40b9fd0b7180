"""The code in README.md and in docs/ runs, has types, and names files that exist. Sessions: `tests/build/test_pages.py`."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dl
from tests.support.collected import classes, functions
from tests.support.pages import PAGES, Block, blocks
from tests.support.paths import ROOT

LANGUAGES = {"python", "sh", "console", "text", "toml", "c", "c++", "rust", "zig"}

BLOCKS = blocks()
PYTHON = [block for block in BLOCKS if block.language == "python" and not block.file and not block.is_sketch]
SHELL = [block for block in BLOCKS if block.language == "sh"]


def test_every_block_has_a_language() -> None:
    """Each block says what it is, so that none is left out because nothing knows how to try it."""
    assert [(block.where, block.language) for block in BLOCKS if block.language not in LANGUAGES] == []
    assert len(PYTHON) >= 3


def test_each_block_is_run_or_says_that_it_is_not() -> None:
    """A block is run, a file of a session, a command of CI, an install, data that is read, or a sketch that says so."""
    sessions = {block.page for block in BLOCKS if block.language == "console"}
    by_ci = {line.strip() for line in (ROOT / ".ci/run").read_text().splitlines()}
    left = []
    for block in BLOCKS:
        lines = [line for line in block.code.splitlines() if line.strip()]
        if block.is_sketch or block.language == "console" or block in PYTHON:
            continue
        if block.file and block.page in sessions:
            continue
        if block.language == "sh" and all(line in by_ci or INSTALL.fullmatch(line) for line in lines):
            continue
        if block.language == "toml" or (
            block.language == "text" and not any(COMMAND.match(line) for line in lines)
        ):
            continue
        left.append(block.where)

    assert left == []


INSTALL = re.compile(r"pip install 'wasix-dl\[(\w+)\]'")
COMMAND = re.compile(r"\$ |(sudo|pip|python|npm|cargo|rustup|clang|wasm-ld|emcc|\.?/?scripts/\w+) ")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the standard library reads TOML since 3.11")
def test_data_can_be_read() -> None:
    """A block of TOML is TOML."""
    tomllib = pytest.importorskip("tomllib")
    for block in BLOCKS:
        if block.language == "toml":
            assert tomllib.loads(block.code), block.where


def test_what_is_to_be_installed_exists() -> None:
    """Each extra that a page tells to install is one of the distribution."""
    project = (ROOT / "pyproject.toml").read_text()
    listed = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = re.findall(r"^(\w+) = \[", listed, re.MULTILINE)
    named = {name for page in PAGES for name in re.findall(r"wasix-dl\[(\w+)\]", page.read_text())}

    assert named - set(extras) == set()


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
    for number, block in enumerate(
        block for block in BLOCKS if block.language == "python" and not block.is_sketch
    ):
        # A file keeps its name, by which others of its page import it; two pages may have files of one name.
        name = block.file if block.file and not (tmp_path / block.file).exists() else f"block{number}.py"
        (tmp_path / name).write_text(block.code)
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


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.where)
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

    assert {name for name in named if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize(
    "page",
    [*PAGES, ROOT / "CHANGELOG.md", ROOT / "scripts/freethreaded"],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_tests_that_a_page_names_exist(page: Path) -> None:
    """A test that is named by its file, `FILE::TEST` or `FILE::CLASS`, is one that pytest collects from that file."""
    named = re.findall(r"((?:\w+/)*test_\w+\.py)::(\w+(?:::\w+)?)", page.read_text(encoding="utf-8"))

    gone = []
    for file, name in named:
        path = ROOT / "tests" / file.removeprefix("tests/")
        if name not in functions(path) | classes(path):
            gone.append(f"{file}::{name}")
    assert gone == []


def test_the_bounds_in_the_documentation_are_those_of_the_code() -> None:
    """`docs/security.md` has a row for each attribute of `dl.Limits`, with its option and its default."""
    page = (ROOT / "docs/security.md").read_text()
    rows = re.findall(r"^\|[^|]*\| `(\w+)`[^|]*\| `(--max-[\w-]+)[^|]*\| ([^|]*) \|", page, re.MULTILINE)
    units = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
    said = {}
    for name, option, text in rows:
        number, unit = re.findall(r"^([\d,]+)(?: (\w+))?", text)[0]
        said[name] = (option, int(number.replace(",", "")) * units.get(unit, 1))

    assert said == {
        each.name: (f"--{each.metadata['option']}", each.default) for each in dataclasses.fields(dl.Limits)
    }
