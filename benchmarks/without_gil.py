"""What two threads bring where both run Python, with a GIL and without one.

Guest code runs in parallel on any interpreter: `loads_under_threads.py` has that. This is about host functions, `dlsym`,
`dlopen` and `spawn`, which are Python, and about a barrier beside a thread of Python that computes.

    PYTHON_GIL=0 python3.13t benchmarks/without_gil.py --beside python3.13

Each interpreter runs in a process of its own. Times are the least of many short rounds, because another process on the machine
can only make a round longer, and one and two threads take turns. Two threads need two processors for themselves: on a machine
that does something else, only with a real-time priority (`chrt -r 1`), for which `--without-barriers` is meant.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from common import UNARY, library, report, take_turns
from loads_under_threads import loads
from rich.table import Table

import dl
from dl.stress.modules import LibraryKind, library_module, program_module
from dl.wasm.encode import ModuleBuilder, i32_const, local_get, unsigned

SPEED_UP = 1.8
"""Least speed-up of two threads whose guests call host functions, without a GIL."""

Work = Callable[[dl.InstanceGroup, int], None]
"""A share of work: gets the thread's group and the thread's number."""


def calling_library() -> bytes:
    """A library whose `nothing(n)` and `some(n)` call the host functions `env.nothing` and `env.some` so many times."""
    build = ModuleBuilder()
    hosts = {name: build.import_("env", name, UNARY) for name in ("nothing", "some")}
    for name, host in hosts.items():
        call = local_get(0) + b"\x10" + unsigned(host) + b"\x1a"
        count = local_get(0) + i32_const(1) + b"\x6b\x22\x00\x0d\x00"  # sub, local.tee 0, br_if 0
        build.export(name, "func", build.function(UNARY, b"\x03\x40" + call + count + b"\x0b" + local_get(0)))
    return library(build)


def nothing(value: int) -> int:
    return value


def some(value: int) -> int:
    """Some microseconds of Python on data of its own."""
    total = 0
    for number in range(50):
        total += number ^ value
    return total & 0xFF


def works(linker: dl.Linker) -> dict[str, Work]:
    """Return what is measured, by name."""
    # Each thread has a handle of its own, as it has if it opens the library itself; one object would be contended.
    handles = [linker.main_group.dlopen(calling_library(), name="calls.so") for _ in range(2)]
    # Each thread has bytes of its own, so that the two load two libraries and do not wait for one.
    sources = [library_module(LibraryKind(number)) for number in range(2)]
    for number, source in enumerate(sources):
        linker.main_group.dlopen(source, name=f"warm{number}.so")

    def call(name: str, times: int) -> Work:
        def work(group: dl.InstanceGroup, number: int) -> None:
            group.dlsym(handles[number], name)(times)

        return work

    def look_up(group: dl.InstanceGroup, number: int) -> None:
        handle = handles[number]
        for _ in range(1_000):
            group.dlsym(handle, "some")

    def load(group: dl.InstanceGroup, number: int) -> None:
        for step in range(4):
            group.dlclose(group.dlopen(sources[number], name=f"l{number}-{step}.so"))

    def start(_group: dl.InstanceGroup, _number: int) -> None:
        for _ in range(4):
            linker.spawn(lambda _group: None).join()

    return {
        "host function that does nothing": call("nothing", 2_000),
        "host function of some microseconds": call("some", 400),
        "dlsym": look_up,
        "spawn and join": start,  # before closes, which leave a new thread more to place in its table
        "dlopen and dlclose": load,
    }


def measured(rounds: int, *, with_barriers: bool) -> dict[str, Any]:
    """Measure this interpreter.

    Returns the least milliseconds of each work in one thread and in two, then the median milliseconds that the processor spent
    on a thread's share of it, in one and in two; and barriers.
    """
    imports = {
        "nothing": nothing,
        "some": some,
        "on_thread": lambda _number, _record: None,
        "on_construct": lambda _addend: None,
    }
    times: dict[str, list[float]] = {}
    with dl.Linker(program_module(), imports={"env": imports}) as linker:
        start, done = threading.Barrier(3), threading.Barrier(3)
        current: list[tuple[Work, int] | None] = [None]
        failures: list[BaseException] = []
        spans: list[tuple[float, float, float]] = []
        used: dict[int, list[float]] = {1: [], 2: []}

        def body(group: dl.InstanceGroup, number: int) -> None:
            while True:
                start.wait()
                if current[0] is None:
                    return
                work, active = current[0]
                try:
                    if number < active:
                        began, used = time.perf_counter(), time.thread_time()
                        work(group, number)
                        spans.append((began, time.perf_counter(), time.thread_time() - used))
                except BaseException as error:  # noqa: BLE001  raised below
                    failures.append(error)
                done.wait()

        def turn(work: Work, active: int) -> float:
            current[0] = work, active
            spans.clear()
            start.wait()
            done.wait()
            if failures:
                raise failures[0]
            # From the threads' own clocks: this thread may get the processor late.
            used[active].append(1e3 * statistics.mean(cpu for _, _, cpu in spans))
            return 1e3 * (max(ended for _, ended, _ in spans) - min(began for began, _, _ in spans))

        threads = [linker.spawn(body, number) for number in range(2)]
        for name, work in works(linker).items():
            for earlier in used.values():
                earlier.clear()
            samples = take_turns(
                {"one": lambda work=work: turn(work, 1), "two": lambda work=work: turn(work, 2)}, rounds
            )
            processor = [statistics.median(used[active][1:]) for active in (1, 2)]
            times[name] = [min(samples["one"]), min(samples["two"]), *processor]
        current[0] = None
        start.wait()
        for thread in threads:
            thread.join()
    barriers = {}
    for busy in (False, True) if with_barriers else ():
        _, barrier = loads(16, max(rounds // 4, 5), busy=busy)
        barriers["beside a busy thread" if busy else "alone"] = sorted(barrier)[len(barrier) // 2]
    is_gil_enabled = getattr(sys, "_is_gil_enabled", lambda: True)()
    return {"python": sys.version.split(" (")[0], "gil": is_gil_enabled, "times": times, "barriers": barriers}


def beside(python: str, rounds: int, *, with_barriers: bool) -> dict[str, Any]:
    """Measure another interpreter, which has what this benchmark imports."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [python, __file__, "--rounds", str(rounds), "--only-into", str(result)]
        command += [] if with_barriers else ["--without-barriers"]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHON_GIL"}
        subprocess.run(command, check=True, env=environment)
        found: dict[str, Any] = json.loads(result.read_text())
        return found


