"""The pages for the first hour are sessions: their files are written, their commands run, and print what the pages say."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        importlib.util.find_spec("ziglang") is None,
        reason="ziglang, the toolchain, is not installed (pip install 'wasix-dl[build]')",
    ),
]


@pytest.mark.parametrize("page", ["tutorial.md", "building.md"])
def test_a_page_is_a_session_that_works(tmp_path: Path, page: str) -> None:
    """A block with a file's name is that file; each `$` line of a console runs, and prints the lines below it."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    commands = 0
    (tmp_path / "bin").mkdir()
    for name, module in (("dlrun", "-m dl"), ("python", "")):
        command = tmp_path / "bin" / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        command.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    folder = tmp_path / "session"
    folder.mkdir()
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        language, *words = match[1].split()
        if words and "." in words[-1]:
            (folder / words[-1]).write_text(match[2])
        if language != "console":
            continue
        for part in re.split(r"^\$ ", match[2], flags=re.MULTILINE)[1:]:
            command_line, *lines = part.rstrip().splitlines()
            done = subprocess.run(
                ["sh", "-c", command_line],
                cwd=folder,
                env=env,
                capture_output=True,
                text=True,
                timeout=200,
                check=False,
            )
            assert (done.stdout + done.stderr).splitlines() == lines, command_line
            commands += 1

    assert commands >= 2
