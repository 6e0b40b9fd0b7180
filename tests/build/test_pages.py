"""The pages for the first hour are sessions: their files are written, their commands run, and print what the pages say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import blocks
from tests.support.paths import ROOT

pytestmark = pytest.mark.timeout(400)

SESSIONS = {
    page: [block for block in blocks([page]) if block.language == "console" or block.file]
    for page in dict.fromkeys(block.page for block in blocks() if block.language == "console")
}


def test_there_are_sessions() -> None:
    """The pages for the first hour are among those whose commands run."""
    assert {"README.md", "tutorial.md", "building.md"} <= {page.name for page in SESSIONS}


@pytest.mark.parametrize("page", SESSIONS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_is_a_session_that_works(tmp_path: Path, page: Path) -> None:
    """A block with a file's name is that file; each `$` line of a console runs and prints what is below it; `…` is for more."""
    code = "".join(block.code for block in SESSIONS[page])
    for word, package in (("dlrun c", "ziglang"), ("import numpy", "numpy"), ("import trio", "trio")):
        if word in code:
            pytest.importorskip(package)
    (tmp_path / "bin").mkdir()
    for name, module in (("dlrun", "-m dl"), ("python", "")):
        command = tmp_path / "bin" / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        command.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    folder = tmp_path / "session"
    folder.mkdir()
    for shared in ("fixtures", "examples"):
        (folder / shared).symlink_to(ROOT / shared)
    for block in SESSIONS[page]:
        if block.file:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(block.code)
        if block.language != "console" or block.is_sketch:
            continue
        for part in re.split(r"^\$ ", block.code, flags=re.MULTILINE)[1:]:
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
            printed = (done.stdout + done.stderr).splitlines()
            pattern = "\n".join(".*" if line == "…" else re.escape(line) for line in lines)

            assert re.fullmatch(pattern, "\n".join(printed), re.DOTALL), (
                f"{block.where}: {command_line}: {printed}"
            )
