"""What the benchmarks share: taking turns, the libraries they link, tables and JSON."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["DLRUN_CACHE"] = "off"  # what is cold must not be found on disk

from dl.wasm.encode import ModuleBuilder, i32_const, local_get, name_bytes, section, unsigned  # noqa: E402
from dl.wasm.types import FuncType, Limits, MemoryType  # noqa: E402

BINARY = FuncType(("i32", "i32"), ("i32",))
UNARY = FuncType(("i32",), ("i32",))


class NoBoundary:
    """The boundary of stores that are measured alone: nobody is told when a thread leaves and enters the guest."""

    def enter_host(self) -> None:
        return None

    def exit_host(self, token: None) -> None:
        pass


def engine_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give a benchmark the option `--engine`, which chooses the engine of all that it does not choose itself."""

    def choose(_context: click.Context, _option: click.Parameter, name: str | None) -> None:
        if name:
            os.environ["DLRUN_ENGINE"] = name

    option = click.option(
        "--engine", expose_value=False, callback=choose, help="Measure this engine: wasmtime or wasmer."
    )
    return option(command)


def take_turns(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call each way once per round and return what each returned, so that all meet the same machine.

    A first round is thrown away, and there is no garbage collection within a round.
    """
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        gc.collect()
        gc.disable()
        try:
            for name, way in ways.items():
                sample = way()
                if number:
                    samples[name].append(sample)
        finally:
            gc.enable()
    return samples


def microseconds_each(work: Callable[[], object], count: int) -> float:
    """Microseconds of each of `count` repetitions that `work` makes."""
    start = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - start) / 1000 / count


def spread(times: Sequence[float], digits: int = 2) -> str:
    """The median, and between which bounds all samples lie."""
    return f"{statistics.median(times):.{digits}f} ({min(times):.{digits}f}-{max(times):.{digits}f})"


def processor() -> str:
    """The processor's name, as Linux tells it; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def machine() -> dict[str, str]:
    """What the numbers depend on."""
    return {
        "python": platform.python_version(),
        "wasmtime": version("wasmtime"),
        "engine": os.environ.get("DLRUN_ENGINE", "wasmtime"),
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": processor(),
        "processors": str(os.cpu_count()),
    }


def report(tables: Sequence[Table], numbers: Mapping[str, Any], json_file: Path | None) -> None:
    """Print tables, and write the numbers behind them where asked to."""
    console = Console()
    wide = Console(width=max(console.width, 140))  # a table that is cut off to fit says nothing
    for table in tables:
        wide.print(table)
    wide.print("  ".join(f"{name} {value}" for name, value in machine().items()))
    if json_file is not None:
        json_file.write_text(json.dumps({"machine": machine(), **numbers}, indent=2) + "\n")


def library(build: ModuleBuilder, *, nonce: bytes = b"") -> bytes:
    """The bytes of a shared library without data or table elements of its own; another nonce makes another content."""
    wasm = build.build()
    dylink = section(0, name_bytes("dylink.0") + bytes([1, 4, 0, 0, 0, 0]))
    return wasm[:8] + dylink + wasm[8:] + section(0, name_bytes("nonce") + nonce)


def arithmetic(seed: int, length: int = 12) -> bytes:
    """A function body over two i32 parameters that does a little."""
    body = local_get(0)
    for i in range(length):
        body += local_get(1) + i32_const(seed + i) + b"\x6a\x73"  # add, xor
    return body


def exporter(count: int, *, nonce: bytes = b"", prefix: str = "f") -> bytes:
    """A library that exports `count` functions of two numbers."""
    build = ModuleBuilder()
    for i in range(count):
        build.export(f"{prefix}{i}", "func", build.function(BINARY, arithmetic(i)))
    return library(build, nonce=nonce)


def importer(count: int, *, nonce: bytes = b"", prefix: str = "f") -> bytes:
    """A library that imports `count` functions of two numbers, and calls each from one function of its own."""
    build = ModuleBuilder()
    imported = [build.import_("env", f"{prefix}{i}", BINARY) for i in range(count)]
    body = i32_const(0)
    for index in imported:
        body += local_get(0) + b"\x10" + unsigned(index)
    build.export("sum", "func", build.function(UNARY, body))
    return library(build, nonce=nonce)


def unshared(minimum: int, maximum: int | None) -> MemoryType:
    return MemoryType(Limits(minimum, maximum, shared=False, is64=False))
