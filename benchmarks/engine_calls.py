"""Times calls between Python and guest code: ours against the binding's own way, in one run.

    python benchmarks/engine_calls.py [--json FILE]

* *the binding*: `wasmtime.Func.__call__`, and host functions made with `wasmtime.Func`.
* *engine seam*: `dl.engine`, below the linker: what every other call is made of.
* *dl*: what users call: `dlsym(...)` and the functions given as `imports`, with safe points on entry and exit.

A call from Python adds two numbers. Host functions are called from a loop in the guest, which costs about a nanosecond a
round, and return their argument.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import wasmtime
from common import BINARY, UNARY, engine_option, library, microseconds_each, report, spread, take_turns
from rich.table import Table

import dl
from dl.engine import default_engine
from dl.engine.protocol import CompiledModule
from dl.wasm.encode import ModuleBuilder, i32_const, local_get, unsigned
from dl.wasm.types import FuncType

REPEAT = FuncType(("i32",), ())
CALLS = 20_000
TARGETS = {"guest": 3.0, "host": 2.0}
"""Microseconds that a call through `dl` may cost."""


def subject() -> bytes:
    """A library: `add`, and `repeat`, which calls the host `n` times."""
    build = ModuleBuilder()
    host = build.import_("env", "host", UNARY)
    build.export("add", "func", build.function(BINARY, local_get(0) + local_get(1) + b"\x6a"))
    # loop; drop(host(n)); n = n - 1; br_if n; end
    call = local_get(0) + b"\x10" + unsigned(host) + b"\x1a"
    step = local_get(0) + i32_const(1) + b"\x6b\x22\x00" + b"\x0d\x00"
    build.export("repeat", "func", build.function(REPEAT, b"\x03\x40" + call + step + b"\x0b"))
    return library(build)


def same(value: int) -> int:
    return value


class NoBoundary:
    def enter_host(self) -> None:
        return None

    def exit_host(self, token: None) -> None:
        pass


def calling(add: Callable[..., Any]) -> Callable[[], float]:
    def many() -> None:
        for _ in range(CALLS):
            add(2, 3)

    assert add(2, 3) == 5
    return lambda: microseconds_each(many, CALLS)


def repeating(repeat: Callable[..., Any]) -> Callable[[], float]:
    return lambda: microseconds_each(lambda: repeat(CALLS), CALLS)


def binding_ways(wasm: bytes) -> tuple[Callable[..., Any], Callable[..., Any]]:
    engine = wasmtime.Engine()
    store = wasmtime.Store(engine)
    i32 = wasmtime.ValType.i32()
    host = wasmtime.Func(store, wasmtime.FuncType([i32], [i32]), same)
    exports = wasmtime.Instance(store, wasmtime.Module(engine, wasm), [host]).exports(store)
    add, repeat = exports["add"], exports["repeat"]
    return (lambda a, b: add(store, a, b)), (lambda n: repeat(store, n))


def seam_ways(wasm: bytes, *, blocking: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    engine = default_engine()
    functions = engine.host_functions(NoBoundary())
    functions.define("env", "host", UNARY, same, blocking=blocking)
    code: CompiledModule = engine.compile(wasm)
    instance = engine.new_store(functions).instantiate(code, "subject")
    return instance.function("add", BINARY), instance.function("repeat", REPEAT)


@click.command()
@engine_option
@click.option("--rounds", default=15, show_default=True, help="Samples of each way.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the numbers there as well.")
def main(rounds: int, json_file: Path | None) -> None:
    """Print what a call costs in each direction."""
    wasm = subject()
    binding_add, binding_repeat = binding_ways(wasm)
    plain_add, plain_repeat = seam_ways(wasm, blocking=False)
    _, bounded_repeat = seam_ways(wasm, blocking=True)
    with dl.Linker(
        None, memory=dl.MemoryType(32, 256), imports={"env": {"host": same}}, interrupts=True
    ) as linker:
        group = linker.main_group
        opened = group.dlopen(wasm, name="libsubject.so")
        ways = {
            "guest": {
                "the binding": calling(binding_add),
                "engine seam": calling(plain_add),
                "dl": calling(group.dlsym(opened, "add")),
            },
            "host": {
                "the binding": repeating(binding_repeat),
                "engine seam": repeating(plain_repeat),
                "engine seam, with boundary": repeating(bounded_repeat),
                "dl": repeating(group.dlsym(opened, "repeat")),
            },
        }
        samples = {direction: take_turns(all_ways, rounds) for direction, all_ways in ways.items()}
    titles = {"guest": "guest function called from Python", "host": "host function called from the guest"}
    tables = []
    for direction, title in titles.items():
        table = Table(title=f"{title}: µs a call, median (fastest-slowest); target {TARGETS[direction]} µs")
        for heading in ("way", "µs", "the binding's µs / this"):
            table.add_column(heading, justify="left" if heading == "way" else "right")
        base = statistics.median(samples[direction]["the binding"])
        for way, times in samples[direction].items():
            table.add_row(way, spread(times), f"{base / statistics.median(times):.1f}")
        tables.append(table)
    report(tables, {"microseconds": samples, "targets": TARGETS}, json_file)


if __name__ == "__main__":
    main()
