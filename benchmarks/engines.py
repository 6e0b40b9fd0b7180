"""Holds the engines that are installed against each other: calls, compiling, instantiating, loads, and what interrupts cost.

    python benchmarks/engines.py

All engines take their turn in one process, and what is measured is the CPU time of the process, the fastest of all rounds: so
the numbers say something on a busy machine too. Only interrupts and the loads beside 64 groups, of which half spin, are
wall-clock time.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import wasmtime
from closures import make_ways
from common import BINARY, UNARY, NoBoundary, exporter, importer, report
from loads_under_threads import loads, program
from rich.table import Table

import dl
from dl.engine import engine_named, known_engines
from dl.stress.modules import LibraryKind, library_module
from dl.wasm.types import FuncType

CALLS = 20_000
SUBJECT = """
(module
  (import "env" "host" (func $host (param i32) (result i32)))
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func (export "repeat") (param i32) (result i32)
    (loop $again (drop (call $host (local.get 0)))
      (br_if $again (local.tee 0 (i32.sub (local.get 0) (i32.const 1))))) (local.get 0)))
"""
HEARING = '(module (import "env" "ask" (func $ask)) (func (export "hear") (call $ask) (loop)))'
KERNELS = """
(module (memory 1)
  (func (export "multiply") (param i32) (result i32) (local $x i32) (local.set $x (i32.const 1))
    (loop $again (local.set $x (i32.add (i32.mul (local.get $x) (i32.const 1664525)) (i32.const 1013904223)))
      (br_if $again (local.tee 0 (i32.sub (local.get 0) (i32.const 1))))) (local.get $x))
  (func (export "memory") (param i32) (result i32)
    (loop $again
      (i32.store (i32.and (local.get 0) (i32.const 0xfffc)) (i32.add (i32.load (i32.const 0)) (local.get 0)))
      (br_if $again (local.tee 0 (i32.sub (local.get 0) (i32.const 1))))) (i32.load (i32.const 0)))
  (func $fib (export "calls") (param i32) (result i32)
    (if (result i32) (i32.lt_u (local.get 0) (i32.const 2)) (then (local.get 0))
      (else (i32.add (call $fib (i32.sub (local.get 0) (i32.const 1))) (call $fib (i32.sub (local.get 0) (i32.const 2))))))))
