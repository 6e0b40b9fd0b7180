"""What threads cost and bring: speed-up, how long a load waits for many threads, what a new thread takes.

The program and the libraries are those of `dlrun stress`, small and generated; but for the last lines of the last table, where
it is a C program that carries all of libc.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import click
from common import ROOT, UNARY, engine_option, library, report, spread, take_turns
from rich.table import Table

import dl
from dl.engine.protocol import Engine
from dl.stress.modules import LibraryKind, library_module, program_module
from dl.wasm.encode import ModuleBuilder, i32_const, local_get, local_set

SPEED_UP = 1.9
"""Least speed-up of two threads that compute."""

BARRIER_MS, BARRIER_GROUPS = 20.0, 64
"""Most milliseconds, at the median, that a load takes with so many groups."""

GROUPS = (1, 2, 4, 8, 16, 32, 64, 128)
BUSY_GROUPS = (4, 16, 64)
LIBC_PROGRAM = ROOT / "fixtures" / "plugins" / "shared" / "main.wasm"


def program(engine: Engine | None = None) -> dl.Linker:
    return dl.Linker(
        program_module(),
        engine=engine,
        imports={"env": {"on_thread": lambda _number, _record: None, "on_construct": lambda _addend: None}},
    )


def computing() -> bytes:
    """A library whose `work(n)` makes n rounds of a generator of random numbers, and never calls anything."""
    build = ModuleBuilder()
    round_ = local_get(1) + i32_const(1664525) + b"\x6c" + i32_const(1013904223) + b"\x6a" + local_set(1)
    count = local_get(0) + i32_const(1) + b"\x6b\x22\x00\x0d\x00"  # sub, local.tee 0, br_if 0
    body = b"\x03\x40" + round_ + count + b"\x0b" + local_get(1)
    build.export("work", "func", build.function(UNARY, body, ("i32",)))
    return library(build)


def computing_times(rounds: int) -> dict[str, list[float]]:
    """Milliseconds in which one thread does some work, and in which two do twice as much."""
    amount = 20_000_000
    with program() as linker:
        handle = linker.main_group.dlopen(computing(), name="computing.so")
        go, start, done = threading.Event(), threading.Barrier(3), threading.Barrier(3)

        def body(group: dl.InstanceGroup, number: int) -> None:
            work = group.dlsym(handle, "work")
            while True:
                start.wait()
                if go.is_set():
                    return
                if number < active[0]:
                    work(amount)
                done.wait()

        active = [0]
        threads = [linker.spawn(body, number) for number in range(2)]

        def turn(count: int) -> float:
            active[0] = count
            start.wait()
            began = time.perf_counter()
            done.wait()
            return 1e3 * (time.perf_counter() - began)

        samples = take_turns({"one": lambda: turn(1), "two": lambda: turn(2)}, rounds)
        go.set()
        start.wait()
        for thread in threads:
            thread.join()
    return samples


@contextlib.contextmanager
def busy_python() -> Iterator[None]:
    """Have a thread of Python compute, which gives the interpreter up only each switch interval (5 ms)."""
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(100))

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def loads(
    groups: int, rounds: int, *, busy: bool = False, engine: Engine | None = None
) -> tuple[list[float], list[float]]:
    """Milliseconds of loads and of their barriers with so many other groups, half of them spinning, half waiting.

    Args:
        groups: how many.
        rounds: how many loads.
        busy: whether a thread of Python computes meanwhile.
        engine: what runs them; None for the default.
    """
    wasm = library_module(LibraryKind(1))
    with busy_python() if busy else contextlib.nullcontext(), program(engine) as linker:
        group = linker.main_group
        words = group.dlsym(dl.MAIN_HANDLE, "words").address + 64
        group.dlopen(wasm, name="warm.so")
        threads = [
            linker.spawn(lambda g: g.dlsym(dl.MAIN_HANDLE, "spin")(words))
            if number % 2
            else linker.spawn(lambda g: g.dlsym(dl.MAIN_HANDLE, "wait")(words, 0, -1))
            for number in range(groups)
        ]
        spinning, waiting = groups // 2, groups - groups // 2

        def settle() -> None:
            """Wait until all spin and wait again: after a load, those that spin come back one after the other."""
            while (
                linker.statistics().protocol.guest < spinning
                or sum("futex" in what for _, what in linker.program.waits.waiting()) < waiting
            ):
                time.sleep(0.001)

        times = []
        for number in range(rounds):
            settle()
            began = time.perf_counter()
            handle = group.dlopen(wasm, name=f"l{number}.so")
            times.append(1e3 * (time.perf_counter() - began))
        barriers = [1e3 * s for s in linker.statistics().protocol.barrier_seconds[-rounds:]]
        linker.memory.write_u32(words, group.dlsym(handle, "value").address)
        group.dlsym(dl.MAIN_HANDLE, "notify")(words, -1)
        for thread in threads:
            thread.join()
    return times, barriers


def new_threads(linker: dl.Linker, rounds: int) -> list[float]:
    """Microseconds from starting a thread with a group to having joined it."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        linker.spawn(lambda _group: None).join()
        times.append(1e6 * (time.perf_counter() - began))
    return times


