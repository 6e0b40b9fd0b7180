"""The native stack under guest code of wasmtime: who may use how much of it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dl.engine import engine_named
from dl.engine.wasmtime.engine import WasmtimeEngine
from dl.errors import TrapError
from dl.wasm.types import FuncType
from tests.support.engines import instantiated

NOTHING, NUMBER = FuncType((), ()), FuncType((), ("i32",))

TRAPS = """
(module
  (func $fine (export "fine") (result i32) (i32.const 42))
  (func $endless (export "endless") (call $endless)))
"""


def in_thread(stack_bytes: int, work: Callable[[], object]) -> object:
    """Return what `work` returns or raises in a thread with a stack of a given size."""
    result: list[object] = []

    def run() -> None:
        try:
            result.append(work())
        except Exception as error:  # noqa: BLE001
            result.append(error)

    former = threading.stack_size(stack_bytes)
    try:
        thread = threading.Thread(target=run)
        thread.start()
    finally:
        threading.stack_size(former)
    thread.join()
    return result[0]


@pytest.mark.parametrize("stack_bytes", [2 << 20, 8 << 20, 64 << 20])
def test_endless_recursion_traps_in_any_thread(stack_bytes: int) -> None:
    """Endless guest recursion ends as a trap in a thread with a small stack, and in one with a large stack."""

    def work() -> str:
        with pytest.raises(TrapError) as caught:
            instantiated(engine_named("wasmtime"), TRAPS).function("endless", NOTHING)()
        return caught.value.reason

    assert in_thread(stack_bytes, work) == "stack overflow"


SMALL = """
import sys, threading
sys.path.insert(0, {root!r})
from dl.errors import EngineError
from tests.engine.test_stacks import NOTHING, NUMBER, TRAPS, WasmtimeEngine, in_thread, instantiated

engine = WasmtimeEngine()  # made while new threads have stacks of the usual size
instance = instantiated(engine, TRAPS)
refused = in_thread(512 << 10, instance.function("endless", NOTHING))
assert isinstance(refused, EngineError), refused
print(refused)
assert isinstance(in_thread(512 << 10, lambda: instantiated(engine, TRAPS)), EngineError)
assert instance.function("fine", NUMBER)() == 42
"""


def test_a_thread_with_too_small_a_stack_is_refused() -> None:
    """Where guest code could overflow the native stack, there is an error that says what to do, not a crash."""
    # In a process of its own: the C library gives a new thread the larger stack of one that has ended.
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", SMALL.format(root=root)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "stack of 524288 bytes is too small" in done.stdout
    assert "threading.stack_size()" in done.stdout


def test_guest_stacks_fit_the_stacks_that_threads_get() -> None:
    """An engine that is made when new threads have small stacks gives guest code less, so that it runs in them."""
    engine: list[WasmtimeEngine] = []
    former = threading.stack_size(512 << 10)
    try:
        engine.append(WasmtimeEngine())
    finally:
        threading.stack_size(former)

    def work() -> str:
        with pytest.raises(TrapError) as caught:
            instantiated(engine[0], TRAPS).function("endless", NOTHING)()
        return caught.value.reason

    assert engine[0].max_stack == 256 << 10
    assert in_thread(512 << 10, work) == "stack overflow"


DEEP = """
import sys, threading
sys.path.insert(0, {root!r})
import wasmtime
from dl.engine import engine_named
from dl.errors import TrapError
from dl.wasm.types import FuncType

class NoBoundary:
    def enter_host(self): pass
    def exit_host(self, token): pass

def main():
    sys.setrecursionlimit(10**6)
    engine, unary = engine_named("wasmtime"), FuncType(("i32",), ("i32",))
    host = engine.host_functions(NoBoundary())
    host.define("host", "f", unary, lambda n: call(n))
    wasm = wasmtime.wat2wasm('''(module (import "host" "f" (func $f (param i32) (result i32)))
      (func $g (export "g") (param i32) (result i32)
        (if (result i32) (i32.rem_u (local.get 0) (i32.const 50))
          (then (call $g (i32.add (local.get 0) (i32.const 1))))
          (else (call $f (i32.add (local.get 0) (i32.const 1)))))))''')
    call = engine.new_store(host).instantiate(engine.compile(bytes(wasm)), "m").function("g", unary)
    try:
        call(1)
    except TrapError as error:
        print(error.reason)

threading.stack_size({stack})
thread = threading.Thread(target=main)
thread.start()
thread.join()
"""


@pytest.mark.parametrize("stack_bytes", [1280 << 10, 8 << 20])
def test_deep_mixed_recursion_does_not_crash_a_thread(stack_bytes: int) -> None:
    """Guest recursion that passes through the host now and then ends in a trap before the thread's stack does."""
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", DEEP.format(root=root, stack=stack_bytes)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.stdout, done.returncode) == ("stack overflow\n", 0), done.stderr[-2000:]