"""
ROUNDS_OF = {"multiply": 20_000_000, "memory": 20_000_000, "calls": 30}
_nonces = itertools.count()


def cpu(work: Callable[[], object]) -> float:
    """Seconds of CPU that the process needs for some work."""
    gc.disable()
    start = time.process_time()
    work()
    spent = time.process_time() - start
    gc.enable()
    return spent


def calls(name: str) -> dict[str, Callable[[], float]]:
    """Ways to measure an engine, in microseconds or milliseconds as `UNITS` says."""
    engine: Any = engine_named(name)
    host = engine.host_functions(NoBoundary())
    host.define("env", "host", UNARY, lambda n: n, blocking=False)
    code = engine.compile(bytes(wasmtime.wat2wasm(SUBJECT)))
    instance = engine.new_store(host).instantiate(code, "subject")
    add, repeat = instance.function("add", BINARY), instance.function("repeat", UNARY)
    thousand = exporter(1000)
    kept = engine.serialize(engine.compile(thousand))
    thousand_code = engine.compile(thousand)

    def many() -> None:
        for _ in range(CALLS):
            add(1, 2)

    def stores() -> None:
        for _ in range(200):
            store = engine.new_store(host)
            store.instantiate(code, "subject")
            store.close()

    asked: list[float] = []
    heard: list[float] = []

    def ask() -> None:
        engine.interrupt()
        asked.append(time.perf_counter())

    asking = engine.host_functions(NoBoundary())
    asking.define("env", "ask", FuncType((), ()), ask, blocking=False)
    asked_store = engine.new_store(asking)

    def hear() -> None:
        if len(heard) < len(asked):  # else it is another program's
            heard.append(time.perf_counter())

    asked_store.on_interrupt(hear)
    hearing = asked_store.instantiate(engine.compile(bytes(wasmtime.wat2wasm(HEARING))), "hearing").function(
        "hear", FuncType((), ())
    )

    def latency() -> float:
        asked.clear()
        heard.clear()
        for _ in range(200):
            hearing()
        return 1e6 * statistics.median(after - before for before, after in zip(asked, heard, strict=True))

    def opening(count: int, *, warm: bool) -> float:
        wasm = exporter(count, nonce=b"" if warm else str(next(_nonces)).encode())
        with dl.Linker(None, memory=dl.MemoryType(32, 256), engine=engine, cache=False) as linker:
            group = linker.main_group
            return cpu(lambda: group.dlopen(wasm, name="lib.so")) * 1e3

    def importing(count: int) -> float:
        first, wasm = exporter(count), importer(count)
        with dl.Linker(None, memory=dl.MemoryType(32, 256), engine=engine, cache=False) as linker:
            group = linker.main_group
            group.dlopen(first, dl.RTLD_NOW | dl.RTLD_GLOBAL, name="libfirst.so")
            return cpu(lambda: group.dlopen(wasm, name="lib.so")) * 1e3

    def instantiated() -> None:
        store = engine.new_store(host)
        made = store.instantiate(thousand_code, "thousand")
        store.define_instance("thousand", made)
        store.close()

    return {
        "host → guest, µs": lambda: cpu(many) / CALLS * 1e6,
        "guest → host, µs": lambda: cpu(lambda: repeat(CALLS)) / CALLS * 1e6,
        "interrupt, from the request to the handler, µs": latency,
        "a store with one instance, µs": lambda: cpu(stores) / 200 * 1e6,
        "compile 1 function, ms": lambda: (
            cpu(lambda: engine.compile(exporter(1, nonce=str(next(_nonces)).encode()))) * 1e3
        ),
        "compile 1,000 functions, ms": lambda: cpu(lambda: engine.compile(thousand)) * 1e3,
        "load 1,000 functions, compiled, ms": lambda: cpu(lambda: engine.deserialize(kept)) * 1e3,
        "instantiate 1,000 exports and define them, ms": lambda: cpu(instantiated) * 1e3,
        "dlopen, cold, 1 export, ms": lambda: opening(1, warm=False),
        "dlopen, warm, 1 export, ms": lambda: opening(1, warm=True),
        "dlopen, cold, 1,000 exports, ms": lambda: opening(1000, warm=False),
        "dlopen, warm, 1,000 exports, ms": lambda: opening(1000, warm=True),
        "dlopen, warm, 1,000 imports, ms": lambda: importing(1000),
    }


GROUPS, LOADS = 64, 10
THROWER = """
(module (tag $t (param i32))
  (func (export "throw") (param i32) (result i32)
    (loop $again
      (block $caught (result i32) (try_table (catch $t $caught) (throw $t (local.get 0))) (i32.const 0)) (drop)
      (br_if $again (local.tee 0 (i32.sub (local.get 0) (i32.const 1))))) (local.get 0)))
