"""Completion as a shell does it: bash on a terminal of its own, with the script that dlrun prints, and keys pressed."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")

TAB, ERASE_LINE = "\t", "\x15"


class Terminal:
    """A shell on a terminal: what is typed goes in, and what it shows comes out."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def shows(self, typed: str, expected: str, seconds: float = 50) -> bool:
        """Type something; return whether what the shell shows from then on has a text in it within some time."""
        os.write(self._descriptor, typed.encode())
        shown, end = b"", time.monotonic() + seconds
        while expected.encode() not in shown:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._descriptor], [], [], left)[0]:
                print(shown)
                return False
            shown += os.read(self._descriptor, 65536)
        return True


@pytest.fixture
def bash(tmp_path: Path) -> Iterator[Terminal]:
    """An interactive bash that has the script of dlrun, in an empty directory."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin/dlrun"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m dl "$@"\n')
    command.chmod(0o755)
    (tmp_path / "rc").write_text("PS1='ready> '\neval \"$(_DLRUN_COMPLETE=bash_source dlrun)\"\n")
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "TERM": "dumb",
        "INPUTRC": os.devnull,
    }
    descriptor, theirs = pty.openpty()
    process = subprocess.Popen(
        ["bash", "--noprofile", "--rcfile", "rc", "-i"],
        cwd=tmp_path,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    try:
        terminal = Terminal(descriptor)
        assert terminal.shows("", "ready> ")
        yield terminal
    finally:
        process.kill()
        process.wait(30)
        os.close(theirs)
        os.close(descriptor)


def test_keys_complete_commands_options_values_and_files(bash: Terminal, tmp_path: Path) -> None:
    """A part of a command, of an option of running, of a command's option, of a value and of a file's name is completed."""
    (tmp_path / "program.wasm").write_bytes(b"")
    for typed, completed in (
        ("dlrun insp", "ect "),
        ("dlrun --memory-mi", "n "),
        ("dlrun deps --unde", "fined "),
        ("dlrun --guest-dlfcn el", "f "),
        ("dlrun prog", "ram.wasm "),
    ):
        assert bash.shows(ERASE_LINE + typed + TAB, typed + completed), typed
