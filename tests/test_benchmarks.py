"""The benchmarks' one entry point: comparing two runs, and drawing one."""

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


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the entry point."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_run_says_what_it_depends_on_and_compares_with_itself(tmp_path: Path) -> None:
    """A run of one program has machine, versions, others' share, medians and spread, and is no worse than itself."""
    pytest.importorskip("psutil")
    file = tmp_path / "run.json"
    done = command("all", "--only", "closures", "--rounds", "2", "--json", str(file))
    run = json.loads(file.read_text(encoding="utf-8"))

    assert "closures" in done.stdout
    assert {"python", "wasmtime", "engine", "machine", "processors"} <= set(run["machine"])
    assert 0 <= run["used by others"]["closures"] <= 1
    medians = run["summary"]["closures / nanoseconds / closure"]
    assert 0 < medians["least"] <= medians["lower quartile"] <= medians["median"] <= medians["most"]
    assert medians["samples"] == 2
    assert command("compare", str(file), str(file)).returncode == 0


def test_drawing_a_run_twice_gives_the_same_files(tmp_path: Path) -> None:
    """The run that is kept draws as one file for each question, with every series in it, and twice as the same bytes."""
    pytest.importorskip("matplotlib")
    drawn = []
    for folder in ("one", "two"):
        done = command("plots", "benchmarks/results.json", str(tmp_path / folder))
        assert done.returncode == 0, done.stderr
        drawn.append({path.name: path.read_text(encoding="utf-8") for path in (tmp_path / folder).iterdir()})

    assert drawn[0] == drawn[1]
    assert set(drawn[0]) == {
        f"{name}.svg" for name in ("open-time", "group-cost", "barrier", "wasi-calls", "pointer-calls")
    }
    assert all(word in drawn[0]["open-time.svg"] for word in ("cold", "cached", "warm", "the engine"))
    assert all(word in drawn[0]["wasi-calls.svg"] for word in ("random_get", "fd_pwrite"))
