"""Times `dlopen` by the number of symbols and the size of the library: cold, from the code on disk, warm, and the engine alone.

    python benchmarks/open_time.py [--json FILE]

Each sample is a process of its own, which says how long its `dlopen` took, in CPU time of all its threads.

* *cold*: nothing is cached anywhere.
* *cached*: another process has opened the library before, so its code is on disk.
* *warm*: this process has opened it before, in another program.
* *the engine*: compiling the same bytes and instantiating them, which gives no function an address.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
from common import ROOT, exporter, report, spread, take_turns
from rich.table import Table

EXPORTS = (1, 10, 100, 1_000, 10_000)

OPENS = """
import sys, time
sys.path[0] = {root!r}
import dl
data = open(sys.argv[1], "rb").read()
def opened():
    with dl.Linker(None, memory=dl.MemoryType(32, 256)) as linker:
        # What the process has to import and make once belongs to its start.
        linker.main_group.dlopen({first!r}, dl.RTLD_NOW, name="first.so")
        began = time.process_time_ns()
        linker.main_group.dlopen(data, dl.RTLD_NOW, name="opened.so")
        return (time.process_time_ns() - began) / 1e6
times = [opened() for _ in range(int(sys.argv[2]))]
print(times[-1])
"""
INSTANTIATES = """
import sys, time
import wasmtime
data = open(sys.argv[1], "rb").read()
engine = wasmtime.Engine()
wasmtime.Module(engine, {first!r})
began = time.process_time_ns()
wasmtime.Instance(wasmtime.Store(engine), wasmtime.Module(engine, data), [])
print((time.process_time_ns() - began) / 1e6)
"""


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Processes of each kind.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the numbers there as well.")
def main(rounds: int, json_file: Path | None) -> None:
    """Print what opening a library takes, by its symbols."""
    samples: dict[str, dict[str, list[float]]] = {}
    sizes: dict[str, int] = {}
    first = exporter(1, nonce=b"first")
    scripts = {
        "dl": OPENS.format(root=str(ROOT), first=first),
        "the engine": INSTANTIATES.format(first=first),
    }
    with tempfile.TemporaryDirectory() as directory:

        def way(script: str, library: Path, *arguments: str, cache: str) -> Callable[[], float]:
            environment = {**os.environ, "DLRUN_CACHE": cache}

            def run() -> float:
                command = [sys.executable, "-c", scripts[script], str(library), *arguments]
                done = subprocess.run(
                    command, env=environment, check=True, capture_output=True, text=True, timeout=300
                )
                return float(done.stdout)

            return run

        for count in EXPORTS:
            wasm = exporter(count)
            library = Path(directory) / f"{count}.so"
            library.write_bytes(wasm)
            name, cache = f"{count:,} exports", f"{directory}/code"
            sizes[name] = len(wasm)
            ways = {
                "the engine": way("the engine", library, cache="off"),
                "cold": way("dl", library, "1", cache="off"),
                "cached": way("dl", library, "1", cache=cache),
                "warm": way("dl", library, "2", cache="off"),
            }
            samples[name] = take_turns(ways, rounds)

    table = Table(title="dlopen: ms of CPU time, median (fastest-slowest)")
    for heading in ("library", "KB", "the engine", "cold", "cached", "warm"):
        table.add_column(heading)
    for name, kinds in samples.items():
        table.add_row(name, f"{sizes[name] / 1000:.1f}", *(spread(times) for times in kinds.values()))
    report([table], {"ms": samples, "bytes": sizes}, json_file)


if __name__ == "__main__":
    main()
