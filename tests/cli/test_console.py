"""Terminals and pipes: colours, names that would control the terminal, and readers that go away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command_line import GREET, MEM_INFO, PLUGINS, DlRun, library, needed
from tests.support.paths import ROOT


def test_inspect_is_plain_text_when_it_is_no_terminal(dlrun: DlRun) -> None:
    """Into a pipe no colours are written and no line is wrapped, even if a colour is demanded."""
    done = dlrun("inspect", PLUGINS, environment={"FORCE_COLOR": "1", "COLUMNS": "20"})

    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert any(len(line) > 60 for line in done.stdout.splitlines())
    assert all(line == line.rstrip() for line in done.stdout.splitlines())


def test_names_in_a_module_cannot_control_the_terminal(tmp_path: Path, dlrun: DlRun) -> None:
    """Control characters in names are written as escapes, in listings and in errors."""
    path = tmp_path / "evil.so"
    path.write_bytes(library(MEM_INFO, needed("lib\x1b]0;owned\x07\nkind  safe.so")))

    for command in (["inspect"], ["deps"], []):
        done = dlrun(*command, str(path))
        text = done.stdout + done.stderr

        assert "\x1b" not in text
        assert "\x07" not in text
        assert "lib\\x1b]0;owned\\x07\\nkind  safe.so" in text


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("variable", "colours"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_are_for_terminals_that_want_them(variable: dict[str, str], colours: bool) -> None:
    """On a terminal the listing has colours, unless NO_COLOR is set."""
    import pty

    master, slave = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM")}
    with subprocess.Popen(
        [sys.executable, "-m", "dl", "inspect", GREET],
        stdout=slave,
        stdin=subprocess.DEVNULL,
        env={**environment, "TERM": "xterm-256color", **variable},
        cwd=ROOT,
    ) as process:
        os.close(slave)
        written = b""
        while True:
            try:
                chunk = os.read(master, 65536)
            except OSError:
                break
            if not chunk:
                break
            written += chunk
        process.wait(timeout=60)
    os.close(master)

    assert (b"\x1b[36m" in written) == colours
    assert b"libgreet.so" in written


def test_nobody_reading_is_no_error(tmp_path: Path) -> None:
    """When the reader of a pipe goes away, the command ends quietly with 141."""
    reading, writing = os.pipe()
    os.close(reading)
    with subprocess.Popen(
        [sys.executable, "-m", "dl", "inspect", PLUGINS], stdout=writing, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        os.close(writing)
        _, messages = process.communicate(timeout=60)

    assert (process.returncode, messages) == (141, b"")
