"""Times loads of which nothing is compiled before: one library that needs several, against the engine compiling the same bytes.

    python benchmarks/cold.py [--json FILE]

* *the engine*: compiles one module after the other, each on all processors, and instantiates none.
* *dl, one thread*: the whole `dlopen`, but only the loading thread asks the engine to compile.
* *dl*: as it is: other threads compile what comes next meanwhile.

Every round has modules of its own, of the same form: nobody can have them. Both times are given: on a machine that does other
work the CPU time says what was done, and the time that passed what the user waits, and what other work has taken.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path

import click
from common import BINARY, library, report, spread
from rich.table import Table

import dl
from dl.engine import default_engine
from dl.link import compile as compiling
from dl.stress.modules import dylink_section, with_dylink
from dl.wasm.encode import ModuleBuilder, i32_const, local_get, local_set
from dl.wasm.opcodes import I32_ADD

SHAPES = {
    "8 of 2 functions": (8, 2, 40),
    "8 of 50 functions": (8, 50, 40),
    "4 of 400 functions": (4, 400, 40),
}
"""Libraries, functions of each, additions in each function."""

_ROUND = itertools.count(int.from_bytes(os.urandom(3), "little"))


def libraries(count: int, functions: int, additions: int) -> dict[str, bytes]:
    """Make libraries that no other round has, and `all.so`, which needs them."""
    seed = next(_ROUND)
    made = {}
    for number in range(count):
        build = ModuleBuilder()
        for function in range(functions):
            step = local_get(0) + i32_const(seed + function) + I32_ADD + local_get(1) + I32_ADD + local_set(0)
            body = step * additions + local_get(0)
            build.export(f"f{number}_{function}", "func", build.function(BINARY, body))
        made[f"{number}.so"] = library(build)
    return made


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return milliseconds of time, and of CPU time."""
    cpu, start = time.process_time_ns(), time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - start) / 1e6, (time.process_time_ns() - cpu) / 1e6


def with_the_engine(made: dict[str, bytes]) -> tuple[float, float]:
    """Compile modules one after the other."""
    engine = default_engine()
    return timed(lambda: [engine.compile(wasm) for wasm in made.values()])


def with_dl(made: dict[str, bytes], threads: int) -> tuple[float, float]:
    """Open a library that needs all of them."""
    compiling.MOST_THREADS = threads
    made["all.so"] = with_dylink(ModuleBuilder(), dylink_section(0, tuple(made)))
    with dl.Linker(None, libraries=made, cache=False) as linker:
        return timed(lambda: linker.main_group.dlopen("all.so"))


@click.command()
@click.option("--rounds", default=15, show_default=True, help="Samples of each way.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the numbers there as well.")
def main(rounds: int, json_file: Path | None) -> None:
    """Print what loads cost of which nothing is compiled before."""
    table = Table("libraries", "way", "ms", "CPU, ms", "fastest, ratio", "CPU, ratio", title="cold loads")
    numbers: dict[str, dict[str, dict[str, list[float]]]] = {}
    most = compiling.MOST_THREADS
    for name, shape in SHAPES.items():
        ways: dict[str, Callable[[], tuple[float, float]]] = {
            "the engine": lambda shape=shape: with_the_engine(libraries(*shape)),  # type: ignore[misc]
            "dl, one thread": lambda shape=shape: with_dl(libraries(*shape), 0),  # type: ignore[misc]
            "dl": lambda shape=shape: with_dl(libraries(*shape), most),  # type: ignore[misc]
        }
        samples: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for number in range(rounds + 1):
            for way, measure in ways.items():
                sample = measure()
                if number:
                    samples[way].append(sample)
        numbers[name] = {
            way: {kind: [s[i] for s in taken] for i, kind in enumerate(("ms", "cpu_ms"))}
            for way, taken in samples.items()
        }
        engine = numbers[name]["the engine"]
        for way, times in numbers[name].items():
            ratios = [f"{min(times[kind]) / min(engine[kind]):.2f}" for kind in ("ms", "cpu_ms")]
            table.add_row(name, way, *(spread(times[kind]) for kind in ("ms", "cpu_ms")), *ratios)
    report([table], numbers, json_file)


if __name__ == "__main__":
    main()
