"""Times whole processes, in CPU time: importing the package, the command's help, and running programs of the fixtures.

    python benchmarks/process_start.py [--json FILE]

A program runs twice before it is timed, so its code is on disk: that is the second process. `--no-cache` is the first one.

What the second process is held against is the same with the engine's own binding: a process that imports it and loads, from
one file each, the code of all modules that the program is linked of, generated ones too; and the CPU time of the guest. That
is measured from its start to its end in a process whose linker has run the program before, so that nothing is imported
meanwhile. It has in it what the linker does for a guest that runs: its calls of the system, and instances for its threads.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import click
from common import ROOT, engine_option, report, spread, take_turns
from rich.table import Table

SECOND = ", second process"
BINDING = ", the binding"
GUEST = ", the guest alone"
DLRUN = ("-m", "dl")
PROGRAMS = {
    "threads fixture": ROOT / "fixtures/threads/shared/main.wasm",
    "whole libc (plugins fixture)": ROOT / "fixtures/plugins/shared/main.wasm",
    "C++ (cpp fixture)": ROOT / "fixtures/cpp/shared/main.wasm",
}

KEEP_CODE = """
import os, sys, time
import dl
from dl.engine import default_engine
from dl.engine.wasmtime.engine import WasmtimeEngine as Engine

folder, program = sys.argv[1:]
found = []

def noting(load):
    def noted(*arguments):
        module = load(*arguments)
        found.append(module)
        return module
    return noted

def milliseconds():
    with dl.Linker(program, library_path=[os.path.dirname(program)], stdout=os.devnull) as linker:
        begin = time.process_time()
        linker.main_group.run()
        return (time.process_time() - begin) * 1000

Engine.deserialize, Engine.map_code = noting(Engine.deserialize), noting(Engine.map_code)
milliseconds()
engine = default_engine()
for number, module in enumerate(filter(None, found if folder else ())):
    with open(f"{folder}/{number}.code", "wb") as file:
        file.write(engine._split_code(engine.serialize(module))[1])
print(min(milliseconds() for _ in range(5)))
"""
"""Links and runs a program whose code is on disk, keeps that code in files of a folder, if there is one, and prints what the
guest's run takes."""

LOAD_CODE = """
import sys, wasmtime
config = wasmtime.Config()
config.epoch_interruption = config.shared_memory = config.wasm_threads = True
config.wasm_exceptions = config.wasm_tail_call = config.wasm_memory64 = True
engine = wasmtime.Engine(config)
for file in sys.argv[1:]:
    wasmtime.Module.deserialize_file(engine, file)
"""
"""Loads what `KEEP_CODE` has kept."""


def cpu(arguments: Sequence[str], environment: dict[str, str]) -> float:
    """Milliseconds of CPU time that a Python process takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments], env=environment, check=True, capture_output=True, timeout=120
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000


def guest_time(program: Path, folder: str, environment: dict[str, str]) -> float:
    """Return the milliseconds that a program's guest takes, and keep the code of its modules in a folder; "" for nowhere."""
    command = [sys.executable, "-c", KEEP_CODE, folder, str(program)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120)
    return float(done.stdout)


def kept_code(program: Path, folder: Path, environment: dict[str, str]) -> list[str]:
    """Return files with the code of a program's modules, as the engine serializes it."""
    folder.mkdir()
    for _ in range(2):  # the first process puts the code on disk
        guest_time(program, str(folder), environment)
    return sorted(map(str, folder.iterdir()))


@click.command()
@engine_option
@click.option("--rounds", default=10, show_default=True, help="Processes of each kind.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the numbers there as well.")
def main(rounds: int, json_file: Path | None) -> None:
    """Print what processes cost."""
    kinds: dict[str, tuple[str, ...]] = {
        "bare Python": ("-c", "pass"),
        "import wasmtime": ("-c", "import wasmtime"),
        "import dl": ("-c", "import dl"),
        "import dl; dl.Linker": ("-c", "import dl; dl.Linker"),
        "dlrun --help": (*DLRUN, "--help"),
    }
    guests: dict[str, Callable[[], float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "DLRUN_CACHE": f"{directory}/code",
            "PYTHONPYCACHEPREFIX": f"{directory}/python",
        }
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for name, path in PROGRAMS.items():
            if path.exists():
                kinds[name + ", first process"] = (*DLRUN, "--no-cache", str(path))
                kinds[name + SECOND] = (*DLRUN, str(path))
                if environment.get("DLRUN_ENGINE", "wasmtime") == "wasmtime":
                    code = kept_code(path, Path(directory, path.parts[-3]), environment)
                    kinds[name + BINDING] = ("-c", LOAD_CODE, *code)
                    guests[name + GUEST] = partial(guest_time, path, "", environment)

        def way(arguments: tuple[str, ...]) -> Callable[[], float]:
            cpu(arguments, environment)
            return lambda: cpu(arguments, environment)

        ways = {name: way(arguments) for name, arguments in kinds.items()}
        samples = take_turns({**ways, **guests}, rounds)
    bare = min(samples["bare Python"])
    table = Table("process", "CPU, ms", "fastest over bare Python", title="whole processes")
    for name in kinds:
        table.add_row(name, spread(samples[name], 0), f"{min(samples[name]) - bare:.0f}")
    medians = {name: statistics.median(times) for name, times in samples.items()}
    title = "second process against the binding and the guest"
    ratios = Table("program", "guest, ms", "fastest", "medians", title=title)
    for each in guests:
        name = each.removesuffix(GUEST)
        second, binding, guest = (samples[name + kind] for kind in (SECOND, BINDING, GUEST))
        of = [f(second) / (f(binding) + f(guest)) for f in (min, statistics.median)]
        ratios.add_row(name, spread(guest, 1), *(f"{ratio:.2f}" for ratio in of))
    report([table, ratios], {"cpu_ms": samples, "medians": medians}, json_file)


if __name__ == "__main__":
    main()
