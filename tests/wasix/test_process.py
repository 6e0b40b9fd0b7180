"""One process, many threads: descriptors, directory and signals are shared, and nobody's waiting holds others up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import dl
from tests.support.modules import imports, library, module, pie, returns, wat_bytes

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
WASIX = FIXTURES / "wasix"
TIMEOUT_SECONDS = 60
FD_READ = "(param i32 i32 i32 i32) (result i32)"


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_lines_written_by_eight_threads_at_once_arrive_whole() -> None:
    """`fd_write` from 8 threads, several buffers a call: no line is lost or torn, and each thread's are in order."""
    chunks: list[bytes] = []
    program = WASIX / "shared" / "threads.wasm"
    with dl.Linker(program, args=["threads", "torn"], stdout=chunks.append) as linker:
        assert linker.main_group.run() == 0
    lines = b"".join(chunks).decode().splitlines()

    by_thread: dict[str, list[str]] = {}
    for line in lines:
        name, _, rest = line.partition(" ")
        by_thread.setdefault(name, []).append(rest)
    expected = [f"line {i} of several pieces" for i in range(200)]
    assert by_thread == {f"t{n}": expected for n in range(8)}


def test_lines_written_to_a_file_of_the_host_arrive_whole() -> None:
    """The same through the host's own standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "dl", str(WASIX / "shared" / "threads.wasm"), "torn"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == sorted(
        f"t{n} line {i} of several pieces" for n in range(8) for i in range(200)
    )


def test_a_thread_that_waits_for_input_holds_no_other_up() -> None:
    """While one thread reads standard input, others write and sleep; what came in one piece can be read in parts."""
    with start("-m", "dl", str(WASIX / "shared" / "threads.wasm"), "stdin") as process:
        assert process.stdout is not None
        assert process.stdin is not None
        # They come although nothing was written to the input yet.
        ticks = [process.stdout.readline().strip() for _ in range(5)]
        process.stdin.write("hello\n")
        process.stdin.flush()
        first = process.stdout.readline()
        process.stdin.write("abcdef\n")
        process.stdin.close()
        rest = process.stdout.read()

        assert process.wait(TIMEOUT_SECONDS) == 0
    assert ticks == [f"tick {i}" for i in range(5)]
    assert first == "input hello\n"
    assert rest == "then abc\nthen def\nend 0\n"


LINK_WHILE_READING = """
import sys
import threading
import dl

linker = dl.Linker(sys.argv[1], args=["files", sys.argv[2]], library_path=[sys.argv[3]])
thread = linker.spawn(lambda group: group.run())
group = linker.main_group
while not any(name != "main" and what for name, what in linker.program.waits.waiting()):
    pass
