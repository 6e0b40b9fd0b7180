"""Times WASI calls of a guest with shared memory, against the engine's own WASI from the same loop, in one run.

    python benchmarks/wasi_calls.py [--json FILE]

The guest is one module in two forms, whose loops differ in nothing but their memory: ours imports a shared one, as programs
with threads do, and the engine's exports one of its own.

* *with files*: a write of 16 bytes at an offset, looking a path up, opening and closing.
* *without*: the time, random bytes, giving the processor up, the sizes of the arguments.
* *two threads*: each writes to a file of its own, 16 bytes or 32 KiB at a time; the number says how many times as much they do
  as one alone.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import click
import wasmtime
from common import microseconds_each, report, spread, take_turns
from rich.table import Table

import dl

WASI = "wasi_snapshot_preview1"
IMPORTS = {
    "clock_time_get": "i32 i64 i32",
    "random_get": "i32 i32",
    "sched_yield": "",
    "args_sizes_get": "i32 i32",
    "fd_pwrite": "i32 i32 i32 i64 i32",
    "path_filestat_get": "i32 i32 i32 i32 i32",
    "path_open": "i32 i32 i32 i32 i32 i64 i64 i32 i32",
    "fd_close": "i32",
}
# The directory is descriptor 3. In memory: names of one letter from 16 on, where a descriptor goes at 64, vectors at 96 and
# 104, results at 128, the bytes that are written at 512.
OPEN = """(call $path_open (i32.const 3) (i32.const 0) {name} (i32.const 1) (i32.const 1) (i64.const 0x1fffffff)
  (i64.const 0) (i32.const 0) (i32.const 64))"""
WITH_FILES = {
    "fd_pwrite": "(call $fd_pwrite (local.get $file) (i32.const 96) (i32.const 1) (i64.const 0) (i32.const 128))",
    "path_filestat_get": "(call $path_filestat_get (i32.const 3) (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 128))",
    "path_open, fd_close": f"""(i32.or {OPEN.format(name="(i32.const 18)")}
      (call $fd_close (i32.load (i32.const 64))))""",
}
LARGE = "fd_pwrite of 32 KiB"
LARGE_CALL = "(call $fd_pwrite (local.get $file) (i32.const 104) (i32.const 1) (i64.const 0) (i32.const 128))"
WITHOUT = {
    "clock_time_get": "(call $clock_time_get (i32.const 1) (i64.const 1) (i32.const 128))",
    "random_get": "(call $random_get (i32.const 128) (i32.const 16))",
    "sched_yield": "(call $sched_yield)",
    "args_sizes_get": "(call $args_sizes_get (i32.const 128) (i32.const 132))",
}
LIMITS = {**dict.fromkeys(WITH_FILES, 1.3), **dict.fromkeys(WITHOUT, 3.0)}
"""How many times the engine's own time a call may take."""

Call = Callable[..., int]


def guest(memory: str) -> bytes:
    """The loops: each returns the first error number that a call answers, or 0. `open` opens one of `a`, `b` and `c`."""
    imports = "".join(
        f'(import "{WASI}" "{name}" (func ${name} (param {kinds}) (result i32)))'
        for name, kinds in IMPORTS.items()
    )
    loops = "".join(
        f"""(func (export "{name}") (param $n i32) (param $file i32) (result i32) (local $error i32)
          (loop $again
            (if (local.tee $error {call}) (then (return (local.get $error))))
            (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
          (i32.const 0))"""
        for name, call in {**WITH_FILES, LARGE: LARGE_CALL, **WITHOUT}.items()
    )
    text = f"""(module {imports} {memory}
      (data (i32.const 16) "abc") (data (i32.const 96) "\\00\\02\\00\\00\\10\\00\\00\\00\\00\\02\\00\\00\\00\\80\\00\\00")
      (func (export "open") (param $n i32) (result i32)
        (if {OPEN.format(name="(i32.add (i32.const 16) (local.get $n))")} (then unreachable))
        (i32.load (i32.const 64)))
      {loops}
      (func (export "_initialize")))"""
    return bytes(wasmtime.wat2wasm(text))