def plain_threads(rounds: int) -> list[float]:
    """The same for a thread of Python without a group."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
        times.append(1e6 * (time.perf_counter() - began))
    return times


@click.command()
@engine_option
@click.option("--rounds", default=15, show_default=True, help="how often each is done")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
def main(rounds: int, json_file: Path | None) -> None:
    """Time threads."""
    work = computing_times(3 * rounds)
    # The shortest turns: what else the machine does can only add.
    speed_up = 2 * min(work["one"]) / min(work["two"])
    speeds = Table("threads", "ms", "speed-up", "at least", title="guest code that computes")
    speeds.add_row("1, some work", spread(work["one"]), "", "")
    speeds.add_row("2, twice as much", spread(work["two"]), f"{speed_up:.2f}", f"{SPEED_UP}")

    numbers: dict[str, object] = {"computing_ms": work, "speed_up": speed_up}
    barriers = Table(
        "groups",
        "load, ms",
        "of it the barrier, ms",
        "at most",
        title="a load; half of the groups spin, half wait",
    )
    median = 0.0
    for groups, busy in [
        *((groups, False) for groups in GROUPS),
        *((groups, True) for groups in BUSY_GROUPS),
    ]:
        times, waits = loads(groups, rounds if busy else 3 * rounds, busy=busy)
        name = f"{groups}, beside busy Python" if busy else str(groups)
        limit = ""
        if groups == BARRIER_GROUPS and not busy:
            limit = f"{BARRIER_MS:g}"
            median = statistics.median(times)
        barriers.add_row(name, spread(times), spread(waits, 3), limit)
        numbers[f"load with groups: {name}"] = {"load_ms": times, "barrier_ms": waits}

    costs = Table("program", "libraries", "µs", title="a new thread with a group, until joined")
    kinds = {
        "Python thread, no group": None,
        "generated": program,
        "C, with libc": lambda: dl.Linker(LIBC_PROGRAM),
    }
    for name, make in kinds.items():
        if make is None:
            costs.add_row(name, "", spread(plain_threads(5 * rounds), 0))
            continue
        with make() as linker:
            for libraries in (0, 10, 100) if make is program else (0,):
                for number in range(len(linker.modules) - 1, libraries):
                    linker.main_group.dlopen(library_module(LibraryKind(number % 8)), name=f"l{number}.so")
                new_threads(linker, 3)
                times = new_threads(linker, 2 * rounds)
                costs.add_row(name, str(libraries), spread(times, 0))
                numbers[f"new thread, {name}, {libraries} libraries"] = times
    report([speeds, barriers, costs], numbers, json_file)
    missed = []
    if speed_up < SPEED_UP:
        missed.append(f"two threads compute {speed_up:.2f} times as fast as one, less than {SPEED_UP}")
    if median > BARRIER_MS:
        missed.append(f"a load with {BARRIER_GROUPS} groups takes {median:.1f} ms at the median")
    if missed:
        raise SystemExit("over the limit: " + "; ".join(missed))


if __name__ == "__main__":
    main()
