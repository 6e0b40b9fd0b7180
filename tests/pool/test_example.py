"""`examples/process_pool.py`, as a user runs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.timeout(120)


def run(*arguments: str) -> str:
    """Run the example; return what it prints."""
    done = subprocess.run(
        [sys.executable, "examples/process_pool.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_it_says_how_it_is_used() -> None:
    """`--help` explains it."""
    assert "--workers" in run("--help")


def test_it_runs_functions_in_other_processes() -> None:
    """Results, typed errors and a death are as its lines say."""
    assert run("--items", "20").splitlines() == [
        "sum of all: 380",
        "another process: True",
        "fail: LibraryNotFoundError",
        "die: WorkerLostError",
        "and on it goes: 5",
    ]
