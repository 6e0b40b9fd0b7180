"""Ctrl-C while the main thread is inside guest code."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import os, signal, sys, threading
    import wasmtime
    import dl

    wasm = bytes(wasmtime.wat2wasm('''(module
      (import "env" "memory" (memory 1 65536 shared))
      (func (export "spin") (loop (i32.atomic.store (i32.const 4096) (i32.const 1)) (br 0)))
      (func (export "wait")
        (i32.atomic.store (i32.const 4096) (i32.const 1))
        (drop (memory.atomic.wait32 (i32.const 4100) (i32.const 0) (i64.const 60000000000))))
      (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))'''))
    section = bytes([0, 15]) + b"\\x08dylink.0\\x01\\x04\\0\\0\\0\\0"
    linker = dl.Linker(None, memory=dl.MemoryType(shared=True))
    group = linker.main_group
    handle = group.dlopen(wasm[:8] + section + wasm[8:])

    def press() -> None:
        while not linker.memory.read_u32(4096):
            pass
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    try:
        group.dlsym(handle, sys.argv[1])()
    except KeyboardInterrupt:
        print("interrupted", group.dlsym(handle, "add")(2, 3))
    linker.close()
"""


@pytest.mark.parametrize("function", ["spin", "wait"])
def test_ctrl_c_interrupts_guest_code_that_runs_or_waits(function: str) -> None:
    """KeyboardInterrupt comes out of the guest call, and the group can be called again."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), function],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert (done.stdout, done.returncode) == ("interrupted 5\n", 0), done.stderr
