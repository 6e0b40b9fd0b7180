"""Interrupting guest code that calls nobody: from another thread, by signals, and what a handler may do."""

from __future__ import annotations

import _thread
import signal
import threading
import time
from collections.abc import Callable

import pytest

from dl.engine import engine_named
from dl.engine.protocol import Engine
from dl.wasm.types import FuncType
from tests.support.engines import NoBoundary, compiled

SPIN = """
(module
  (import "host" "running" (func $running))
  (global $rounds (export "rounds") (mut i64) (i64.const 0))
  (table (export "table") 1 funcref)
  (func (export "size") (result i32) (table.size 0))
  (func (export "call") (param i32) (result i32) (call_indirect (result i32) (local.get 0)))
  (func (export "spin")
    (call $running)
    (loop $again (global.set $rounds (i64.add (global.get $rounds) (i64.const 1))) (br $again)))
  (func (export "spin_until") (param i32)
    (call $running)
    (loop $again (br_if $again (i32.lt_u (table.size 0) (local.get 0)))))
)
"""
GROWER = """
(module
  (import "main" "table" (table 1 funcref))
  (func $f (result i32) (i32.const 7))
  (func $grow (drop (table.grow (ref.func $f) (i32.const 1))))
  (elem declare func $f)
  (start $grow))
"""
NOTHING, NUMBER = FuncType((), ()), FuncType((), ("i32",))


class Stop(BaseException):
    """What a handler raises."""


class Spinner:
    """A guest that spins, in the thread that makes it, and its store."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.spinning = threading.Event()
        host = engine.host_functions(NoBoundary())
        host.define("host", "running", NOTHING, self.spinning.set, blocking=False)
        self.store = engine.new_store(host)
        self.instance = self.store.instantiate(compiled(engine, SPIN), "spin")
        self.spin = self.instance.function("spin", NOTHING)
        self.spin_until = self.instance.function("spin_until", FuncType(("i32",), ()))


@pytest.fixture(autouse=True)
def _needs_interrupts(engine: Engine) -> None:
    if not engine.capabilities.interrupts:
        pytest.skip("the engine has no interrupts")


def interrupting(spinner: Spinner, done: Callable[[], bool]) -> threading.Thread:
    """Interrupt from another thread, once the guest spins, until it was heard; as anybody must who needs to be."""

    def run() -> None:
        assert spinner.spinning.wait(30)
        while not done():
            spinner.engine.interrupt()
            time.sleep(0.001)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.timeout(60)
def test_a_spinning_guest_is_interrupted_within_milliseconds(engine: Engine) -> None:
    """The handler runs inside guest code that calls no host function, and what it raises reaches the caller."""
    spinner = Spinner(engine)
    heard: list[float] = []
    asked: list[float] = []
    raised = Stop()

    def handler() -> None:
        heard.append(time.monotonic())
        raise raised

    spinner.store.on_interrupt(handler)

    def done() -> bool:
        if not asked:
            asked.append(time.monotonic())
        return bool(heard)

    thread = interrupting(spinner, done)
    with pytest.raises(Stop) as caught:
        spinner.spin()
    thread.join()

    assert caught.value is raised
    assert (
        heard[0] - asked[0] < 5
    )  # milliseconds when the machine is idle; the bound is for a machine that is not


@pytest.mark.timeout(60)
def test_a_handler_links_and_the_guest_goes_on(engine: Engine) -> None:
    """A handler may instantiate modules whose start functions grow the table, and the guest sees it and goes on."""
    spinner = Spinner(engine)
    grower = compiled(engine, GROWER)
    spinner.store.define_instance("main", spinner.instance)
    calls: list[int] = []
    size = spinner.instance.function("size", NUMBER)

    def handler() -> None:
        calls.append(size())
        spinner.store.instantiate(grower, "grower")

    spinner.store.on_interrupt(handler)
    thread = interrupting(spinner, lambda: len(calls) >= 4)
    spinner.spin_until(5)
    thread.join()

    assert calls[:4] == [1, 2, 3, 4]
    assert spinner.instance.function("call", FuncType(("i32",), ("i32",)))(4) == 7


@pytest.mark.timeout(60)
def test_a_handler_may_call_the_guest(engine: Engine) -> None:
    """A handler may call a function of the interrupted store, interrupts during which wait until it has returned."""
    spinner = Spinner(engine)
    results: list[None] = []

    def handler() -> None:
        engine.interrupt()
        results.append(spinner.spin_until(1))
        if len(results) == 3:
            raise Stop

    spinner.store.on_interrupt(handler)
    thread = interrupting(spinner, lambda: len(results) >= 3)
    with pytest.raises(Stop):
        spinner.spin()
    thread.join()

    assert results == [None] * 3


@pytest.mark.timeout(60)
def test_every_store_that_runs_hears_an_interrupt(engine: Engine) -> None:
    """One engine, four threads: each thread's own handler raises in its own thread."""
    results: list[object] = []
    ready = threading.Barrier(5)

    def work(number: int) -> None:
        spinner = Spinner(engine)

        def handler() -> None:
            raise Stop(number)

        spinner.store.on_interrupt(handler)
        ready.wait(30)
        try:
            spinner.spin()
        except Stop as stop:
            results.append(stop.args == (number,))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    ready.wait(30)
    while any(thread.is_alive() for thread in threads):
        engine.interrupt()
        time.sleep(0.001)

    assert results == [True] * 4


@pytest.mark.timeout(60)
def test_an_interrupt_that_nobody_handles_does_nothing(engine: Engine) -> None:
    """A store without a handler goes on, and one that is not running does not run its handler later than needed."""
    spinner = Spinner(engine)
    for _ in range(100):
        engine.interrupt()
        spinner.spin_until(1)

    heard: list[None] = []
    spinner.store.on_interrupt(lambda: heard.append(None))
    spinner.spin_until(1)
    assert len(heard) <= 1


@pytest.mark.timeout(60)
def test_ctrl_c_reaches_a_spinning_guest(engine: Engine) -> None:
    """A signal waits for Python code to run; an interrupt makes some run, and the guest call raises KeyboardInterrupt."""
    spinner = Spinner(engine)
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    over = threading.Event()

    def send() -> None:
        assert spinner.spinning.wait(30)
        _thread.interrupt_main(signal.SIGINT)
        while not over.is_set():
            engine.interrupt()
            time.sleep(0.001)

    sender = threading.Thread(target=send)
    try:
        sender.start()
        with pytest.raises(KeyboardInterrupt):
            spinner.spin()
    finally:
        over.set()
        sender.join()
        signal.signal(signal.SIGINT, former)

    spinner.spin_until(1)


def test_an_engine_without_interrupts_says_so(engine: Engine) -> None:
    """Without interrupts the code has no checks, the capability is off, and asking for one is harmless."""
    without = engine_named(engine.name, interrupts=False)
    without.interrupt()

    assert not without.capabilities.interrupts
    assert engine.capabilities.interrupts
