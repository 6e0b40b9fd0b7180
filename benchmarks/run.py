"""Runs the benchmarks, compares two runs, and draws one.

    python benchmarks/run.py all --json new.json
    python benchmarks/run.py compare old.json new.json
    python benchmarks/run.py plots new.json docs/pictures

A run is one JSON file: the machine and the versions, for each program how much of the processors others used meanwhile, median
and spread of every series, and the samples. Two runs are compared by the fastest sample of each series: whatever
else the machine does only makes samples slower. A series got worse if its fastest sample is slower by more than 5 % and by more
than the noise, which is how far the fastest quarter of the samples of either run lies apart. Compare runs of one machine, and
on a busy one take runs that took turns.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
from common import machine

PROGRAMS = (
    "barrier",
    "engine_calls",
    "closures",
    "group_cost",
    "link_cost",
    "loads_under_threads",
    "open_time",
    "process_start",
    "second_link",
    "wasi_calls",
)
LEAST = 0.05
"""A difference below this is none, however quiet the machine is."""


class Difference(NamedTuple):
    """A series of samples in two runs.

    Attributes:
        name: where it is in the file.
        old, new: its fastest sample in each.
        noise: by how much its samples differ anyway, as a part of the fastest.
    """

    name: str
    old: float
    new: float
    noise: float

    @property
    def ratio(self) -> float:
        """How many times as long it takes now."""
        return self.new / self.old

    @property
    def worse(self) -> bool:
        """Whether it got slower by more than the noise."""
        return self.ratio > 1 + max(LEAST, self.noise)

    @property
    def better(self) -> bool:
        """Whether it got faster by more than the noise."""
        return self.ratio < 1 / (1 + max(LEAST, self.noise))


def series(numbers: Any, name: str = "") -> Iterator[tuple[str, list[float]]]:
    """Yield every list of samples in the numbers of a run, by its path."""
    if isinstance(numbers, dict):
        for key, value in numbers.items():
            yield from series(value, f"{name} / {key}" if name else str(key))
    elif isinstance(numbers, list) and numbers and all(isinstance(one, (int, float)) for one in numbers):
        yield name, numbers


def noise(samples: list[float]) -> float:
    """How far the fastest quarter of some samples lies apart, as a part of the fastest."""
    ordered = sorted(samples)
    return (ordered[len(ordered) // 4] - ordered[0]) / ordered[0]


def differences(old: Any, new: Any) -> list[Difference]:
    """Compare the series that two runs have in common and that took any time."""
    before = dict(series(old))
    return [
        Difference(name, min(before[name]), min(samples), max(noise(before[name]), noise(samples)))
        for name, samples in series(new)
        if name in before and min(before[name]) > 0 and min(samples) > 0
    ]


def rounded(numbers: Any) -> Any:
    """The numbers of a run with five digits: more are noise, and make a file that is kept three times as long."""
    if isinstance(numbers, dict):
        return {key: rounded(value) for key, value in numbers.items()}
    if isinstance(numbers, list):
        return [rounded(value) for value in numbers]
    return float(f"{numbers:.5g}") if isinstance(numbers, float) else numbers


def summary(numbers: Any) -> dict[str, dict[str, float]]:
    """Median, quartiles and bounds of every series."""
    found = {}
    for name, samples in series(numbers):
        ordered = sorted(samples)
        found[name] = {
            "median": statistics.median(ordered),
            "least": ordered[0],
            "lower quartile": ordered[len(ordered) // 4],
            "upper quartile": ordered[-1 - len(ordered) // 4],
            "most": ordered[-1],
            "samples": len(ordered),
        }
    return found


@contextlib.contextmanager
def used_by_others() -> Iterator[list[float]]:
    """At the end of the block, put into the list which part of the processors' time others used meanwhile."""

    import psutil  # noqa: PLC0415  comparing two runs needs no library for it

    def busy() -> float:
        times = psutil.cpu_times()
        return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))

    def ours() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system

    part: list[float] = []
    began, others = time.monotonic(), busy() - ours()
    try:
        yield part
    finally:
        wall = time.monotonic() - began
        part.append(max(0.0, (busy() - ours() - others) / (wall * (os.cpu_count() or 1))))


@click.group()
def cli() -> None:
    """Run the benchmarks, compare two runs, or draw one."""


@cli.command("all")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), required=True, help="Where to write the numbers."
)
@click.option(
    "--only", multiple=True, type=click.Choice(PROGRAMS), help="Run only this program; may be repeated."
)
@click.option("--rounds", type=int, help="Samples of each way; each program's own number by default.")
def run_all(json_file: Path, only: tuple[str, ...], rounds: int | None) -> None:
    """Run the benchmarks one after the other, and write all their numbers into one file."""
    results: dict[str, Any] = {}
    others: dict[str, float] = {}
    missed = []
    for name in only or PROGRAMS:
        click.echo(f"--- {name}")
        with tempfile.TemporaryDirectory() as directory:
            numbers = Path(directory) / "numbers.json"
            command = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), "--json", str(numbers)]
            with used_by_others() as part:
                done = subprocess.run([*command, *(["--rounds", str(rounds)] if rounds else [])], check=False)
            others[name] = round(part[0], 2)
            if done.returncode:
                missed.append(name)
            if numbers.exists():
                results[name] = json.loads(numbers.read_text())
                del results[name]["machine"]
    whole = {
        "machine": machine(),
        "used by others": others,
        "summary": summary(results),
        "programs": results,
    }
    json_file.write_text(json.dumps(rounded(whole), ensure_ascii=False) + "\n", encoding="utf-8")
    if missed:
        raise SystemExit(f"failed, or over a limit: {', '.join(missed)}")


@cli.command()
@click.argument("old", type=click.Path(exists=True, path_type=Path))
@click.argument("new", type=click.Path(exists=True, path_type=Path))
def compare(old: Path, new: Path) -> None:
    """Say what got worse and what got better; the exit code is 1 if anything got worse."""
    before, after = json.loads(old.read_text(encoding="utf-8")), json.loads(new.read_text(encoding="utf-8"))
    if before["machine"] != after["machine"]:
        click.echo(f"different machines or versions: {before['machine']} and {after['machine']}")
    found = differences(before["programs"], after["programs"])
    for title, chosen in (
        ("worse", [one for one in found if one.worse]),
        ("better", [one for one in found if one.better]),
    ):
        click.echo(f"{title}: {len(chosen)} of {len(found)}")
        for one in sorted(chosen, key=lambda one: -one.ratio):
            click.echo(
                f"  {one.ratio:6.2f} x  {one.old:10.3f} -> {one.new:10.3f}  (noise {one.noise:.0%})  {one.name}"
            )
    if any(one.worse for one in found):
        raise SystemExit(1)


@cli.command("plots")
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
def draw(run: Path, directory: Path) -> None:
    """Draw a run: one SVG for each question. Needs the extra `benchmarks`."""
    import plots  # noqa: PLC0415  the other commands need no library for it

    for written in plots.draw(json.loads(run.read_text(encoding="utf-8")), directory):
        click.echo(written)


if __name__ == "__main__":
    cli()
