"""The distribution: its import names, its version, and what it says of itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import dl
from tests.support.paths import FIXTURES, ROOT

HELLO = FIXTURES / "hello/unshared/main.wasm"


def python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, which is then the first place to import from."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("name", ["threads", "memory"])
def test_a_file_of_the_users_with_one_of_our_names_is_named(tmp_path: Path, name: str) -> None:
    """A program beside a `threads.py` or `memory.py` of its own is told which file is in the way, and so is `python -m dl`."""
    (tmp_path / f"{name}.py").write_text("mine = 1\n")
    (tmp_path / "app.py").write_text("import dl\ndl.Linker(None)\n")
    said = f"{name!r} is {tmp_path / name}.py, and not the package of this name that belongs to wasix-dl; rename that file"
    done = python(tmp_path, "app.py")
    assert done.returncode == 1
    assert f"dl.conflicts.ImportNameError: {said}" in done.stderr
    done = python(tmp_path, "-m", "dl", str(HELLO))
    assert done.returncode == 70
    assert done.stderr.startswith(f"dlrun: error: {said}")
    assert done.stderr.count("\n") == 1


def test_the_typed_example_runs() -> None:
    """The program that `scripts/package` gives to the type checker does what it says."""
    done = python(ROOT, "examples/typed_host.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("[0, 2, 4, 6]\n")


def test_another_failing_import_keeps_its_own_words(tmp_path: Path) -> None:
    """An engine's package that is missing or broken is not taken for a conflict of names."""
    (tmp_path / "wasmtime.py").write_text("raise ImportError('broken here')\n")
    done = python(tmp_path, "-m", "dl", str(HELLO))
    assert "broken here" in done.stderr
    assert "not the package of this name" not in done.stderr


def test_the_version_stands_in_one_place() -> None:
    """`dl.__version__` is a version, and the distribution's is taken from there."""
    assert re.fullmatch(r"\d+\.\d+\.\d+", dl.__version__)
    assert 'version = { attr = "dl.__version__" }' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_description_of_the_distribution() -> None:
    """It names an author, the oldest Python that `requires-python` allows, the operating system, and that it has types."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    oldest = re.search(r'requires-python = ">=(.*)"', text)
    assert oldest
    for line in (
        "Typing :: Typed",
        "Operating System :: POSIX :: Linux",
        f"Programming Language :: Python :: {oldest[1]}",
    ):
        assert f'"{line}"' in text
    assert "authors = [" in text
    for package in ("dl", "threads", "memory"):
        assert (ROOT / package / "py.typed").exists()
