"""Draws a run of the benchmarks: see `run.py plots`.

What is drawn is the fastest sample, since whatever else the machine does only makes samples slower, with a line up to the
median. The files have no date and no random names, so that the same run gives the same bytes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "font.size": 10,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "benchmarks",
}
COLORS = {
    "the engine": "#7f7f7f",
    "cold": "#d62728",
    "cached": "#ff7f0e",
    "warm": "#1f77b4",
    "dl": "#1f77b4",
    "beside busy Python": "#d62728",
}


def fastest(samples: Sequence[float]) -> tuple[float, float]:
    """The fastest sample, and how far the median is above it."""
    least = min(samples)
    return least, statistics.median(samples) - least


def number(value: float) -> str:
    """A number with three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def line(axes: Axes, at: Sequence[float], all_samples: Sequence[Sequence[float]], name: str) -> None:
    """Draw a series as a line with its spread."""
    least, above = zip(*(fastest(samples) for samples in all_samples), strict=True)
    style = "--" if name == "the engine" else "-"
    axes.errorbar(
        at,
        least,
        yerr=([0] * len(least), above),
        label=name,
        color=COLORS.get(name),
        marker="o",
        ms=4,
        ls=style,
        capsize=2,
    )


def bars(axes: Axes, groups: Mapping[str, Mapping[str, Sequence[float]]], unit: str) -> None:
    """Draw ways side by side, a number at each bar."""
    ways = list(next(iter(groups.values())))
    height = 0.8 / len(ways)
    for place_in_group, way in enumerate(ways):
        least, above = zip(*(fastest(samples[way]) for samples in groups.values()), strict=True)
        at = [place + (place_in_group - (len(ways) - 1) / 2) * height for place in range(len(groups))]
        drawn = axes.barh(
            at, least, height, xerr=([0] * len(least), above), label=way, color=COLORS.get(way), capsize=2
        )
        axes.bar_label(drawn, [number(value) for value in least], padding=3, fontsize=8)
    axes.set_yticks(range(len(groups)), list(groups))
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.set_xscale("log")
    axes.margins(x=0.25)
    axes.legend()


def open_time(programs: Mapping[str, Any], axes: Axes) -> None:
    """Draw `dlopen` by exports."""
    numbers = programs["open_time"]
    counts = [int(name.split()[0].replace(",", "")) for name in numbers["ms"]]
    for way in ("cold", "the engine", "cached", "warm"):
        line(axes, counts, [kinds[way] for kinds in numbers["ms"].values()], way)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="exported functions",
        ylabel="ms of CPU time",
        title="Opening a library",
    )
    sizes = axes.secondary_xaxis(-0.2)
    sizes.set_xticks(counts, [number(size / 1000) for size in numbers["bytes"].values()])
    sizes.set_xlabel("kilobytes")
    axes.legend()


def group_cost(programs: Mapping[str, Any], axes: Axes) -> None:
    """Draw a new group by libraries."""
    numbers = {name: kinds for name, kinds in programs["group_cost"]["µs"].items() if name.isdigit()}
    counts = [int(name) for name in numbers]
    for way in ("dl", "the engine"):
        line(axes, counts, [kinds[way] for kinds in numbers.values()], way)
    axes.set(
        xlabel="libraries of 10 exports",
        ylabel="µs of CPU time",
        title="A new instance group",
        ylim=(0, None),
    )
    axes.legend()


def barrier(programs: Mapping[str, Any], axes: Axes) -> None:
    """Draw the barrier of a load by computing groups."""
    for side, name in (("nothing", "dl"), ("busy Python", "beside busy Python")):
        numbers = programs["barrier"]["ms"][side]
        line(axes, [int(key) for key in numbers], [value["cut"] for value in numbers.values()], name)
    axes.set(
        xlabel="computing groups",
        ylabel="ms, waits for an arrival cut at 0.3 ms",
        title="The barrier of a load",
        ylim=(0, None),
    )
    axes.legend()


def calls(programs: Mapping[str, Any], axes: Axes) -> None:
    """Draw what calls of WASI take."""
    bars(axes, programs["wasi_calls"]["µs"], "µs a call")
    axes.set_title("WASI of a program with threads")


def pointers(programs: Mapping[str, Any], axes: Axes) -> None:
    """Draw what calls through function pointers take."""
    bars(
        axes,
        {name: {"dl": times} for name, times in programs["closures"]["nanoseconds"].items()},
        "ns a call",
    )
    axes.get_legend().remove()
    axes.set_title("A call through a function pointer")


PLOTS: dict[str, tuple[str, Callable[[Mapping[str, Any], Axes], None]]] = {
    "open-time": ("open_time", open_time),
    "group-cost": ("group_cost", group_cost),
    "barrier": ("barrier", barrier),
    "wasi-calls": ("wasi_calls", calls),
    "pointer-calls": ("closures", pointers),
}
"""File to the program that it shows, and what draws it."""


def draw(run: Mapping[str, Any], directory: Path) -> Iterator[Path]:
    """Draw what a run has numbers for; yield each file that was written."""
    directory.mkdir(parents=True, exist_ok=True)
    machine = run["machine"]
    below = ", ".join(
        (
            str(machine.get("processor") or machine["machine"]),
            f"{machine.get('processors', '?')} processors",
            f"CPython {machine['python']}",
            f"wasmtime {machine['wasmtime']}",
        )
    )
    for name, (program, make) in PLOTS.items():
        if program not in run["programs"]:
            continue
        with mpl.rc_context(STYLE):
            figure, axes = plt.subplots(figsize=(7, 4.2))
            make(run["programs"], axes)
            others = run.get("used by others", {}).get(program)
            note = below if others is None else f"{below}; others used {others:.0%}"
            figure.supxlabel(note, fontsize=7, color="#555555")
            path = directory / f"{name}.svg"
            figure.savefig(path, metadata={"Date": None})
            plt.close(figure)
        yield path
