"""Signals of the guest's: whom they reach, what ends with them, and when their handler must wait."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import pytest

import dl
from tests.support.modules import library, module, pie
from tests.support.paths import ROOT

SIGNALS = ROOT / "fixtures/wasix/shared/signals.wasm"
TIMEOUT_SECONDS = 60


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dl", str(SIGNALS), *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


@pytest.mark.parametrize("command", ["abort", "abort-trap", "abort-handled"])
def test_abort_ends_with_134_and_a_message(command: str) -> None:
    """`abort` ends a program with 134, whatever its C library does with SIGABRT, and says so on standard error."""
    done = run(command)

    assert done.returncode == 134
    assert "the program aborted (signal 6 in main)" in done.stderr


def test_another_exit_code_of_127_is_the_programs_own() -> None:
    """A program that exits with 127 without having aborted ends with 127."""
    exits = module(
        '(memory (export "memory") 1)',
        '(import "wasix_32v1" "proc_exit2" (func $exit (param i32)))',
        '(func (export "_start") (call $exit (i32.const 127)))',
    )
    with dl.Linker(exits) as linker:
        assert linker.main_group.run() == 127


def test_a_handler_waits_for_the_end_of_a_link_operation() -> None:
    """A signal that comes while a thread replays a load is handled after it, not between the steps of its start function."""
    events: list[str] = []
    threads: list[dl.Linker] = []

    def inside() -> None:
        process, number = threads[0].parts.process, threads[0].parts.groups.thread_id()
        events.append(f"start in {number}")
        assert process.signals.send(number, 10) == 0

    host: dict[str, Any] = {
        "inside": inside,
        "after": lambda: events.append("end"),
        "handled": lambda _s: events.append("handled"),
    }
    imports = (
        '(import "host" "inside" (func $inside))'
        '(import "host" "after" (func $after))'
        '(import "wasix_32v1" "sched_yield" (func $yield (result i32)))'
    )
    wasm = pie(
        '(import "host" "handled" (func $handled (param i32)))',
        '(import "wasix_32v1" "callback_signal" (func $callback (param i32 i32)))',
        '(import "wasix_32v1" "sched_yield" (func $yield (result i32)))',
        '(global $base (import "env" "__memory_base") i32)',
        '(data (global.get $base) "handler")',
        '(func (export "handler") (param i32) (call $handled (local.get 0)))',
        '(func (export "register") (call $callback (global.get $base) (i32.const 7)))',
        '(func (export "yield") (result i32) (call $yield))',
        shared=True,
        memory_size=65536,
        memory_align=4,
    )
    starts = library(
        imports, "(func $start (call $inside) (drop (call $yield)) (call $after)) (start $start)"
    )
    with dl.Linker(wasm, imports={"host": host}, libraries={"starts.so": starts}) as linker:
        threads.append(linker)
        group = linker.main_group
        group.dlsym(linker.main, "register")()
        group.dlopen("starts.so", dl.RTLD_NOW)
        group.dlsym(linker.main, "yield")()
        first, events[:] = list(events), []

        def follow(other: dl.InstanceGroup) -> None:
            other.dlsym(linker.main, "yield")()

        linker.spawn(follow).join(TIMEOUT_SECONDS)

    assert first == ["start in 1", "end", "handled"]
    assert events == ["start in 2", "end", "handled"]


def test_an_alarm_without_a_thread_for_it_is_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """`proc_raise_interval` answers 6 (`again`) when the host cannot start a thread, and works once it can."""
    wasm = module(
        '(memory (export "memory") 1)',
        '(import "wasix_32v1" "proc_raise_interval" (func $f (param i32 i64 i32) (result i32)))',
        '(func (export "go") (result i32) (call $f (i32.const 28) (i64.const 1000000000000) (i32.const 0)))',
    )
    with dl.Linker(wasm) as linker:
        go = linker.main_group.dlsym(linker.main, "go")
        assert isinstance(go, dl.GuestFunction)
        with monkeypatch.context() as patch:

            def no_thread(_self: object) -> None:
                raise RuntimeError("can't start new thread")

            patch.setattr("threading.Thread.start", no_thread)
            assert go() == 6
        assert go() == 0


# Also where SIGINT is ignored, as for jobs in the background.
WITH_SIGINT = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("dl", run_name="__main__")
"""


def interrupted(command: str) -> tuple[int, str]:
    with subprocess.Popen(
        [sys.executable, "-c", WITH_SIGINT, str(SIGNALS), command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready 0\n"
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        return process.wait(TIMEOUT_SECONDS), rest


@pytest.mark.parametrize("command", ["interrupt", "interrupt-computing"])
def test_ctrl_c_reaches_the_handler_of_a_program_that_has_one(command: str) -> None:
    """Under `dlrun` SIGINT is handled by the program, whether it waits or computes, and does not end it."""
    assert interrupted(command) == (3, "signal 2\n")


def test_ctrl_c_ends_a_program_whose_c_library_takes_the_default_action() -> None:
    """When the C library's answer to SIGINT is to abort, the program ends as one that was interrupted."""
    code, output = interrupted("interrupt-default")

    assert code == 130
    assert output.startswith("fatal 2\n")
