"""Completion as shells do it: each on a terminal of its own, with the script that dlrun prints, and keys pressed."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

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


SHELLS = {
    "bash": (
        ["bash", "--noprofile", "--rcfile", "rc", "-i"],
        "PS1='ready> '\neval \"$(_DLRUN_COMPLETE=bash_source dlrun)\"\n",
    ),
    "zsh": (
        ["zsh", "-i"],
        "PS1='ready> '\nautoload -Uz compinit\ncompinit -u -D\neval \"$(_DLRUN_COMPLETE=zsh_source dlrun)\"\n",
    ),
    "fish": (
        ["fish", "--no-config", "-i", "-C", "source rc"],
        "function fish_prompt; printf 'ready> '; end\nset -g fish_greeting\nset -g fish_autosuggestion_enabled 0\n"
        "_DLRUN_COMPLETE=fish_source dlrun | source\n",
    ),
}
"""How each shell begins, interactive and without the user's own files, and what it reads then."""


@pytest.fixture(params=[shell for shell in SHELLS if shutil.which(shell)])
def shell(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Terminal]:
    """An interactive shell that has the script of dlrun, in an empty directory."""
    argv, rc = SHELLS[request.param]
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin/dlrun"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m dl "$@"\n')
    command.chmod(0o755)
    (tmp_path / "rc").write_text(rc)
    (tmp_path / ".zshrc").write_text(rc)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "TERM": "xterm" if request.param == "fish" else "dumb",
        "INPUTRC": os.devnull,
        "ZDOTDIR": str(tmp_path),
        "HOME": str(tmp_path),
    }
    descriptor, theirs = pty.openpty()
    process = subprocess.Popen(
        argv,
        cwd=tmp_path,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  which fish insists on
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


def test_keys_complete_commands_options_values_and_files(shell: Terminal, tmp_path: Path) -> None:
    """A part of a command, of an option of running, of a command's option, of a value and of a file's name is completed."""
    (tmp_path / "program.wasm").write_bytes(b"")
    for typed, completed in (
        ("dlrun insp", "ect "),
        ("dlrun --memory-mi", "n "),
        ("dlrun deps --unde", "fined "),
        ("dlrun --guest-dlfcn el", "f "),
        ("dlrun prog", "ram.wasm "),
        ("dlrun inspect prog", "ram.wasm "),
        ("dlrun explain prog", "ram.wasm "),
        ("dlrun new ", "plugin-host "),
        ("dlrun --trace=fi", "les "),
        ("dlrun run --trace-output=prog", "ram.wasm "),
        ("dlrun --guest-dlfcn=el", "f "),
    ):
        assert shell.shows(ERASE_LINE + typed + TAB, typed + completed), typed
