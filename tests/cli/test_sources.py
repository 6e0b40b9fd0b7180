"""What a word of the command line can be beside a binary file, and how a run is bounded."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support.command_line import HELLO, DlRun
from tests.support.modules import MEMORY, library, pie
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


def test_memory_of_a_program_from_standard_input(dlrun: DlRun) -> None:
    """A program that can be read only once gets the memory that was asked for, like one in a file."""
    program = """(module (import "env" "memory" (memory 1 100))
      (func (export "_start") (drop (i32.load (i32.const 0x1f0000)))))"""

    assert dlrun("--memory-min", "2M", "-", input=program).returncode == 0
    assert dlrun("-", input=program).returncode == 134


def test_empty_standard_input_is_an_empty_module(dlrun: DlRun) -> None:
    """Nothing on standard input is reported as such, and not as a file that is missing."""
    done = dlrun("-", input="")

    assert done.returncode == 127
    assert done.stderr == "dlrun: error: -: malformed at byte 0x0: the file is empty\n"


def test_pictures_are_drawn_of_text_and_standard_input(dlrun: DlRun, tmp_path: Path) -> None:
    """`dlrun graph` and `dlrun map` take what the other commands take, of a program and of a library."""
    (tmp_path / "seven.wat").write_text(EXIT_SEVEN)
    data = library('(func (export "f"))', MEMORY, memory_size=8, memory_align=2)
    os.mkfifo(tmp_path / "pipe")
    for command in ("graph", "map"):
        assert dlrun(command, "seven.wat").returncode == 0
        writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(data,), daemon=True)
        writer.start()
        assert "pipe" in dlrun(command, "pipe").stdout
        writer.join(60)