def with_the_engine(folder: str) -> Callable[[str], Call]:
    """Return what finds the functions of the guest under the engine's WASI."""
    engine = wasmtime.Engine()
    store, linker = wasmtime.Store(engine), wasmtime.Linker(engine)
    linker.define_wasi()
    options = wasmtime.WasiConfig()
    options.preopen_dir(folder, "/")
    store.set_wasi(options)
    module = wasmtime.Module(engine, guest('(memory (export "memory") 1)'))
    exports = linker.instantiate(store, module).exports(store)

    def find(name: str) -> Call:
        function = exports[name]
        assert isinstance(function, wasmtime.Func)
        return lambda *arguments: int(function(store, *arguments))

    return find


def repeated(find: Callable[[str], Call], name: str, count: int) -> Callable[[], float]:
    """Return what calls one function of WASI again and again, and says how many microseconds each call takes."""
    file, loop = find("open")(0), find(name)

    def work() -> None:
        error = loop(count, file)
        assert error == 0, f"{name}: error {error}"

    return lambda: microseconds_each(work, count)


def gain_in_the_engine(folder: str, call: str, count: int) -> float:
    """The same with the engine alone: a store, and so a context of WASI, for each thread."""

    def write(number: int, ready: threading.Barrier, times: list[float]) -> None:
        find = with_the_engine(folder)
        loop, descriptor = find(call), find("open")(number)
        ready.wait()
        start = time.perf_counter()
        assert loop(count, descriptor) == 0
        times.append(time.perf_counter() - start)

    taken = []
    for number in (1, 2):
        times: list[float] = []
        ready = threading.Barrier(number)
        threads = [threading.Thread(target=write, args=(file, ready, times)) for file in range(number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        taken.append(max(times))
    return 2 * taken[0] / taken[1]


def gain_of_two_threads(linker: dl.Linker, call: str, count: int) -> float:
    """How many times as many writes two threads make, each to a file of its own, as one thread."""

    def write(group: dl.InstanceGroup, file: int) -> float:
        loop, descriptor = group.dlsym(linker.main, call), group.dlsym(linker.main, "open")(file)
        ready.wait()
        start = time.perf_counter()
        assert loop(count, descriptor) == 0
        return time.perf_counter() - start

    ready = threading.Barrier(1)
    alone = linker.spawn(write, 0).join()
    ready = threading.Barrier(2)
    threads = [linker.spawn(write, file) for file in (0, 1)]
    return float(2 * alone / max(thread.join() for thread in threads))


@click.command()
@click.option("--rounds", default=80, show_default=True, help="Samples of each way.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the numbers there as well.")
def main(rounds: int, json_file: Path | None) -> None:
    """Print what calls of WASI cost a program of threads."""
    memory = '(import "env" "memory" (memory 1 16 shared))'
    with tempfile.TemporaryDirectory() as folder, dl.Linker(guest(memory), preopens={"/": folder}) as linker:
        engine = with_the_engine(folder)

        def ours(name: str) -> Call:
            function: Call = linker.main_group.dlsym(linker.main, name)
            return function

        samples = {}
        for name in LIMITS:
            # Short turns, and many of them: some then have the processor to themselves, whatever else the machine does.
            count = 100 if name in WITH_FILES else 5_000
            ways = {"the engine": repeated(engine, name, count), "dl": repeated(ours, name, count)}
            samples[name] = take_turns(ways, rounds)
        gains = {
            call: take_turns(
                {
                    "the engine": lambda call=call, count=count: gain_in_the_engine(folder, call, count),  # type: ignore[misc]
                    "dl": lambda call=call, count=count: gain_of_two_threads(linker, call, count),  # type: ignore[misc]
                },
                max(rounds // 8, 2),
            )
            for call, count in (("fd_pwrite", 4_000), (LARGE, 2_000))
        }

    table = Table("call", "the engine, µs", "dl, µs", "ratio", "limit")
    for name, ways in samples.items():
        ratio = min(ways["dl"]) / min(ways["the engine"])
        table.add_row(name, *(spread(ways[way]) for way in ways), f"{ratio:.2f}", f"{LIMITS[name]:.1f}")
    threads = Table(
        "call", "the engine", "dl", "limit", "processors", title="two threads on two files, times one"
    )
    for call, sides in gains.items():
        threads.add_row(call, *(spread(sides[side]) for side in sides), "1.7", str(os.cpu_count()))
    medians = {
        call: {side: statistics.median(times) for side, times in sides.items()}
        for call, sides in gains.items()
    }
    small, large = gains["fd_pwrite"], gains[LARGE]
    series = {
        "µs": samples,
        "two threads, times one": small,
        "two threads, 32 KiB": large,
        "median gains": medians,
    }
    report([table, threads], series, json_file)


if __name__ == "__main__":
    main()
