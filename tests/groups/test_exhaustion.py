"""Near out of memory of the host, and threads where there can be none: an error of the operation, and nothing hangs."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

import dl
from tests.support.modules import imports, module

pytestmark = pytest.mark.timeout(90)

LIMITED = """
import faulthandler, resource, sys, threading
faulthandler.dump_traceback_later(40, exit=True)
import dl
from tests.support.groups import Program, library, state_of

def used():
    with open("/proc/self/statm") as status:
        return int(status.read().split()[0]) * resource.getpagesize()

ALLOWED = (dl.DlError, MemoryError, RuntimeError, OSError)
errors, threads = [], []
p = Program()
spinning = p.linker.spawn(lambda g: p.call(g, "spin", p.word(0)))
p.until(1, "guest")
p.main.dlopen(library(0), name="first.so")
resource.setrlimit(resource.RLIMIT_AS, (used() + ROOM, resource.RLIM_INFINITY))
for number in range(20):
    try:
        threads.append(p.linker.spawn(lambda g: p.call(g, "wait", p.word(1), 0, -1)))
    except dl.ResourceLimitError as error:
        errors.append(error)
    assert p.main.dlopen(library(0), name="first.so")
    assert p.call(p.main, "count", p.word(9)) == number
print(len(errors), "errors", sorted({type(e).__name__ for e in errors}), flush=True)
assert errors
spinning.cancel(ValueError())
try:
    spinning.join(20)
except (ValueError, *ALLOWED):
    pass
p.linker.close()
for thread in threads:
    try:
        thread.join(5)
    except ALLOWED:
        pass
    assert not thread.is_alive()
print("closed", flush=True)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of the address space")
@pytest.mark.parametrize("room", [6, 12, 24])
def test_near_out_of_memory_nothing_hangs(room: int) -> None:
    """Where the host has no memory for threads, each is refused with an error; one can be cancelled, and `close` returns."""
    # Not where it has none at all: then the engine itself ends the process.
    code = textwrap.dedent(LIMITED).replace("ROOM", f"({room} << 20)")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=80, check=False
    )

    assert "closed" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr


UNSHARED = module(
    '(memory (export "memory") 2)',
    imports("thread-spawn", "(param i32) (result i32)", "wasi"),
    imports("thread_spawn_v2", "(param i32 i32) (result i32)", "wasix_32v1"),
    '(func (export "wasi_thread_start") (param i32 i32))',
    '(func (export "first") (result i32) (call $thread-spawn (i32.const 1024)))',
    '(func (export "second") (result i32) (call $thread_spawn_v2 (i32.const 1024) (i32.const 2048)))',
)


def test_program_without_shared_memory_starts_no_thread() -> None:
    """Each way to start a thread answers with an errno, and the program's memory stays what it is."""
    with dl.Linker(UNSHARED, name="unshared") as linker:
        linker.memory.write_u32(64, 7)
        for _ in range(3):
            assert linker.main_group.dlsym(dl.MAIN_HANDLE, "first")() < 0
            assert linker.main_group.dlsym(dl.MAIN_HANDLE, "second")() > 0
        assert linker.memory.read_u32(64) == 7
        with pytest.raises(dl.LinkerUsageError, match="one instance group"):
            linker.program.new_store()