def ratios(result: dict[str, Any], name: str) -> tuple[float, float]:
    """Return how many times as fast two threads are: by the clock, and by what the processor spends on a share of the work.

    The second says what threads that run at the same time cost each other. It knows nothing of a thread that waits for another,
    nor of threads that never ran at the same time: read it where the first is near it.
    """
    one, two, processor_one, processor_two = result["times"][name]
    return 2 * one / two, 2 * processor_one / processor_two


@click.command()
@click.option("--rounds", default=40, show_default=True, help="Rounds of each work and number of threads.")
@click.option("--beside", "others", multiple=True, help="Another interpreter to measure; may be repeated.")
@click.option("--without-barriers", is_flag=True, help="Leave the barriers out.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures there.")
@click.option("--only-into", type=click.Path(path_type=Path), hidden=True)
def main(
    rounds: int,
    others: tuple[str, ...],
    without_barriers: bool,
    json_file: Path | None,
    only_into: Path | None,
) -> None:
    """Measure what two threads bring where both run Python."""
    own = measured(rounds, with_barriers=not without_barriers)
    if only_into is not None:
        only_into.write_text(json.dumps(own))
        return
    results = [own, *(beside(python, rounds, with_barriers=not without_barriers) for python in others)]
    titles = [f"{each['python']}, {'a' if each['gil'] else 'no'} GIL" for each in results]
    speeds = Table("two threads; in parentheses by the processor's time", *titles, title="Speed-up")
    for name in own["times"]:
        speeds.add_row(name, *("{:.2f} ({:.2f})".format(*ratios(each, name)) for each in results))
    costs = Table("one thread, ms a round", *titles, title="Cost")
    for name in own["times"]:
        costs.add_row(name, *(f"{each['times'][name][0]:.2f}" for each in results))
    barriers = Table("16 groups, median ms", *titles, title="Barrier")
    for name in own["barriers"]:
        barriers.add_row(name, *(f"{each['barriers'][name]:.2f}" for each in results))
    report([speeds, costs, barriers], {"results": results}, json_file)
    if not own["gil"]:
        name = "host function of some microseconds"
        ratio, _ = ratios(own, name)
        click.echo(f"{name}: {ratio:.2f} times as fast; the limit is {SPEED_UP}")


if __name__ == "__main__":
    main()
