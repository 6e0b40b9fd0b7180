"""Times the barrier of a load while every other group computes, alone and beside a thread of Python that computes.

    python benchmarks/barrier.py [--json FILE]

A barrier waits until each computing group has come to a safe point, where it needs the interpreter's lock for some lines of
Python. So it takes as long as their turns, one after the other, and as long as each waits for a processor; on a machine that
does other work the second is nearly all. So there are two numbers: the *whole* barrier, and the sum of the times between two
arrivals, each cut at the longest turn that a computing thread of Python takes while barriers wait, 0.3 ms (*cut*): what it
takes where threads need not wait for processors that others use.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
from common import report, spread
from loads_under_threads import busy_python, program
from rich.table import Table

import dl
from dl.stress.modules import LibraryKind, library_module
from threads import Rendezvous

GROUPS = (1, 4, 16, 64)
LIMIT_MS, LIMIT_GROUPS = 5.0, 64
CUT_NS = 300_000


@contextlib.contextmanager
def arrivals() -> Iterator[list[int]]:
    """List when a barrier begins to wait, and when each group comes to it, nanoseconds."""
    times: list[int] = []
    gather, passes = Rendezvous._gather, Rendezvous._passes

    def gathering(self: Any, waiter: Any, timeout: float | None) -> None:
        times[:] = [time.perf_counter_ns()]
        gather(self, waiter, timeout)
        times.append(time.perf_counter_ns())

    def passing(self: Any, replica: Any, *, waits: bool) -> bool:
        if not waits:
            times.append(time.perf_counter_ns())
        return passes(self, replica, waits=waits)

    Rendezvous._gather, Rendezvous._passes = gathering, passing  # type: ignore[method-assign]
    try:
        yield times
    finally:
        Rendezvous._gather, Rendezvous._passes = gather, passes  # type: ignore[method-assign]


def barriers(groups: int, rounds: int, *, busy: bool) -> dict[str, list[float]]:
    """Milliseconds of barriers with so many computing groups: whole, and cut."""
    wasm = library_module(LibraryKind(1))
    found: dict[str, list[float]] = {"whole": [], "cut": []}
    with busy_python() if busy else contextlib.nullcontext(), program() as linker, arrivals() as times:
        group = linker.main_group
        words = group.dlsym(dl.MAIN_HANDLE, "words").address + 64
        group.dlopen(wasm, name="warm.so")
        threads = [linker.spawn(lambda g: g.dlsym(dl.MAIN_HANDLE, "spin")(words)) for _ in range(groups)]
        for number in range(rounds):
            while linker.statistics().protocol.guest < groups:
                time.sleep(0.001)
            handle = group.dlopen(wasm, name=f"l{number}.so")
            whole = linker.statistics().protocol.barrier_seconds[-1]
            # Those that went into guest code meanwhile come after the barrier's end: they are not waited for.
            end = times[0] + whole * 1e9
            ours = sorted(at for at in times if at <= end)
            found["whole"].append(whole * 1e3)
            found["cut"].append(sum(min(b - a, CUT_NS) for a, b in pairwise(ours)) / 1e6)
        linker.memory.write_u32(words, group.dlsym(handle, "value").address)
        for thread in threads:
            thread.join()
    return found


@click.command()
@click.option("--rounds", default=15, show_default=True, help="Loads with each number of groups.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the numbers there as well.")
def main(rounds: int, json_file: Path | None) -> None:
    """Print what barriers take while groups compute."""
    numbers: dict[str, dict[str, dict[str, list[float]]]] = {}
    table = Table(
        "computing groups", "beside", "whole, ms", "cut, ms", "limit", title="the barrier of a load"
    )
    for side, busy in (("nothing", False), ("busy Python", True)):
        numbers[side] = {}
        for groups in GROUPS:
            found = numbers[side][str(groups)] = barriers(groups, rounds, busy=busy)
            limit = f"{LIMIT_MS:g}" if busy and groups == LIMIT_GROUPS else ""
            table.add_row(str(groups), side, spread(found["whole"]), spread(found["cut"]), limit)
    report([table], {"ms": numbers}, json_file)
    median = statistics.median(numbers["busy Python"][str(LIMIT_GROUPS)]["cut"])
    if median > LIMIT_MS:
        raise SystemExit(
            f"over the limit: a barrier with {LIMIT_GROUPS} groups takes {median:.1f} ms at the median"
        )


if __name__ == "__main__":
    main()