handle = group.dlopen("libadd.so", dl.RTLD_NOW)
assert group.dlsym(handle, "add")(2, 3) == 5
print("linked", flush=True)
print("code", thread.join(60), flush=True)
linker.close()
"""


@pytest.mark.parametrize(("command", "result"), [("ask", "read 6"), ("either", "input or time: 0 [2 kind 1")])
def test_libraries_are_linked_while_a_thread_waits_for_input(command: str, result: str) -> None:
    """A thread inside `fd_read` or `poll_oneoff` of standard input delays no link operation."""
    words = [str(WASIX / "shared" / "files.wasm"), command, str(FIXTURES / "plugins" / "shared")]
    with start("-c", LINK_WHILE_READING, *words) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        lines = sorted(process.stdout.readline().strip() for _ in range(2))
        process.stdin.write("hello\n")
        process.stdin.close()
        rest = process.stdout.read()
        assert process.stderr is not None
        errors = process.stderr.read()

        assert process.wait(TIMEOUT_SECONDS) == 0, errors
    assert lines == ["linked", "ready"]
    assert result in rest
    assert "code 0" in rest


@pytest.mark.parametrize("memory", ["shared", "unshared"])
@pytest.mark.parametrize("command", ["ask", "nap", "either"])
def test_ctrl_c_ends_a_program_that_waits(command: str, memory: str) -> None:
    """Ctrl-C ends a program that reads standard input, sleeps, or polls, over either kind of memory."""
    with start("-m", "dl", str(WASIX / memory / "files.wasm"), command) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)

        assert process.wait(TIMEOUT_SECONDS) == 130
        assert process.stdout.read() == ""


def test_a_waiting_thread_can_be_cancelled() -> None:
    """`HostThread.cancel` ends a wait for a pipe, and the pipe serves others afterwards."""
    fields = (
        imports("fd_pipe", "(param i32 i32) (result i32)", "wasix_32v1"),
        imports("fd_read", FD_READ, "wasi_snapshot_preview1"),
        imports("fd_write", FD_READ, "wasi_snapshot_preview1"),
        '(func (export "open") (result i32) (call $fd_pipe (i32.const 1024) (i32.const 1028)))',
        """(func (export "get") (result i32)
             (i32.store (i32.const 1040) (i32.const 1056)) (i32.store (i32.const 1044) (i32.const 8))
             (call $fd_read (i32.load (i32.const 1024)) (i32.const 1040) (i32.const 1) (i32.const 1032)))""",
        """(func (export "put") (result i32)
             (i32.store (i32.const 1072) (i32.const 1056)) (i32.store (i32.const 1076) (i32.const 3))
             (call $fd_write (i32.load (i32.const 1028)) (i32.const 1072) (i32.const 1) (i32.const 1036)))""",
    )
    with dl.Linker(pie(*fields, shared=True, memory_size=4096, memory_align=10)) as linker:
        waiting = threading.Event()

        def get(group: dl.InstanceGroup) -> int:
            function = group.dlsym(linker.main, "get")
            waiting.set()
            return int(function())

        assert linker.main_group.dlsym(linker.main, "open")() == 0
        first = linker.spawn(get)
        assert waiting.wait(TIMEOUT_SECONDS)
        first.cancel(ZeroDivisionError())
        with pytest.raises(ZeroDivisionError):
            first.join(TIMEOUT_SECONDS)
        second = linker.spawn(get)
        assert linker.main_group.dlsym(linker.main, "put")() == 0

        assert second.join(TIMEOUT_SECONDS) == 0
        assert linker.memory.read_u32(1032) == 3


def test_timers_end_with_the_program() -> None:
    """A timer that is set when the program ends is gone with it, and kills nobody."""
    fields = (
        imports("proc_raise_interval", "(param i32 i64 i32) (result i32)", "wasix_32v1"),
        """(func (export "_start")
             (drop (call $proc_raise_interval (i32.const 14) (i64.const 3600000000000) (i32.const 1))))""",
    )
    with dl.Linker(module('(memory (export "memory") 1)', *fields)) as linker:
        assert linker.main_group.run() == 0
        assert [t.name for t in threading.enumerate() if t.name.startswith("alarm")] == [
            "alarm for signal 14"
        ]

    assert [t.name for t in threading.enumerate() if t.name.startswith("alarm")] == []


def test_a_guest_opens_libraries_relative_to_its_directory(tmp_path: Path) -> None:
    """`dlopen` of a relative path with a slash starts at the directory that `chdir` set."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "x.so").write_bytes(library(returns("x", 7)))
    text = b"/libs/inner\0./x.so\0x\0"
    fields = (
        imports("chdir", "(param i32 i32) (result i32)", "wasix_32v1"),
        imports("dlopen", "(param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)", "wasix_32v1"),
        imports("dlsym", "(param i32 i32 i32 i32 i32 i32) (result i32)", "wasix_32v1"),
        f"(data (global.get $memory_base) {wat_bytes(text)})",
        """(func $open (result i32) (call $dlopen (i32.add (global.get $memory_base) (i32.const 12)) (i32.const 6)
             (i32.const 2) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
             (i32.add (global.get $memory_base) (i32.const 64))))""",
        """(func (export "before") (result i32) call $open)""",
        """(func (export "after") (result i32)
             (drop (call $chdir (global.get $memory_base) (i32.const 11))) call $open)""",
    )
    wasm = pie(*fields, memory_size=128, memory_align=4)
    with dl.Linker(wasm, preopens={"/libs": tmp_path}) as linker:
        before, after = (linker.main_group.dlsym(linker.main, name) for name in ("before", "after"))

        assert before() == 79
        assert after() == 0


def test_an_output_callback_that_calls_the_program_is_told_so() -> None:
    """A callback for output that calls a function which writes output gets an error, and no thread hangs."""
    calls = []

    def output(_chunk: bytes) -> None:
        try:
            calls.append(linker.main_group.dlsym(linker.main, "say")())
        except dl.LinkerUsageError as error:
            calls.append(error)

    fields = (
        imports("fd_write", FD_READ, "wasi_snapshot_preview1"),
        """(func (export "say") (result i32)
             (i32.store (i32.const 1040) (i32.const 1056)) (i32.store (i32.const 1044) (i32.const 3))
             (call $fd_write (i32.const 1) (i32.const 1040) (i32.const 1) (i32.const 1032)))""",
    )
    with dl.Linker(pie(*fields, shared=True, memory_size=4096, memory_align=10), stdout=output) as linker:
        assert linker.main_group.dlsym(linker.main, "say")() == 0

    assert len(calls) == 1
    assert isinstance(calls[0], dl.LinkerUsageError)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_a_terminal_is_shown_changed_and_put_back() -> None:
    """With a terminal as standard input, `tty_get` says so, and what `tty_set` changes is as before when the program ends."""
    import pty
    import termios

    master, terminal = pty.openpty()
    try:
        before = termios.tcgetattr(terminal)
        done = subprocess.run(
            [sys.executable, "-m", "dl", str(WASIX / "shared" / "files.wasm"), "rest"],
            stdin=terminal,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
        after = termios.tcgetattr(terminal)
    finally:
        os.close(master)
        os.close(terminal)

    assert done.returncode == 33, done.stderr
    assert "terminals 1 0, columns, echo 1, lines 1" in done.stdout
    assert "tty_set 0" in done.stdout.splitlines()
    assert after == before
