"""`examples/cluster.py`, as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

pytest.importorskip("distributed", reason="the extra dask is not installed")
pytestmark = pytest.mark.timeout(120)


def run(*arguments: str) -> list[str]:
    """Run the example; return the lines that it prints."""
    done = subprocess.run(
        [sys.executable, "examples/cluster.py", *arguments],
        cwd=ROOT,
        # A killed worker that is not there again within 15 seconds would be given up for good.
        env={**os.environ, "DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT": "1 hour"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_it_says_how_it_is_used() -> None:
    """`--help` explains it."""
    assert any("--scheduler" in line for line in run("--help"))


def test_a_killed_worker_costs_no_result() -> None:
    """It prints what `docs/cluster.md` shows."""
    assert run("--workers", "2", "--items", "60") == [
        "worker processes: 2",
        "killed one after 20 results",
        "results: 60, all right: True",
        "worker processes: 2, of which new: 1",
        "results of the first processes: True",
        "an error as it was raised: TrapError: guest trapped: unreachable (in libtrap.so!fall)",
    ]
