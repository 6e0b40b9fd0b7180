"""The command as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dl.cli import main
from tests.support.command_line import DlRun
from tests.support.paths import ROOT


@pytest.fixture
def dlrun(tmp_path: Path) -> DlRun:
    """Runs `python -m dl` in an empty directory, as a process of its own."""

    def run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("environment", {})}
        return subprocess.run(
            [sys.executable, "-m", "dl", *words],
            env=environment,
            cwd=tmp_path,
            stdin=None if "input" in options else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **options,
        )

    return run


@pytest.fixture
def dlrun_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> DlRun:
    """Runs the command in this process, which takes a tenth of the time: for what runs no program, or a small one."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        capfdbinary.readouterr()
        code = main(words)
        out, err = capfdbinary.readouterr()
        return subprocess.CompletedProcess(words, code, out.decode(), err.decode())

    return run
