"""What plug-ins cost that come and go: opens and closes over many threads, and a thread that was away meanwhile.

    python benchmarks/closes.py
    python benchmarks/closes.py --cycles 2000 --away 5000

* *cycles*: threads open and close several libraries, of which some need another. Figures of the process and of the program
  after a warm-up of a fifth and at the end; what a cycle adds to resident memory is what the engine keeps of dead instances.
* *kept*: what one open and close of a library alone adds in a thread that goes on, and in threads that end.
* *away*: operations that other threads make while a thread is outside the guest, and how long it takes to catch up.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from common import ROOT, exporter, report  # noqa: F401  ROOT: common makes the project importable
from rich.table import Table

import dl
from dl.engine.code_cache import PROCESS_CODE
from dl.stress.modules import LibraryKind, library_module, program_module

LIBRARIES = {
    "plain.so": LibraryKind(1000),
    "local.so": LibraryKind(1001, thread_local=True),
    "needs.so": LibraryKind(1002, needed=("plain.so",)),
    "deep.so": LibraryKind(1003, thread_local=True, needed=("needs.so", "local.so")),
}
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") / 1024


@dataclass(frozen=True)
class Figures:
    """What the process and the program have."""

    resident_kib: float
    maps: int
    linear_bytes: int
    side_bytes: int
    table: int
    log: int
    code: int
    thread_ms: float


class Program:
    """A program, the libraries, and threads that open and close them."""

    def __init__(self, threads: int) -> None:
        self.linker = dl.Linker(
            program_module(),
            name="closes",
            libraries={name: library_module(kind) for name, kind in LIBRARIES.items()},
            imports={"env": {"on_thread": lambda _n, _r: None, "on_construct": lambda _a: None}},
            cache=False,
        )
        self.threads = threads

    def cycles(self, count: int, *between: Callable[[], None]) -> None:
        """Open, call and close, over threads that live on while `between` runs, and then do as much again; and so on."""
        names = list(LIBRARIES)
        together = threading.Barrier(self.threads + 1)

        def work(group: dl.InstanceGroup, number: int) -> None:
            try:
                live(group, number)
            except BaseException:
                together.abort()  # main must not wait for ever
                raise

        def live(group: dl.InstanceGroup, number: int) -> None:
            for _ in (None, *between):
                for turn in range(number, count, self.threads):
                    name = names[turn % len(names)]
                    with group.library(name) as handle:
                        value = group.dlsym(handle, "value")
                        assert isinstance(value, dl.GuestFunction)
                        assert value(5) == 5 + LIBRARIES[name].addend
                group.synchronize()
                together.wait()
                together.wait()

        running = [self.linker.spawn(work, number) for number in range(self.threads)]
        with contextlib.suppress(threading.BrokenBarrierError):  # what broke it is raised by `join`
            for step in (*between, lambda: None):
                together.wait()
                self.linker.program.limbo.drain()
                step()
                together.wait()
        failed = [error for thread in running if (error := _ending(thread)) is not None]
        for error in failed:
            if not isinstance(error, threading.BrokenBarrierError):
                raise error

    def figures(self) -> Figures:
        gc.collect()
        now = self.linker.statistics()
        return Figures(
            int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_KIB,
            len(Path("/proc/self/maps").read_text().splitlines()),
            now.memory_bytes,
            now.side_bytes,
            now.table_length,
            now.protocol.log_entries,
            len(PROCESS_CODE.of(self.linker.engine)._in_use),
            statistics.median(self._thread_ms() for _ in range(15)),
        )

    def _thread_ms(self) -> float:
        begin = time.perf_counter()
        self.linker.spawn(lambda _group: None).join()
        return (time.perf_counter() - begin) * 1e3


def kept(wasm: bytes, cycles: int) -> tuple[float, float]:
    """Return the bytes that a cycle adds in one thread that goes on, and in threads that each make a tenth of the cycles."""
    program = Program(1)  # it stays open: what one frees must not serve the next
    _OPEN.append(program)

    def resident() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def work(group: dl.InstanceGroup, count: int) -> None:
        for _ in range(count):
            group.dlclose(group.dlopen(wasm, name="lib.so"))

    measured = []
    main = program.linker.main_group
    for step in (lambda: work(main, cycles), lambda: program.linker.spawn(work, cycles // 10).join()):
        repeat = 1 if not measured else 10
        for _ in range(repeat):
            step()  # the allocator warms up
        before = resident()
        for _ in range(repeat):
            step()
        measured.append((resident() - before) / cycles)
    return measured[0], measured[1]


_OPEN: list[Program] = []


def _ending(thread: dl.HostThread) -> BaseException | None:
    try:
        thread.join()
    except BaseException as error:  # noqa: BLE001  it is looked at by the caller
        return error
    return None


def away(operations: int) -> tuple[int, float, float]:
    """Return how many operations a thread missed, how long it took to catch up, and how long a thread without them takes."""
    program = Program(1)
    with program.linker as linker:
        ready, go = threading.Event(), threading.Event()

        def absent(group: dl.InstanceGroup) -> float:
            group.synchronize()
            ready.set()
            go.wait()
            begin = time.perf_counter()
            group.synchronize()
            return time.perf_counter() - begin

        program.cycles(100)
        idle = linker.spawn(absent)
        ready.wait()
        go.set()
        without = idle.join()
        ready.clear()
        go.clear()
        late = linker.spawn(absent)
        ready.wait()
        before = linker.program.rendezvous.committed
        while linker.program.rendezvous.committed - before < operations:
            program.cycles(min(4000, operations))
        missed = linker.program.rendezvous.committed - before
        go.set()
        return missed, late.join(), without


def main() -> None:
    parser = argparse.ArgumentParser(description="What plug-ins cost that come and go.")
    parser.add_argument("--cycles", type=int, default=20_000)
    parser.add_argument(
        "--rounds", type=int, default=5, help="measure so many times; the first is the warm-up"
    )
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--away", type=int, default=100_000, help="operations that a thread misses")
    parser.add_argument("--kept", type=int, default=3000, help="cycles of one library alone")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    numbers: dict[str, object] = {}
    tables = []
    if options.cycles:
        program = Program(options.threads)
        taken: list[tuple[Figures, float]] = []

        def take() -> None:
            taken.append((program.figures(), time.perf_counter()))

        with program.linker:
            program.cycles(options.cycles // options.rounds, *[take] * options.rounds)
        table = Table("after", *(field.name.replace("_", " ") for field in fields(Figures)))
        for number, (figures, _) in enumerate(taken, 1):
            values = (f"{value:,.2f}".removesuffix(".00") for value in astuple(figures))
            table.add_row(f"{options.cycles // options.rounds * number:,}", *values)
        tables.append(table)
        seconds = taken[-1][1] - taken[0][1]
        added = taken[-1][0].resident_kib - taken[0][0].resident_kib
        measured = options.cycles - options.cycles // options.rounds
        print(f"{seconds / measured * 1e6:.0f} µs a cycle, {added / measured * 1024:.0f} bytes a cycle")
        numbers["cycles"] = {"figures": [vars(figures) for figures, _ in taken], "seconds": seconds}
    if options.kept:
        table = Table("library", "bytes a cycle, one thread", "threads that end")
        for name, wasm in {
            "one function": exporter(1),
            "100 functions": exporter(100),
            "data, table, addresses of itself": library_module(LibraryKind(1)),
            "the same, thread-local": library_module(LibraryKind(1, thread_local=True)),
        }.items():
            stays, goes = kept(wasm, options.kept)
            table.add_row(name, f"{stays:,.0f}", f"{goes:,.0f}")
        tables.append(table)
    if options.away:
        missed, late, without = away(options.away)
        table = Table("operations missed", "catching up, ms", "with none missed, ms")
        table.add_row(f"{missed:,}", f"{late * 1e3:.2f}", f"{without * 1e3:.2f}")
        tables.append(table)
        numbers["away"] = {"missed": missed, "seconds": late, "without": without}
    report(tables, numbers, options.json)


if __name__ == "__main__":
    main()
