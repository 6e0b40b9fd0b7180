"""The comparison of two runs of the benchmarks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

MACHINE = {"machine": "x"}


def compared(tmp_path: Path, old: list[float], new: list[float]) -> subprocess.CompletedProcess[str]:
    """Compare two runs that have one series."""
    files = []
    for name, samples in (("old", old), ("new", new)):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(
            json.dumps({"machine": MACHINE, "programs": {"calls": {"µs": {"one": samples}}}})
        )
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/run.py"), "compare", *map(str, files)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("old", "new", "code", "word"),
    [
        ([10.0, 10.1, 10.2, 30.0], [10.3, 10.4, 10.5, 99.0], 0, "worse: 0 of 1"),
        ([10.0, 10.1, 10.2, 30.0], [12.0, 12.1, 12.2, 12.3], 1, "worse: 1 of 1"),
        ([10.0, 14.0, 15.0, 16.0], [12.0, 12.1, 12.2, 12.3], 0, "worse: 0 of 1"),
        ([12.0, 12.1, 12.2, 12.3], [10.0, 10.1, 10.2, 30.0], 0, "better: 1 of 1"),
    ],
)
def test_only_what_exceeds_the_noise_counts(
    old: list[float], new: list[float], code: int, word: str, tmp_path: Path
) -> None:
    """A series is worse if its fastest sample is, by more than 5 % and more than its samples differ anyway."""
    done = compared(tmp_path, old, new)

    assert done.returncode == code, done.stderr
    assert word in done.stdout
