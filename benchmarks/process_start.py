"""Times whole processes, in CPU time: importing the package, the command's help, and running programs of the fixtures.

    python benchmarks/process_start.py [--json FILE]

A program runs twice before it is timed, so its code is on disk: that is the second process. `--no-cache` is the first one. What
it cannot be faster than is bare Python importing the binding.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from common import ROOT, engine_option, report, spread, take_turns
from rich.table import Table

DLRUN = ("-m", "dl")
PROGRAMS = {
    "threads fixture": ROOT / "fixtures/threads/shared/main.wasm",
    "whole libc (plugins fixture)": ROOT / "fixtures/plugins/shared/main.wasm",
    "C++ (cpp fixture)": ROOT / "fixtures/cpp/shared/main.wasm",
}


def cpu(arguments: Sequence[str], environment: dict[str, str]) -> float:
    """Milliseconds of CPU time that a Python process takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments], env=environment, check=True, capture_output=True, timeout=120
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000


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
    for name, path in PROGRAMS.items():
        if path.exists():
            kinds[f"{name}, first process"] = (*DLRUN, "--no-cache", str(path))
            kinds[f"{name}, second process"] = (*DLRUN, str(path))
    with tempfile.TemporaryDirectory() as directory:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "DLRUN_CACHE": f"{directory}/code",
            "PYTHONPYCACHEPREFIX": f"{directory}/python",
        }
        environment.pop("PYTHONDONTWRITEBYTECODE", None)

        def way(arguments: tuple[str, ...]) -> Callable[[], float]:
            cpu(arguments, environment)
            return lambda: cpu(arguments, environment)

        samples = take_turns({name: way(arguments) for name, arguments in kinds.items()}, rounds)
    bare = min(samples["bare Python"])
    table = Table("process", "CPU, ms", "fastest over bare Python", title="whole processes")
    for name, times in samples.items():
        table.add_row(name, spread(times, 0), f"{min(times) - bare:.0f}")
    medians = {name: statistics.median(times) for name, times in samples.items()}
    report([table], {"cpu_ms": samples, "medians": medians}, json_file)


if __name__ == "__main__":
    main()
