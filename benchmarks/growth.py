"""What a long life costs: figures of the process before and after many operations, and what one more library costs.

    python benchmarks/growth.py
    python benchmarks/growth.py --scale 0.05 --only loads

* *loads*: loads of one library whose constructor fails.
* *distinct*: the same with a library that differs each time.
* *closures*: a table index taken, given a function, and given back.
* *threads*: threads started by the host, which end at once.
* *guest threads*: threads started by the guest.

Each begins with a warm-up of a tenth. The figures are what a million operations add to the process after it: resident memory,
memory maps (of which a process of Linux has 65,530), open descriptors, entries in the operation log; and how long a new
thread takes, before and after.

The second table opens libraries: one tree whose root needs all of them, and one after the other into the global scope. What
counts is the ratio to a hundred of them.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common import ROOT, machine, report  # noqa: F401  ROOT: common makes the project importable
from rich.table import Table

import dl
from dl.stress.modules import STACK_BYTES, WORDS_BYTES, LibraryKind, library_module, program_module
from dl.wasm.encode import ModuleBuilder, call, i32_const
from dl.wasm.types import FuncType

from dl.stress.modules import dylink_section, with_dylink  # isort: skip

GETTER = FuncType((), ("i32",))
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") / 1024


@dataclass(frozen=True)
class Figures:
    """What the process has."""

    memory_kib: float
    maps: int
    descriptors: int
    entries: int
    thread_ms: float


class Soak:
    """A program with threads, and what is done to it again and again."""

    def __init__(self) -> None:
        self.linker = dl.Linker(
            program_module(),
            name="growth",
            imports={"env": {"on_thread": lambda _n, _r: None, "on_construct": lambda _a: None}},
            cache=False,
        )
        self.trap = library_module(LibraryKind(1, traps=True))
        group = self.linker.main_group
        self.record = group.dlsym(dl.MAIN_HANDLE, "words").address + WORDS_BYTES
        self.start = group.dlsym(dl.MAIN_HANDLE, "start")

    def figures(self) -> Figures:
        gc.collect()
        return Figures(
            int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_KIB,
            len(Path("/proc/self/maps").read_text().splitlines()),
            len(os.listdir("/proc/self/fd")),
            len(self.linker.program.rendezvous.log),
            statistics.median(self._thread_ms() for _ in range(15)),
        )

    def _thread_ms(self) -> float:
        begin = time.perf_counter()
        self.linker.spawn(lambda _group: None).join()
        return (time.perf_counter() - begin) * 1e3

    def loads(self, _number: int) -> None:
        self._fail(self.trap, "trap.so")

    def distinct(self, number: int) -> None:
        self._fail(library_module(LibraryKind(1_000_000 + number, traps=True)), f"trap{number}.so")

    def _fail(self, wasm: bytes, name: str) -> None:
        try:
            self.linker.main_group.dlopen(wasm, dl.RTLD_NOW, name=name)
        except dl.InitializationError:
            return
        raise AssertionError("its constructor does not fail")

    def closures(self, _number: int) -> None:
        self.linker.callback("(i32) -> i32", abs).close()

    def threads(self, _number: int) -> None:
        self.linker.spawn(lambda _group: None).join()

    def guest_threads(self, _number: int) -> None:
        self.linker.memory.write_u32(self.record, self.record + STACK_BYTES)
        assert self.start(self.record) == 0
        while len(self.linker.parts.groups.all()) > 1:
            threading.Event().wait(0.0002)


COUNTS = {
    "loads": 20_000,
    "distinct": 20_000,
    "closures": 100_000,
    "threads": 20_000,
    "guest_threads": 20_000,
}


def soak(name: str, count: int) -> tuple[Figures, Figures, float]:
    """Return the figures after a warm-up and after all, and microseconds of each operation."""
    made = Soak()
    with made.linker:
        step: Callable[[int], None] = getattr(made, name)
        warm_up = max(count // 10, 10)
        for number in range(warm_up):
            step(number)
        before = made.figures()
        begin = time.perf_counter()
        for number in range(warm_up, warm_up + count):
            step(number)
        each = (time.perf_counter() - begin) / count * 1e6
        return before, made.figures(), each


def member(number: int, needed: tuple[str, ...] = ()) -> bytes:
    """A library that exports a function and calls one of a library before it."""
    build = ModuleBuilder()
    body = i32_const(number)
    if number:
        body += call(build.import_("env", f"f{(number * 7 + 1) % number}", GETTER)) + b"\x6a"
    build.export(f"f{number}", "func", build.function(GETTER, body))
    return with_dylink(build, dylink_section(16, needed))


def open_all(count: int, *, tree: bool) -> tuple[float, float]:
    """Return milliseconds a library when `count` are opened, and microseconds of a look-up in the global scope afterwards."""
    libs = {f"{n}.so": member(n) for n in range(count)}
    root = with_dylink(ModuleBuilder(), dylink_section(16, tuple(libs)))
    with dl.Linker(None, libraries={**libs, "root.so": root}, cache=False) as linker:
        group = linker.main_group
        gc.collect()
        gc.disable()
        try:
            # Time of this thread's own, so that what else the machine does is not in it.
            begin = time.thread_time()
            for name in ("root.so",) if tree else libs:
                group.dlopen(name, dl.RTLD_NOW | dl.RTLD_GLOBAL)
            each = (time.thread_time() - begin) / count * 1e3
            begin = time.thread_time()
            for _ in range(2000):
                linker.own.look_up(dl.RTLD_DEFAULT, f"f{count - 1}")
            return each, (time.thread_time() - begin) / 2000 * 1e6
        finally:
            gc.enable()


def star(sizes: list[int]) -> Table:
    table = Table("opened", "libraries", "ms a library, warm", "ratio", "dlsym(RTLD_DEFAULT), µs")
    for way in ("one tree", "one by one"):
        first = 0.0
        for count in sizes:
            # The first time compiles; then the best of some, as another process may have the machine.
            rounds = [open_all(count, tree=way == "one tree") for _ in range(1 + max(3, 600 // count))][1:]
            each, lookup = (min(values) for values in zip(*rounds, strict=True))
            first = first or each
            table.add_row(way, f"{count:,}", f"{each:.2f}", f"{each / first:.2f}", f"{lookup:.2f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="What a long life costs.")
    parser.add_argument("--scale", type=float, default=1.0, help="do so much of the operations")
    parser.add_argument("--only", choices=[*COUNTS, "star"], action="append", help="leave out the others")
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[100, 1000, 3000], help="numbers of libraries"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    wanted = options.only or [*COUNTS, "star"]
    table = Table(
        "operations",
        "number",
        "µs each",
        "MiB a million",
        "maps a million",
        "descriptors",
        "log",
        "new thread, ms",
    )
    numbers: dict[str, object] = {}
    for name in [n for n in COUNTS if n in wanted]:
        count = int(COUNTS[name] * options.scale)
        before, after, each = soak(name, count)
        numbers[name] = {"count": count, "before": vars(before), "after": vars(after), "microseconds": each}
        million = 1e6 / count
        table.add_row(
            name.replace("_", " "),
            f"{count:,}",
            f"{each:.0f}",
            f"{(after.memory_kib - before.memory_kib) / 1024 * million:.0f}",
            f"{(after.maps - before.maps) * million:.0f}",
            f"{before.descriptors} to {after.descriptors}",
            f"{before.entries} to {after.entries}",
            f"{before.thread_ms:.2f} to {after.thread_ms:.2f}",
        )
        print(f"{name}: {before} {after}", flush=True)
    report([table] if numbers else [], numbers, options.json)
    if "star" in wanted:
        report([star(options.sizes)], numbers, None)


if __name__ == "__main__":
    main()
