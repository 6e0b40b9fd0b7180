"""Exceptions of host functions: the same object, to exactly the caller whose guest call it interrupts."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from dl.engine.protocol import Engine, Slots
from dl.errors import TrapError
from dl.wasm.types import FuncType

CALLER = """
(module
  (import "host" "plain" (func $plain (param i32) (result i32)))
  (import "host" "blocking" (func $blocking (param i32) (result i32)))
  (import "host" "raw" (func $raw (param i32) (result i32)))
  (func (export "plain") (param i32) (result i32) (call $plain (local.get 0)))
  (func (export "blocking") (param i32) (result i32) (call $blocking (local.get 0)))
  (func (export "raw") (param i32) (result i32) (call $raw (local.get 0)))
  (func (export "unreachable") unreachable)
  (func (export "loop") (param i32) (local $i i32)
    (loop $again
      (local.set $i (i32.const 20000))
      (loop $spin (br_if $spin (local.tee $i (i32.sub (local.get $i) (i32.const 1)))))
      (drop (call $plain (local.get 0)))
      (br_if $again (local.tee 0 (i32.sub (local.get 0) (i32.const 1))))))
)
"""
UNARY = FuncType(("i32",), ("i32",))


class CountingBoundary:
    """Counts host functions that were entered and left."""

    def __init__(self) -> None:
        self.entered = self.left = 0

    def enter_host(self) -> None:
        self.entered += 1

    def exit_host(self, token: None) -> None:
        self.left += 1


class Program:
    """A guest in a store of its own, whose host functions call what the test sets."""

    def __init__(self, engine: Engine) -> None:
        self.boundary = CountingBoundary()
        host = engine.host_functions(self.boundary)
        self.does: Callable[[int], Any] = lambda n: n
        host.define("host", "plain", UNARY, self._do, blocking=False)
        host.define("host", "blocking", UNARY, self._do)
        host.define_raw("host", "raw", UNARY, self._raw)
        code = engine.compile(bytes(wasmtime.wat2wasm(CALLER)))
        self.instance = engine.new_store(host).instantiate(code, "caller")
        self.call = {name: self.instance.function(name, UNARY) for name in ("plain", "blocking", "raw")}
        self.unreachable = self.instance.function("unreachable", FuncType((), ()))
        self.loop = self.instance.function("loop", FuncType(("i32",), ()))

    def _do(self, value: int) -> Any:
        return self.does(value)

    def _raw(self, slots: Slots) -> None:
        slots.set_32(0, self.does(slots.s32(0)))


class Custom(Exception):
    """An exception with data."""


KINDS = [
    Custom,
    KeyboardInterrupt,
    SystemExit,
    GeneratorExit,
    asyncio.CancelledError,
    StopIteration,
    MemoryError,
]


@pytest.fixture(name="program")
def _program(engine: Engine) -> Program:
    return Program(engine)


@pytest.mark.parametrize("function", ["plain", "blocking", "raw"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_object_is_raised(program: Program, kind: type[BaseException], function: str) -> None:
    """Whatever a host function raises comes out of the guest call, and the next call works."""
    raised = kind("data")

    def fail(_: int) -> int:
        raise raised

    program.does = fail
    with pytest.raises(kind) as caught:
        program.call[function](1)

    assert caught.value is raised
    program.does = lambda n: n
    assert program.call["plain"](5) == 5


def test_the_traceback_shows_the_host_function(program: Program) -> None:
    """The traceback leads from the caller through the adapter to the line that raised."""

    def fail(_: int) -> int:
        raise Custom

    program.does = fail
    with pytest.raises(Custom) as caught:
        program.call["plain"](1)

    assert caught.traceback[0].name == "test_the_traceback_shows_the_host_function"
    assert caught.traceback[-1].name == "fail"


def test_a_host_function_that_raises_is_not_left(program: Program) -> None:
    """The boundary is entered by every blocking function, and left only by those that return."""
    program.call["blocking"](1)
    program.call["plain"](1)
    assert (program.boundary.entered, program.boundary.left) == (1, 1)

    def fail(_: int) -> int:
        raise Custom

    program.does = fail
    with pytest.raises(Custom):
        program.call["blocking"](1)

    assert (program.boundary.entered, program.boundary.left) == (2, 1)


def test_an_exception_interrupts_the_innermost_call(program: Program) -> None:
    """Through guest, host, guest and host again: the inner call raises, and the host between may handle it."""
    raised, seen = Custom("inner"), []

    def outer(n: int) -> int:
        if n == 0:
            raise raised
        try:
            return program.call["blocking"](n - 1)
        except Custom as error:
            seen.append((n, error))
            if n < 3:
                raise
            return n * 100

    program.does = outer

    assert program.call["blocking"](4) == 300
    assert seen == [(1, raised), (2, raised), (3, raised)]


def test_an_exception_that_replaces_another_keeps_it(program: Program) -> None:
    """An exception raised while another one is handled in a host function carries it as its context."""

    def outer(n: int) -> int:
        if n == 0:
            raise Custom("first")
        try:
            return program.call["blocking"](n - 1)
        except Custom:
            raise KeyError("second")  # noqa: B904  the implicit context is what is tested

    program.does = outer
    with pytest.raises(KeyError) as caught:
        program.call["blocking"](1)

    assert isinstance(caught.value.__context__, Custom)


def test_a_trap_crosses_host_functions(engine: Engine, program: Program) -> None:
    """A trap in an inner guest call is an exception to the host function, and to the outer caller if it lets it pass;
    its frames are those of the whole stack, or of the inner call alone (`docs/engine-wasmer.md`)."""
    program.does = lambda _: program.unreachable()
    with pytest.raises(TrapError) as caught:
        program.call["blocking"](1)

    assert caught.value.reason == "unreachable"
    whole = ("caller!function 6", "caller!function 4")
    assert caught.value.frames == (whole[:1] if engine.name == "wasmer" else whole)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("function", ["plain", "blocking", "raw"])
def test_threads_get_their_own_exceptions(engine: Engine, function: str) -> None:
    """On six threads that raise 2,000 exceptions each at once, each exception reaches exactly its caller."""
    threads, rounds = 6, 2000
    start = threading.Barrier(threads)

    def work(number: int) -> int:
        program, right = Program(engine), 0
        kinds: list[type[BaseException]] = [Custom, KeyboardInterrupt, SystemExit]
        current: list[BaseException] = []

        def fail(_: int) -> int:
            current.append(kinds[len(current) % 3](number, len(current)))
            raise current[-1]

        program.does = fail
        call = program.call[function]
        start.wait(30)
        for _ in range(rounds):
            try:
                call(1)
            except BaseException as error:  # noqa: BLE001
                right += error is current[-1]
        return right

    with ThreadPoolExecutor(threads) as pool:
        assert list(pool.map(work, range(threads))) == [rounds] * threads


@pytest.mark.timeout(120)
def test_threads_nest_exceptions_independently(engine: Engine) -> None:
    """On four threads, exceptions that pass three levels of guest and host stay with their thread."""
    threads, rounds = 4, 500
    start = threading.Barrier(threads)

    def work(number: int) -> int:
        program, right = Program(engine), 0

        def step(n: int) -> int:
            if n == 0:
                raise Custom(number)
            try:
                return program.call["blocking"](n - 1)
            except Custom as error:
                raise Custom(*error.args, n) from error

        program.does = step
        start.wait(30)
        for _ in range(rounds):
            try:
                program.call["blocking"](3)
            except Custom as error:
                right += error.args == (number, 1, 2, 3)
        return right

    with ThreadPoolExecutor(threads) as pool:
        assert list(pool.map(work, range(threads))) == [rounds] * threads


def test_endless_recursion_through_the_guest_is_an_error(program: Program) -> None:
    """Whichever frame meets the limit of recursion, Python's or the adapter's, the caller gets a RecursionError."""

    def deeper(n: int) -> int:
        return program.call["blocking"](n + 1)

    def start_at(depth: int) -> None:
        if depth:
            start_at(depth - 1)
        else:
            program.call["blocking"](0)

    program.does = deeper
    for depth in range(12):
        with pytest.raises(RecursionError):
            start_at(depth)
    program.does = lambda n: n
    assert program.call["blocking"](3) == 3


def test_the_recursion_error_of_a_host_function_passes_unchanged(program: Program) -> None:
    """A RecursionError raised by Python code inside a host function reaches the caller as the same object."""
    seen: list[RecursionError] = []

    def endless(n: int) -> int:
        return endless(n + 1)

    def fail(n: int) -> int:
        try:
            return endless(n)
        except RecursionError as error:
            seen.append(error)
            raise

    program.does = fail
    with pytest.raises(RecursionError) as caught:
        program.call["blocking"](0)

    assert [caught.value] == seen


def test_signals_during_guest_code_are_raised_in_the_caller(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal whose handler raises, such as Ctrl-C, interrupts a guest that calls host functions, every time."""
    rounds = 100
    lost: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)
    in_guest = threading.Semaphore(0)

    def handle(*_: object) -> None:
        raise Custom

    def send() -> None:
        for _ in range(rounds):
            assert in_guest.acquire(timeout=30)
            os.kill(os.getpid(), signal.SIGUSR1)

    def tell(n: int) -> int:
        if n == 100_000:
            in_guest.release()
        return n

    program.does = tell
    former = signal.signal(signal.SIGUSR1, handle)
    sender = threading.Thread(target=send)
    try:
        sender.start()
        for _ in range(rounds):
            with pytest.raises(Custom):
                program.loop(100_000)
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, former)

    assert lost == []
    assert program.call["plain"](5) == 5


ENDLESS = """
import sys
sys.setrecursionlimit(10**6)
sys.path.insert(0, {root!r})
import wasmtime
from dl.engine import engine_named
from dl.errors import TrapError
from dl.wasm.types import FuncType

class NoBoundary:
    def enter_host(self): pass
    def exit_host(self, token): pass

engine, unary = engine_named({engine!r}), FuncType(("i32",), ("i32",))
host = engine.host_functions(NoBoundary())
host.define("host", "f", unary, lambda n: call(n + 1))
wasm = wasmtime.wat2wasm('''(module (import "host" "f" (func $f (param i32) (result i32)))
  (func (export "g") (param i32) (result i32) (call $f (local.get 0))))''')
call = engine.new_store(host).instantiate(engine.compile(bytes(wasm)), "m").function("g", unary)
try:
    call(0)
except TrapError as error:
    print(error.reason)
"""


def test_recursion_through_the_host_ends_on_the_guest_stack(engine: Engine) -> None:
    """With Python's limit of recursion out of the way, guest and host calling each other end in a stack overflow trap."""
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", ENDLESS.format(root=root, engine=engine.name)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.stdout, done.returncode) == ("stack overflow\n", 0), done.stderr[-2000:]
