"""Runs the benchmarks, and compares two runs.

    python benchmarks/run.py all --json new.json
    python benchmarks/run.py compare old.json new.json

A run is one JSON file with the numbers of every program. Two runs are compared by the fastest sample of each series: whatever
else the machine does only makes samples slower. A series got worse if its fastest sample is slower by more than 5 % and by more
than the noise, which is how far the fastest quarter of the samples of either run lies apart. Compare runs of one machine, and
on a busy one take runs that took turns.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
from common import machine

PROGRAMS = ("engine_calls", "closures", "link_cost", "loads_under_threads", "process_start", "wasi_calls")
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


@click.group()
def cli() -> None:
    """Run the benchmarks, or compare two runs."""


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
    missed = []
    for name in only or PROGRAMS:
        click.echo(f"--- {name}")
        with tempfile.TemporaryDirectory() as directory:
            numbers = Path(directory) / "numbers.json"
            command = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), "--json", str(numbers)]
            done = subprocess.run([*command, *(["--rounds", str(rounds)] if rounds else [])], check=False)
            if done.returncode:
                missed.append(name)
            if numbers.exists():
                results[name] = json.loads(numbers.read_text())
                del results[name]["machine"]
    json_file.write_text(json.dumps({"machine": machine(), "programs": results}, indent=1) + "\n")
    if missed:
        raise SystemExit(f"failed, or over a limit: {', '.join(missed)}")


@cli.command()
@click.argument("old", type=click.Path(exists=True, path_type=Path))
@click.argument("new", type=click.Path(exists=True, path_type=Path))
def compare(old: Path, new: Path) -> None:
    """Say what got worse and what got better; the exit code is 1 if anything got worse."""
    before, after = json.loads(old.read_text()), json.loads(new.read_text())
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


if __name__ == "__main__":
    cli()
