"""What a word of the command line can be beside a binary file, and how a run is bounded."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support.command_line import HELLO, DlRun
from tests.support.modules import pie
from tests.support.paths import ROOT

EXIT_SEVEN = """
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func (export "_start") (call $exit (i32.const 7))))
"""


def test_text_is_accepted(dlrun: DlRun, tmp_path: Path) -> None:
    """A `.wat` file runs, is called and looked into like a binary one."""
    (tmp_path / "seven.wat").write_text(EXIT_SEVEN)

    assert dlrun("seven.wat").returncode == 7
    assert dlrun("--invoke", "add", "seven.wat", "40", "2").stdout == "42\n"
    assert "add" in dlrun("inspect", "seven.wat").stdout


def test_wrong_text_is_reported_with_its_place(dlrun: DlRun, tmp_path: Path) -> None:
    """One line names the file, and what the parser says."""
    (tmp_path / "wrong.wat").write_text("(module\n  (func (export)))")
    done = dlrun("wrong.wat")

    assert done.returncode == 127
    assert done.stderr.startswith("dlrun: error: wrong.wat: ")
    assert done.stderr.count("\n") == 1


def test_standard_input_is_a_program_too(dlrun: DlRun) -> None:
    """`-` reads text or a module from standard input."""
    assert dlrun("-", input=EXIT_SEVEN).returncode == 7
    assert "add" in dlrun("inspect", "-", input=EXIT_SEVEN).stdout


def test_pipes_are_read(dlrun: DlRun, tmp_path: Path) -> None:
    """What a shell's process substitution gives is looked into and run."""
    os.mkfifo(tmp_path / "pipe")

    def write() -> None:
        (tmp_path / "pipe").write_bytes(Path(HELLO).read_bytes())

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    done = dlrun("inspect", "pipe")
    writer.join(30)

    assert done.returncode == 0, done.stderr
    assert "libgreet.so" in done.stdout


def test_a_program_is_stopped_in_time(dlrun: DlRun, tmp_path: Path) -> None:
    """`--timeout` ends an endless program with one line and code 124, and leaves a quick one alone."""
    (tmp_path / "endless.wasm").write_bytes(pie('(func (export "_start") (loop $again (br $again)))'))
    done = dlrun("--timeout", "0.2", "endless.wasm")

    assert done.returncode == 124
    assert done.stderr == "dlrun: error: endless.wasm was stopped: it took longer than 0.2 seconds\n"
    (tmp_path / "seven.wat").write_text(EXIT_SEVEN)
    assert dlrun("--timeout", "60", "seven.wat").returncode == 7


@pytest.mark.skipif(os.name != "posix", reason="a shell")
def test_the_environment_is_inherited_on_request(tmp_path: Path) -> None:
    """`--inherit-env` passes on what there is; `--env` comes on top; without, a program sees nothing."""
    (tmp_path / "count.wat").write_text(
        """(module
        (import "wasi_snapshot_preview1" "environ_sizes_get" (func $sizes (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1)
        (func (export "_start") (drop (call $sizes (i32.const 0) (i32.const 4))) (call $exit (i32.load (i32.const 0)))))"""
    )

    def count(*words: str) -> int:
        return subprocess.run(
            [sys.executable, "-m", "dl", *words, "count.wat"],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "ONE": "1", "LC_ALL": "C.UTF-8"},
            timeout=60,
            check=False,
        ).returncode

    assert count() == 0
    assert count("--env", "ONE", "--env", "TWO=2") == 2
    assert count("--inherit-env", "--env", "ONE=other", "--env", "TWO=2") == 5
