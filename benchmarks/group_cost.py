"""Times a new instance group, and what one adds to the process, against the engine making the same instances in a new store.

    python benchmarks/group_cost.py [--json FILE]

The floor is recorded: what a new group asks of its store (memory, instances, numbers, names) is asked again of a bare store,
with code that is compiled already. So both make the same instances from the same code, and what is left is the linker's:
replaying its log, the thread's stack, joining and leaving. CPU time of the thread that makes the group.
"""

from __future__ import annotations

import gc
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from common import ROOT, exporter, report, spread, take_turns
from rich.table import Table

import dl
from dl.engine import default_name, engine_named
from dl.glue.base import ENSURE_TABLE, ENSURE_TABLE_TYPE

LIBRARIES = (0, 1, 10, 30, 100)
EXPORTS = 10
"""Of each library."""

LIBC_PROGRAM = ROOT / "fixtures" / "plugins" / "shared" / "main.wasm"
TIMES, MEMORY_TIMES, LIBC_MS = 2.0, 1.5, 0.5
"""How many times the engine's own time and memory a group may take; and most milliseconds with a C library."""

MADE = "instantiate", "instantiate_listed", "instantiate_with_wasi"
DEFINED = "define_memory", "define_number", "define_instance", "offer_instance", "read_table_by"
ASKED = (*MADE, *DEFINED, "limit", "name_tag", "on_interrupt")


class Recording:
    """What one store was asked for, in order."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, tuple[Any, ...], Any]] = []
        self._inside = False  # a step of a step is not the linker's

    def store(self, store: Any) -> Any:
        """Have a store write down what it is asked for, and forget what others were: the last one counts.

        In a program with a C library, groups for its allocator and its threads are made before.
        """
        self.steps.clear()
        for name in ASKED:
            setattr(store, name, self._noted(name, getattr(store, name)))
        return store

    def _noted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            outermost, self._inside = not self._inside, True
            try:
                made = function(*arguments, **options)
            finally:
                self._inside = not outermost
            if outermost:
                self.steps.append((name, (arguments, options), made))
            return made

        return call

    def again(self, store: Any, table_length: int) -> None:
        """Ask another store for the same; its table gets so many elements."""
        instances: dict[int, Any] = {}
        for name, (arguments, options), made in self.steps:
            now = getattr(store, name)(*(instances.get(id(one), one) for one in arguments), **options)
            if name in MADE:
                instances[id(made)] = now
                if arguments[1] == "base":
                    now.function(ENSURE_TABLE, ENSURE_TABLE_TYPE)(table_length)


class Subject:
    """A program, in whose threads groups are made, and the engine's side of such a group."""

    def __init__(self, linker: dl.Linker, engine: Any, functions: Any) -> None:
        self.linker = linker
        self._engine = engine
        self._functions = functions
        self.recording = Recording()
        self._table_length = linker.parts.groups.current().instances.table_length()
        plain = engine.new_store
        engine.new_store = lambda host: self.recording.store(plain(host))
        try:
            self.in_thread(self.attached)
        finally:
            del engine.new_store

    @staticmethod
    def in_thread(work: Callable[[], float]) -> float:
        """Run something in a new thread and return what it does: a thread that has a group keeps it."""
        results: list[float] = []
        thread = threading.Thread(target=lambda: results.append(work()))
        thread.start()
        thread.join()
        return results[0]

    def attached(self) -> float:
        """Microseconds of CPU time from asking for a group to having left it."""
        began = time.thread_time_ns()
        with self.linker.attach():
            pass
        return (time.thread_time_ns() - began) / 1000

    def bare(self) -> float:
        """Microseconds of CPU time that the engine takes for the same instances."""
        began = time.thread_time_ns()
        store = self._engine.new_store(self._functions)
        self.recording.again(store, self._table_length)
        store.close()
        return (time.thread_time_ns() - began) / 1000

    def bare_store(self) -> Any:
        """Return a bare store with the same instances."""
        store = self._engine.new_store(self._functions)
        self.recording.again(store, self._table_length)
        return store


@contextmanager
def subject(libraries: int, main: Path | None = None) -> Iterator[Subject]:
    """Make a program with so many libraries."""
    engine: Any = type(engine_named(default_name()))()
    memory = None if main else dl.MemoryType(2, 10_000, shared=True)
    with dl.Linker(main, memory=memory, engine=engine) as linker:
        for number in range(libraries):
            wasm = exporter(EXPORTS, nonce=b"%d" % (number % 8), prefix=f"l{number}_")
            linker.main_group.dlopen(wasm, name=f"l{number}.so")
        yield Subject(linker, engine, linker.program.functions)


def resident() -> int:
    """Bytes of the process's memory that are its own."""
    import psutil  # noqa: PLC0415  of the extra `benchmarks`; the help needs no library for it

    gc.collect()
    return int(psutil.Process().memory_info().rss)


def bytes_of_a_group(one: Subject, count: int) -> dict[str, float]:
    """KiB that each of many more groups, and of many more bare stores, adds to the process."""
    done = threading.Event()
    ready = threading.Barrier(count + 1)

    def hold() -> None:
        with one.linker.attach():
            ready.wait()
            done.wait()

    def hold_nothing() -> None:
        ready.wait()
        done.wait()

    sizes = []
    for target in (hold_nothing, hold):
        done.clear()
        before = resident()
        threads = [threading.Thread(target=target) for _ in range(count)]
        for thread in threads:
            thread.start()
        ready.wait()
        sizes.append(resident() - before)
        done.set()
        for thread in threads:
            thread.join()
    before = resident()
    stores = [one.bare_store() for _ in range(count)]
    bare = resident() - before
    for store in stores:
        store.close()
    return {"dl": (sizes[1] - sizes[0]) / count / 1024, "the engine": bare / count / 1024}


@click.command()
@click.option("--rounds", default=30, show_default=True, help="Groups of each program.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the numbers there as well.")
def main(rounds: int, json_file: Path | None) -> None:
    """Print what a new group costs."""
    samples: dict[str, dict[str, list[float]]] = {}
    memory: dict[str, list[float]] = {}
    programs: list[tuple[str, int, Path | None]] = [(str(count), count, None) for count in LIBRARIES]
    for name, libraries, path in [*programs, ("C library", 0, LIBC_PROGRAM)]:
        with subject(libraries, path) as one:
            ways = {"the engine": one.bare, "dl": lambda one=one: one.in_thread(one.attached)}  # type: ignore[misc]
            samples[name] = take_turns(ways, rounds)
            if libraries == LIBRARIES[-1]:
                memory = {side: [size] for side, size in bytes_of_a_group(one, 20).items()}

    table = Table("libraries", "the engine, µs", "dl, µs", "ratio", "limit", title="a new group, CPU time")
    for name, ways in samples.items():
        ratio = statistics.median(ways["dl"]) / statistics.median(ways["the engine"])
        limit = f"{LIBC_MS} ms" if name == "C library" else f"{TIMES}"
        table.add_row(name, spread(ways["the engine"], 0), spread(ways["dl"], 0), f"{ratio:.2f}", limit)
    sizes = Table(
        "the engine, KiB", "dl, KiB", "ratio", "limit", title="memory of one group more, 100 libraries"
    )
    ratio = memory["dl"][0] / memory["the engine"][0]
    sizes.add_row(
        f"{memory['the engine'][0]:.0f}", f"{memory['dl'][0]:.0f}", f"{ratio:.2f}", f"{MEMORY_TIMES}"
    )
    report([table, sizes], {"µs": samples, "KiB": memory}, json_file)


if __name__ == "__main__":
    main()
