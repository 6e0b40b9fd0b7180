"""Programs whose output nobody reads: they end with 141, as programs of C do by SIGPIPE."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.modules import pie
from tests.support.paths import ROOT

pytestmark = pytest.mark.timeout(60)

WRITE = (
    "(drop (call $write (i32.const {output}) (global.get $memory_base)"
    " (i32.const 1) (i32.add (global.get $memory_base) (i32.const 12))))"
)
STORE = (
    "(i32.store (global.get $memory_base) (i32.add (global.get $memory_base) (i32.const 8)))"
    "(i32.store offset=4 (global.get $memory_base) (i32.const 2))"
    "(i32.store16 offset=8 (global.get $memory_base) (i32.const 0x0a79))"
)


def writing(body: str, *fields: str, shared: bool = False) -> bytes:
    return pie(
        *fields,
        '(import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))',
        f'(func (export "_start") {STORE} {body})',
        '(data (global.get $memory_base) "\\00\\00\\00\\00\\00\\00\\00\\00\\00\\00\\00\\00\\00\\00\\00\\00handler")',
        shared=shared,
        memory_size=24,
        memory_align=2,
    )


def ended(program: Path, options: list[str], output: int) -> tuple[int, bytes]:
    """Run a program whose output or standard error nobody reads; return the exit code and what it said on the other."""
    reading, closed = os.pipe()
    os.close(reading)
    with subprocess.Popen(
        [sys.executable, "-m", "dl", *options, str(program)],
        stdout=closed if output == 1 else subprocess.PIPE,
        stderr=closed if output == 2 else subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        os.close(closed)
        try:
            said, messages = process.communicate(timeout=30)
        finally:
            process.kill()
    return process.returncode, (messages if output == 1 else said)


@pytest.mark.skipif(os.name != "posix", reason="there is SIGPIPE")
@pytest.mark.parametrize("options", [[], ["--interrupts"]])
@pytest.mark.parametrize("shared", [False, True], ids=["unshared", "shared"])
def test_a_program_that_writes_for_ever(shared: bool, options: list[str], tmp_path: Path) -> None:
    """It ends although it looks at no error, with WASI of the engine or of the linker, and says nothing."""
    app = tmp_path / "yes.wasm"
    app.write_bytes(writing(f"(loop $again {WRITE.format(output=1)} (br $again))", shared=shared))

    assert ended(app, options, 1) == (141, b"")


@pytest.mark.skipif(os.name != "posix", reason="there is SIGPIPE")
@pytest.mark.parametrize(
    ("after", "output"),
    [("(loop $again (br $again))", 1), ("", 1), ("", 2)],
    ids=["computes", "returns", "stderr"],
)
def test_a_program_that_writes_once(after: str, output: int, tmp_path: Path) -> None:
    """Whether it then computes without a safe point or returns, and for standard error, too."""
    app = tmp_path / "once.wasm"
    app.write_bytes(writing(WRITE.format(output=output) + after))

    assert ended(app, [], output) == (141, b"")


@pytest.mark.skipif(os.name != "posix", reason="there is SIGPIPE")
def test_a_program_that_handles_signals(tmp_path: Path) -> None:
    """It gets SIGPIPE and decides itself; here its handler ends it with the signal's number."""
    app = tmp_path / "handles.wasm"
    app.write_bytes(
        writing(
            "(call $callback (i32.add (global.get $memory_base) (i32.const 16)) (i32.const 7))"
            f"(loop $again {WRITE.format(output=1)} (br $again))",
            '(import "wasix_32v1" "callback_signal" (func $callback (param i32 i32)))',
            '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))',
            '(func (export "handler") (param i32) (call $exit (local.get 0)))',
        )
    )

    assert ended(app, [], 1) == (13, b"")
