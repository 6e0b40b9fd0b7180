"""The README's promises: its commands are those of CI, its session prints that, its links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dl

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "fixtures/README.md",
]


def test_first_two_blocks_are_one_command_each() -> None:
    """The first block installs and runs a program of the fixtures, the second installs and tests."""
    (first_language, first), (second_language, second) = BLOCKS[:2]

    assert first_language == second_language == "sh"
    assert first.count("\n") == second.count("\n") == 1
    assert "pip install" in first
    assert "dlrun fixtures/" in first
    assert "pip install" in second
    assert re.search(r"\bpytest\b", second)


def test_ci_runs_exactly_the_commands_of_the_readme() -> None:
    """`.ci/run` has both commands word for word, each on a line of its own."""
    lines = [line.strip() for line in (ROOT / ".ci/run").read_text().splitlines()]

    for _, command in BLOCKS[:2]:
        assert command.strip() in lines


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_ci_is_a_script_that_can_be_started() -> None:
    """`.ci/run` is executable, and the shell finds nothing wrong with it."""
    assert os.access(ROOT / ".ci/run", os.X_OK)
    subprocess.run(["bash", "-n", str(ROOT / ".ci/run")], check=True, timeout=30)


def test_the_program_of_the_first_command_runs() -> None:
    """The program that the README starts with runs and has threads."""
    program = re.search(r"dlrun (\S+)", BLOCKS[0][1])
    assert program is not None
    done = subprocess.run(
        [sys.executable, "-m", "dl", program[1]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "thread" in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    """Every relative link of the documentation leads to a file, and a fragment to a heading of it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page

        assert file.exists(), target
        if fragment:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert fragment in slugs, target


def test_index_of_the_documentation_is_whole() -> None:
    """`docs/README.md` leads to every page of the documentation."""
    index = (ROOT / "docs/README.md").read_text()
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}

    assert [page for page in sorted(pages) if f"]({page})" not in index] == []


def test_version_is_the_same_everywhere() -> None:
    """The changelog knows the version of the distribution, or has it under Unreleased."""
    changelog = (ROOT / "CHANGELOG.md").read_text()

    assert 'version = { attr = "dl.__version__" }' in (ROOT / "pyproject.toml").read_text()
    assert f"## [{dl.__version__}]" in changelog or "## [Unreleased]" in changelog
