"""The programs of examples/ and benchmarks/ say what they are asked to do before they do it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PROGRAMS = sorted(
    path
    for folder in ("examples", "benchmarks")
    for path in (ROOT / folder).glob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)


OF_EXTRAS = (
    "dask",
    "distributed",
    "elftools",
    "hypothesis",
    "matplotlib",
    "mkdocs",
    "numpy",
    "psutil",
    "pytest",
    "trio",
    "uvicorn",
    "ziglang",
)
"""What a fresh installation has not."""


def test_there_are_programs() -> None:
    """Both folders have some, so that the test below asks somebody."""
    assert {path.parent.name for path in PROGRAMS} == {"examples", "benchmarks"}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_program_answers_help(program: Path, tmp_path: Path) -> None:
    """`--help` prints the usage on standard output, does nothing else, and ends with 0, also where no extra is installed."""
    for name in OF_EXTRAS:
        text = f"raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')"
        (tmp_path / f"{name}.py").write_text(text)
    done = subprocess.run(
        [sys.executable, str(program), "--help"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.lower().startswith("usage: "), done.stdout
    assert "--help" in done.stdout