"""


def pointers(name: str) -> dict[str, Callable[[], float]]:
    """Ways to measure an engine's calls from guest to guest through what the linker makes, in nanoseconds a call."""
    linker = dl.Linker(
        None, memory=dl.MemoryType(2, 1000, shared=True), engine=engine_named(name), cache=False
    )
    calls = 1_000_000

    def way(function: dl.GuestFunction, pointer: int, count: int) -> Callable[[], float]:
        return lambda: cpu(lambda: function(count, pointer)) / count * 1e9

    found: dict[str, Callable[[], float]] = {}
    for what, (function, pointer, fewer) in make_ways(linker).items():
        unit = "call_indirect to another module" if what == "call_indirect" else what
        found[f"{unit}, ns"] = way(function, pointer, calls // fewer)
    engine: Any = engine_named(name)
    store = engine.new_store(engine.host_functions(NoBoundary()))
    throw = store.instantiate(engine.compile(bytes(wasmtime.wat2wasm(THROWER))), "thrower").function(
        "throw", UNARY
    )
    found["throw and catch, ns"] = lambda: cpu(lambda: throw(2000)) / 2000 * 1e9
    return found


def threads(name: str) -> dict[str, Callable[[], float]]:
    """Ways to measure what threads take: new ones, in microseconds, and loads beside many, in milliseconds."""
    engine = engine_named(name)
    found: dict[str, Callable[[], float]] = {}
    for libraries in (0, 100):
        linker = program(engine)
        for number in range(libraries):
            linker.main_group.dlopen(library_module(LibraryKind(number % 8)), name=f"l{number}.so")

        def spawn(linker: dl.Linker = linker) -> None:
            for _ in range(20):
                linker.spawn(lambda _group: None).join()

        found[f"a new thread, {libraries} libraries, µs"] = lambda spawn=spawn: cpu(spawn) / 20 * 1e6  # type: ignore[misc]
    found[f"a load beside {GROUPS} groups, median, ms"] = lambda: statistics.median(
        loads(GROUPS, LOADS, engine=engine)[0]
    )
    return found


def kernels(name: str, *, interrupts: bool) -> dict[str, Callable[[], float]]:
    """Ways to measure code that computes, in nanoseconds a round, or a call of `fib(30)` in milliseconds."""
    engine: Any = engine_named(name, interrupts=interrupts)
    store = engine.new_store(engine.host_functions(NoBoundary()))
    instance = store.instantiate(engine.compile(bytes(wasmtime.wat2wasm(KERNELS))), "kernels")
    found = {one: instance.function(one, FuncType(("i32",), ("i32",))) for one in ROUNDS_OF}
    return {
        one: (lambda one=one: cpu(lambda: found[one](ROUNDS_OF[one])) * 1e3)  # type: ignore[misc]
        for one in ROUNDS_OF
    }


def fastest(ways: dict[tuple[str, str], Callable[[], float]], rounds: int) -> dict[str, dict[str, float]]:
    """Let all ways take turns; return the fastest sample of each, by what is measured and by engine."""
    found: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for (what, engine), way in ways.items():
            sample, row = way(), found.setdefault(what, {})
            row[engine] = min(sample, row.get(engine, sample))
    return found


@click.command()
@click.option("--rounds", default=15, show_default=True, help="Samples of each way.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the numbers there as well.")
def main(rounds: int, json_file: Path | None) -> None:
    """Print what the engines need for the same work."""
    names = known_engines()
    costs: dict[str, dict[str, float]] = {}
    for ways in (calls, pointers, threads):
        costs |= fastest({(what, name): way for name in names for what, way in ways(name).items()}, rounds)
    plain = fastest(
        {(what, name): way for name in names for what, way in kernels(name, interrupts=False).items()}, rounds
    )
    checked = fastest(
        {(what, name): way for name in names for what, way in kernels(name, interrupts=True).items()}, rounds
    )
    table = Table(title="CPU time, fastest of all rounds")
    checks = Table(title="code that computes: ms without interrupts, and what they add")
    for one in (table, checks):
        one.add_column("what")
        for name in names:
            one.add_column(name, justify="right")
    for name in names[1:]:
        table.add_column(f"{name} / {names[0]}", justify="right")
    for what, row in costs.items():
        ratios = (f"{row[name] / row[names[0]]:.1f}" for name in names[1:])
        table.add_row(what, *(f"{row[name]:.2f}" for name in names), *ratios)
    for what, row in plain.items():
        checks.add_row(
            what, *(f"{row[name]:.0f} {checked[what][name] / row[name] - 1:+.0%}" for name in names)
        )
    report([table, checks], {"costs": costs, "plain": plain, "checked": checked}, json_file)


if __name__ == "__main__":
    main()
