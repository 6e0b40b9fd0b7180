"""Guest code that ends badly: what the caller gets, and that the store is as usable as before."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from dl.engine import default_engine
from dl.engine.protocol import EngineInstance
from dl.engine.wasmtime.engine import WasmtimeEngine
from dl.errors import EngineError, InstantiationError, InvalidModuleError, TrapError
from dl.wasm.types import FuncType

NOTHING = FuncType((), ())
NUMBER = FuncType((), ("i32",))

TRAPS = """
(module $its_own_name
  (memory 1) (table 2 funcref) (elem (i32.const 0) func $fine)
  (tag $two (param i32 i64)) (tag $long (param i64)) (tag $empty)
  (type $binary (func (param i32 i32)))
  (func $fine (export "fine") (result i32) (i32.const 42))
  (func (export "unreachable") unreachable)
  (func (export "divide") (drop (i32.div_s (i32.const 1) (i32.const 0))))
  (func (export "overflow") (drop (i32.div_s (i32.const -2147483648) (i32.const -1))))
  (func (export "convert") (drop (i32.trunc_f64_s (f64.const nan))))
  (func (export "load") (drop (i32.load (i32.const -4))))
  (func (export "grow") (drop (i32.load (i32.const 65533))))
  (func (export "unaligned") (drop (i32.atomic.load (i32.const 2))))
  (func (export "wait") (drop (memory.atomic.wait32 (i32.const 0) (i32.const 0) (i64.const 0))))
  (func (export "beyond") (drop (call_indirect (result i32) (i32.const 2))))
  (func (export "null") (drop (call_indirect (result i32) (i32.const 1))))
  (func (export "mismatch") (call_indirect (type $binary) (i32.const 0) (i32.const 0) (i32.const 0)))
  (func $endless (export "endless") (call $endless))
  (func $thrower (throw $two (i32.const 0xfffffff0) (i64.const 2)))
  (func (export "throw") (call $thrower))
  (func (export "throw long") (throw $long (i64.const 1)))
  (func (export "throw nothing") (throw $empty))
  (func (export "rethrow") (block $caught (result exnref) (try_table (catch_all_ref $caught) (call $thrower)) (unreachable))
    (throw_ref))
  (func (export "catch") (result i32)
    (block $caught (result i32 i64) (try_table (catch $two $caught) (call $thrower)) (unreachable)) (drop))
)
"""


class NoBoundary:
    def enter_host(self) -> None:
        return None

    def exit_host(self, token: None) -> None:
        pass


def instantiate(text: str, name: str = "traps", engine: Any = None) -> EngineInstance:
    engine = engine or default_engine()
    store = engine.new_store(engine.host_functions(NoBoundary()))
    return store.instantiate(engine.compile(bytes(wasmtime.wat2wasm(text)), name))


@pytest.fixture(name="guest", scope="module")
def _guest() -> EngineInstance:
    return instantiate(TRAPS)


@pytest.mark.parametrize(
    ("function", "reason", "code"),
    [
        ("unreachable", "unreachable", 9),
        ("divide", "integer divide by zero", 7),
        ("overflow", "integer overflow", 6),
        ("convert", "invalid conversion to integer", 8),
        ("load", "out of bounds memory access", 1),
        ("grow", "out of bounds memory access", 1),
        ("unaligned", "unaligned atomic access", 2),
        ("wait", "atomic wait on a memory that is not shared", 12),
        ("beyond", "undefined table element: out of bounds", 3),
        ("null", "uninitialized table element", 4),
        ("mismatch", "indirect call type mismatch", 5),
        ("endless", "stack overflow", 0),
        ("throw", "uncaught exception (its first value is 0xfffffff0)", 49),
        ("throw long", "uncaught exception", 49),
        ("throw nothing", "uncaught exception", 49),
        ("rethrow", "uncaught exception (its first value is 0xfffffff0)", 49),
    ],
)
def test_each_trap_has_its_words_and_code(
    guest: EngineInstance, function: str, reason: str, code: int
) -> None:
    """A trap is a TrapError with a stable reason and code; guest code runs as before afterwards."""
    with pytest.raises(TrapError) as caught:
        guest.function(function, NOTHING)()

    assert (caught.value.reason, caught.value.code) == (reason, code)
    assert guest.function("fine", NUMBER)() == 42
    assert guest.function("catch", NUMBER)() & 0xFFFFFFFF == 0xFFFFFFF0


def test_frames_are_named_by_the_linker(guest: EngineInstance) -> None:
    """Frames are `module!function`, innermost first: the module as it was compiled as, not as it calls itself."""
    with pytest.raises(TrapError) as caught:
        guest.function("throw", NOTHING)()

    assert caught.value.frames == ("traps!thrower", "traps!function 14")


def test_modules_without_names_get_the_file_name() -> None:
    """A module that names nothing is shown by the base name of its file, its functions by their index."""
    plain = bytes.fromhex(
        "0061736d01000000 01040160 0000 0302 0100 0705 0101 66 0000 0a05 0103 00 000b".replace(" ", "")
    )
    engine = default_engine()
    store = engine.new_store(engine.host_functions(NoBoundary()))

    with pytest.raises(TrapError) as caught:
        store.instantiate(engine.compile(plain, "/opt/lib/libplain.so")).function("f", NOTHING)()

    assert caught.value.frames == ("libplain.so!function 0",)


def test_names_that_are_not_unicode_do_no_harm() -> None:
    """A file name that is not valid Unicode is still good enough to compile under."""
    instance = instantiate('(module (func (export "f") unreachable))', "lib\udcff.so")

    with pytest.raises(TrapError) as caught:
        instance.function("f", NOTHING)()

    assert caught.value.frames == ("lib?.so!function 0",)


def test_a_trap_in_a_start_function_is_a_trap() -> None:
    """Instantiation that runs into a trap raises TrapError, one that lacks an import InstantiationError."""
    with pytest.raises(TrapError, match="unreachable"):
        instantiate("(module (func $f unreachable) (start $f))")
    with pytest.raises(TrapError, match="out of bounds"):
        instantiate('(module (memory 1) (data (i32.const 65535) "ab"))')
    with pytest.raises(TrapError, match="uncaught exception"):
        instantiate("(module (tag $t) (func $f (throw $t)) (start $f))")
    with pytest.raises(InstantiationError, match="unknown import: `env::missing` has not been defined"):
        instantiate('(module (import "env" "missing" (func)))')


def test_refused_modules_carry_the_engines_text() -> None:
    """A module the engine cannot compile raises InvalidModuleError with what the engine says, offsets as in the file."""
    body = bytes.fromhex("0061736d01000000 01050160 00017f 0302 0100 0a04 0102 000b".replace(" ", ""))
    with pytest.raises(
        InvalidModuleError, match=r"code at offset 24: type mismatch: expected i32 but nothing on stack$"
    ):
        default_engine().compile(body, "wrong")
    with pytest.raises(InvalidModuleError, match=r"magic header not detected"):
        default_engine().compile(b"not wasm", "text")
    with pytest.raises(InvalidModuleError):
        default_engine().compile(b"", "empty")


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
            instantiate(TRAPS).function("endless", NOTHING)()
        return caught.value.reason

    assert in_thread(stack_bytes, work) == "stack overflow"


def test_a_thread_with_too_small_a_stack_is_refused() -> None:
    """Where guest code could overflow the native stack, there is an error that says what to do, not a crash."""
    instance = instantiate(TRAPS)
    refused = in_thread(512 << 10, instance.function("endless", NOTHING))

    assert isinstance(refused, EngineError)
    assert "stack of 524288 bytes is too small" in str(refused)
    assert "threading.stack_size()" in str(refused)
    assert isinstance(in_thread(512 << 10, lambda: instantiate(TRAPS)), EngineError)
    assert instance.function("fine", NUMBER)() == 42


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
            instantiate(TRAPS, engine=engine[0]).function("endless", NOTHING)()
        return caught.value.reason

    assert engine[0].max_stack == 256 << 10
    assert in_thread(512 << 10, work) == "stack overflow"


DEEP = """
import sys, threading
sys.path.insert(0, {root!r})
import wasmtime
from dl.engine import default_engine
from dl.errors import TrapError
from dl.wasm.types import FuncType

class NoBoundary:
    def enter_host(self): pass
    def exit_host(self, token): pass

def main():
    sys.setrecursionlimit(10**6)
    engine, unary = default_engine(), FuncType(("i32",), ("i32",))
    host = engine.host_functions(NoBoundary())
    host.define("host", "f", unary, lambda n: call(n))
    wasm = wasmtime.wat2wasm('''(module (import "host" "f" (func $f (param i32) (result i32)))
      (func $g (export "g") (param i32) (result i32)
        (if (result i32) (i32.rem_u (local.get 0) (i32.const 50))
          (then (call $g (i32.add (local.get 0) (i32.const 1))))
          (else (call $f (i32.add (local.get 0) (i32.const 1)))))))''')
    call = engine.new_store(host).instantiate(engine.compile(bytes(wasm), "m")).function("g", unary)
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
