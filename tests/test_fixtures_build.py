"""The committed fixtures are what their sources build to, with nothing of the building machine in them."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
BINARIES = sorted(p for p in FIXTURES.rglob("*") if p.suffix in {".wasm", ".so"})
needs_toolchain = pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None,
    reason="ziglang, the toolchain of the fixtures, is not installed (pip install 'wasix-dl[build]')",
)


def build(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FIXTURES / "build.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=580)


@needs_toolchain
@pytest.mark.timeout(600)
def test_committed_files_equal_a_fresh_build() -> None:
    """Every committed binary is byte for byte what the pinned toolchain makes of the sources."""
    done = build("--check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stale" not in done.stdout


@needs_toolchain
def test_an_unknown_case_is_refused_by_name() -> None:
    """`--only` with a case that does not exist names it and lists those that do."""
    done = build("--only", "nothing-like-it")
    assert done.returncode == 2
    assert "nothing-like-it" in done.stderr
    assert "hello" in done.stderr


def test_a_missing_toolchain_is_named_with_its_version(tmp_path: Path) -> None:
    """Without ziglang the build says which extra to install, and the version that it is pinned to."""
    script = FIXTURES / "build.py"
    hide = f"import runpy, sys; sys.modules['ziglang'] = None; sys.path.insert(0, {str(FIXTURES)!r})\n"
    run = f"sys.argv = ['build.py']; runpy.run_path({str(script)!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", hide + run],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=60,
    )
    assert done.returncode == 2
    assert re.search(
        r"pip install 'wasix-dl\[build\]', which is ziglang==\d+\.\d+\.\d+$", done.stderr.rstrip()
    )
    assert "Traceback" not in done.stderr


def test_no_binary_names_a_folder_of_the_building_machine() -> None:
    """No fixture contains an absolute path of the machine it was built on."""
    assert len(BINARIES) > 100
    pattern = re.compile(rb"/(?:opt|home|root|tmp|work)/[\w.-]+")
    assert {p.name: m[0] for p in BINARIES if (m := pattern.search(p.read_bytes()))} == {}


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*/case.json")), ids=lambda p: p.parent.name)
def test_every_run_of_a_case_has_its_files(path: Path) -> None:
    """Each run in a case.json has a name of its own, and its program and folders exist in every memory kind."""
    runs = json.loads(path.read_text(encoding="utf-8"))
    known = {"name", "main", "memory", "args", "env", "library_path", "stdin", "preopens", "threads"}
    known |= {"stdout", "exit_code", "ends", "files", "by_name", "wamr_mode"}
    assert len({run["name"] for run in runs}) == len(runs)
    for run in runs:
        assert set(run) <= known
        assert set(run["memory"]) <= {"shared", "unshared"}
        for memory in run["memory"]:
            assert (path.parent / memory / run["main"]).is_file()
        for folder in run.get("preopens", {}).values():
            assert folder is None or (path.parent / folder).is_dir()
