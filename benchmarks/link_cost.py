"""Times `dlopen`, split into what it does, against the engine's floor, in one run.

    python benchmarks/link_cost.py [--json FILE]

The floor is what the engine needs for the same bytes with its own linker: define the other library's exports, instantiate,
and when cold compile. It places nothing: no function gets an address, no symbol can be looked up later.

* *cold*: content that the process has not seen before.
* *warm*: the same content again, in a new program of the same process; its parsed form and its code are kept.

The parts: *parse* reads the module, *compile* is the engine's work on its code, *glue* the engine's work on the modules that
the linker generates, *instantiate* that of all of them, *rest* everything else: resolution, placement, generating glue, and
the barrier, all in Python.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
from common import NoBoundary, engine_option, exporter, importer, report, spread, take_turns
from rich.table import Table

import dl
import dl.modules.image
from dl.engine import default_name, engine_named
from dl.engine.protocol import CompiledModule, Engine

PARTS = ("parse", "compile", "glue", "instantiate")
_nonces = itertools.count()


class Clock:
    """Milliseconds spent in parts of the work."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.spent[part] += (time.perf_counter() - start) * 1000

        return call


def new_engine() -> Engine:
    """A new engine of the kind that was chosen: what is cold is unknown to it."""
    make: Callable[[], Engine] = type(engine_named(default_name()))
    return make()


def timed_engine(clock: Clock) -> Engine:
    """A new engine that notes how long it compiles and instantiates."""
    engine: Any = new_engine()
    compile_plain, new_store_plain = engine.compile, engine.new_store

    def compile_timed(wasm: bytes) -> CompiledModule:
        # What is opened has exactly one section that generated modules have not.
        part = "compile" if b"dylink.0" in wasm else "glue"
        return clock.timed(part, compile_plain)(wasm)

    def new_store(host: Any) -> Any:
        store = new_store_plain(host)
        store.instantiate = clock.timed("instantiate", store.instantiate)
        if engine.capabilities.import_lists:
            store.instantiate_listed = clock.timed("instantiate", store.instantiate_listed)
        return store

    engine.compile, engine.new_store = compile_timed, new_store
    engine.plain = (compile_plain, new_store_plain)
    return engine


class Case(NamedTuple):
    """A library to open, after another one that defines what it needs."""

    name: str
    first: Callable[[], bytes] | None
    opened: Callable[[bytes], bytes]


def nonce() -> bytes:
    return str(next(_nonces)).encode()


CASES = (
    Case("1 export", None, lambda nonce: exporter(1, nonce=nonce)),
    Case("1 import", lambda: exporter(1), lambda nonce: importer(1, nonce=nonce)),
    Case("1,000 exports", None, lambda nonce: exporter(1000, nonce=nonce)),
    Case("1,000 imports", lambda: exporter(1000), lambda nonce: importer(1000, nonce=nonce)),
)


def open_in_dl(case: Case, engine: Engine, clock: Clock, wasm: bytes) -> dict[str, float]:
    """Milliseconds of one `dlopen` in a new program: the whole under `dl`, and its parts."""
    with dl.Linker(None, memory=dl.MemoryType(32, 256), engine=engine) as linker:
        group = linker.main_group
        if case.first is not None:
            group.dlopen(case.first(), dl.RTLD_NOW | dl.RTLD_GLOBAL, name="libfirst.so")
        clock.spent.clear()
        start = time.perf_counter()
        group.dlopen(wasm, dl.RTLD_NOW, name="libopened.so")
        whole = (time.perf_counter() - start) * 1000
    parts = {part: clock.spent[part] for part in PARTS}
    return {"dl": whole, **parts, "rest": whole - sum(parts.values())}


def open_in_engine(case: Case, engine: Any, wasm: bytes, code: CompiledModule | None) -> float:
    """Milliseconds the engine itself takes; it compiles where no code is given."""
    compile_plain, new_store_plain = engine.plain
    store = new_store_plain(engine.host_functions(NoBoundary()))
    first = None if case.first is None else store.instantiate(engine.compile(case.first()), "first")
    start = time.perf_counter()
    if first is not None:
        store.define_instance("env", first)
    store.instantiate(code or compile_plain(wasm), "opened")
    return (time.perf_counter() - start) * 1000


def measure(case: Case, rounds: int) -> dict[str, dict[str, list[float]]]:
    clock = Clock()
    engine = timed_engine(clock)
    parse = dl.modules.image.parse_module
    dl.modules.image.parse_module = clock.timed("parse", parse)
    try:
        known = case.opened(nonce())
        code = engine.compile(known)
        parts: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}

        def whole(kind: str) -> float:
            # Generated modules are kept too, by content, and per engine like all code; so cold means a new engine.
            cold = kind == "cold"
            wasm = case.opened(nonce()) if cold else known
            parts[kind].append(open_in_dl(case, timed_engine(clock) if cold else engine, clock, wasm))
            return parts[kind][-1]["dl"]

        samples = take_turns(
            {
                "cold": lambda: whole("cold"),
                "cold floor": lambda: open_in_engine(case, engine, case.opened(nonce()), None),
                "warm": lambda: whole("warm"),
                "warm floor": lambda: open_in_engine(case, engine, known, code),
            },
            rounds,
        )
    finally:
        dl.modules.image.parse_module = parse
    return {
        kind: {
            "floor": samples[f"{kind} floor"],
            **{part: [one[part] for one in parts[kind][1:]] for part in ("dl", *PARTS, "rest")},
        }
        for kind in ("cold", "warm")
    }


@click.command()
@engine_option
@click.option("--rounds", default=15, show_default=True, help="Samples of each way.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the numbers there as well.")
def main(rounds: int, json_file: Path | None) -> None:
    """Print what opening a library costs."""
    numbers = {case.name: measure(case, rounds) for case in CASES}
    tables = []
    for kind in ("cold", "warm"):
        table = Table(title=f"{kind} dlopen: ms, median (fastest-slowest); its parts, medians in ms")
        table.add_column("library")
        for heading in ("floor", "dl", "dl / floor", *PARTS, "rest"):
            table.add_column(heading, justify="right")
        for name, kinds in numbers.items():
            times = kinds[kind]
            ratio = statistics.median(times["dl"]) / statistics.median(times["floor"])
            table.add_row(
                name,
                spread(times["floor"]),
                spread(times["dl"]),
                f"{ratio:.1f}",
                *(f"{statistics.median(times[part]):.2f}" for part in (*PARTS, "rest")),
            )
        tables.append(table)
    report(tables, {"milliseconds": numbers}, json_file)


if __name__ == "__main__":
    main()
