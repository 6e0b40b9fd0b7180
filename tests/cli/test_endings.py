"""How a program is ended from outside: by SIGTERM, with its records written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.modules import pie
from tests.support.paths import ROOT

IMPORT = '(import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))'
START = """(func (export "_start")
      (i64.store (i32.const 1024) (i64.const 0x100000408))  ;; one byte, at 1032
      (i32.store8 (i32.const 1032) (i32.const 0x62))
      (drop (call $write (i32.const 1) (i32.const 1024) (i32.const 1) (i32.const 1040)))
      (loop (br 0)))"""
"""Writes a byte, and computes without end."""
pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")


HANDLING = """(import "wasix_32v1" "callback_signal" (func $callback (param i32 i32)))
      (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))"""
HANDLES = (
    """(data (i32.const 2048) "on_signal")
      (func (export "on_signal") (param $signal i32)
        (i32.store8 (i32.const 1032) (i32.const 0x68))
        (drop (call $write (i32.const 1) (i32.const 1024) (i32.const 1) (i32.const 1040)))
        (if (i32.load (i32.const 3000)) (then (call $exit (i32.add (i32.const 20) (local.get $signal))))))"""
    + START
).replace("(i64.store", "(call $callback (i32.const 2048) (i32.const 9)) (i64.store", 1)
"""Writes a byte in its handler, and ends there with 20 and the signal's number if there is something at 3000."""


def terminated(*words: str, again: bool = False) -> tuple[int, str]:
    """Run a program until it writes, send SIGTERM, and return the exit code and what is said last.

    Args:
        words: of the command line.
        again: whether to send it once more, when the program has written once more.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "dl", *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.read(1) == "b"
        process.send_signal(signal.SIGTERM)
        if again:
            assert process.stdout.read(1) == "h"
            process.send_signal(signal.SIGTERM)
        _, messages = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait(60)
    return process.returncode, (messages.splitlines() or [""])[-1]


def test_sigterm_writes_what_is_recorded(tmp_path: Path) -> None:
    """A computing program that gets SIGTERM ends with 143, and its timeline and profile are whole."""
    (tmp_path / "loop.wasm").write_bytes(pie(IMPORT, START))
    timeline, profile = tmp_path / "timeline.json", tmp_path / "profile.json"
    code, said = terminated(
        "--timeline", str(timeline), "--profile", f"guest,{profile}", str(tmp_path / "loop.wasm")
    )

    assert (code, said) == (143, "dlrun: error: terminated")
    assert json.loads(timeline.read_text())["traceEvents"]
    assert json.loads(profile.read_text())


def test_sigterm_ends_code_that_cannot_be_interrupted(tmp_path: Path) -> None:
    """A program without safe points is ended a moment later, with the same code."""
    (tmp_path / "loop.wasm").write_bytes(pie(IMPORT, START))

    assert terminated("--no-interrupts", str(tmp_path / "loop.wasm"))[0] == 143


def test_sigterm_ends_a_program_that_waits(tmp_path: Path) -> None:
    """A program whose thread waits for another is ended."""
    wait = (
        "(drop (memory.atomic.wait32 (i32.const 1024) (i32.load (i32.const 1024)) (i64.const 600000000000)))"
    )
    (tmp_path / "wait.wasm").write_bytes(pie(IMPORT, START.replace("(loop (br 0))", wait), shared=True))

    assert terminated(str(tmp_path / "wait.wasm"))[0] == 143


def test_a_program_handles_sigterm_itself(tmp_path: Path) -> None:
    """A program that has named a function for signals gets it there, with its number, and says how it ends."""
    ends = HANDLES + '(data (i32.const 3000) "\\01")'
    (tmp_path / "handles.wasm").write_bytes(pie(IMPORT + HANDLING, ends))

    assert terminated("--interrupts", str(tmp_path / "handles.wasm")) == (20 + signal.SIGTERM, "")


def test_a_second_sigterm_ends_a_program_that_handles_it(tmp_path: Path) -> None:
    """A program whose function for signals lets it go on ends at the next one within a second, as one without."""
    (tmp_path / "handles.wasm").write_bytes(pie(IMPORT + HANDLING, HANDLES))

    assert terminated("--interrupts", str(tmp_path / "handles.wasm"), again=True) == (
        143,
        "dlrun: error: terminated",
    )
