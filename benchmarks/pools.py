"""What pools cost: programs for requests, functions in processes, and the memory of many workers.

python benchmarks/pools.py [--workers 8] [--requests 300]
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import click
from common import ROOT, take_turns
from rich.console import Console
from rich.table import Table

import dl

ECHO = ROOT / "fixtures/wasi/unshared/main.wasm"
PLUGINS = ROOT / "fixtures/plugins/shared"
SPEC = dl.Spec(main=PLUGINS / "main.wasm", libraries={"libadd.so": PLUGINS / "libadd.so"})
console = Console()


def add(group: dl.InstanceGroup, a: int, b: int) -> int:
    """A call of the guest."""
    return group.library("libadd.so").add(a, b)


def plain_add(a: int, b: int) -> int:
    """The same without a guest."""
    return a + b


def memory(_group: dl.InstanceGroup | None = None) -> dict[str, int]:
    """Kibibytes of this process, as the kernel counts them."""
    found = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            found[name] = int(value.split()[0])
    return found


def code_memory(_group: dl.InstanceGroup) -> dict[str, int]:
    """Kibibytes of compiled code that is mapped from the cache, in this process."""
    found: dict[str, int] = {}
    mapped = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if not first.endswith(":"):
            mapped = line.endswith(".code")
        elif mapped and line.endswith(" kB"):
            found[first[:-1]] = found.get(first[:-1], 0) + int(line.split()[1])
    return found


def each(work: Callable[[], object], count: int) -> float:
    """Microseconds for each of `count` repetitions."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) / count * 1e6


def tasks(count: int) -> None:
    """Functions in processes, one after the other and many at once."""
    with (
        dl.ProcessPool(SPEC, 2) as pool,
        ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as plain,
    ):
        pool.prepare()
        list(plain.map(plain_add, range(10), range(10)))
        many = range(count)
        samples = take_turns(
            {
                "ProcessPool, a guest function, one after the other": lambda: each(
                    lambda: [pool.submit(add, n, n).result() for n in many], count
                ),
                "ProcessPoolExecutor, a Python function, likewise": lambda: each(
                    lambda: [plain.submit(plain_add, n, n).result() for n in many], count
                ),
                "ProcessPool, a guest function, many at once": lambda: each(
                    lambda: list(pool.map(add, many, many)), count
                ),
                "ProcessPoolExecutor, a Python function, likewise ": lambda: each(
                    lambda: list(plain.map(plain_add, many, many)), count
                ),
            },
            7,
        )
    table = Table("a task", "µs, fastest", "median")
    for name, values in samples.items():
        table.add_row(name.strip(), f"{min(values):.0f}", f"{statistics.median(values):.0f}")
    console.print(table)


def workers(count: int) -> None:
    """Start of workers, and their memory, by start method; with the code cache and without."""
    multiprocessing.set_forkserver_preload(["dl.pool.worker"])
    table = Table(
        "workers",
        "ready after, s",
        "private each, MiB",
        "shared each",
        "code mapped",
        "of it shared",
        "Pss of all",
    )
    for method, cached in (("spawn", False), ("spawn", True), ("forkserver", True)):
        with tempfile.TemporaryDirectory() as directory:
            spec = SPEC.replace(cache=directory if cached else False)
            if cached:
                spec.linker().close()
            with dl.ProcessPool(spec, count, start_method=method) as pool:  # type: ignore[arg-type]
                start = time.perf_counter()
                pool.prepare()
                ready = time.perf_counter() - start
                assert len(pool.processes) == count
                used, code = _at_once(pool, memory, count), _at_once(pool, code_memory, count)
        private = [one["Private_Clean"] + one["Private_Dirty"] for one in used]
        shared = [one["Shared_Clean"] + one["Shared_Dirty"] for one in used]
        table.add_row(
            f"{count}, {method}, {'code from the cache' if cached else 'no cache'}",
            f"{ready:.2f}",
            f"{statistics.median(private) / 1024:.1f}",
            f"{statistics.median(shared) / 1024:.1f}",
            f"{statistics.median(one.get('Rss', 0) for one in code) / 1024:.2f}",
            f"{statistics.median(one.get('Shared_Clean', 0) + one.get('Shared_Dirty', 0) for one in code) / 1024:.2f}",
            f"{sum(one['Pss'] for one in used) / 1024:.0f}",
        )
    console.print(table)


def _at_once(pool: dl.ProcessPool, function: Callable[..., Any], count: int) -> list[dict[str, int]]:
    """Have each worker run a function; while one does, another one gets the next."""
    futures = [pool.submit(_slowly, function) for _ in range(count)]
    return [future.result() for future in futures]


def _slowly(group: dl.InstanceGroup, function: Callable[..., Any]) -> Any:
    add(group, 1, 2)
    time.sleep(1)
    return function(group)


def programs(rounds: int) -> None:
    """A request's program, that waited for it or is linked then."""
    spec = dl.Spec(main=ECHO)
    run = {"args": ("program", "echo"), "stdin": b"hello\n"}

    def latency(pool: dl.ProgramPool) -> float:
        assert pool.wait_ready(60)
        return each(lambda: pool.run(**run), 1)  # type: ignore[arg-type]

    with dl.ProgramPool(spec, ready=1) as prepared, dl.ProgramPool(spec, ready=0) as linked:
        samples = take_turns(
            {
                "a program that waits for its request": functools.partial(latency, prepared),
                "a program that is linked then": functools.partial(latency, linked),
            },
            rounds,
        )
    table = Table("a request", "ms, fastest", "median")
    for name, values in samples.items():
        table.add_row(name, f"{min(values) / 1e3:.2f}", f"{statistics.median(values) / 1e3:.2f}")
    console.print(table)


@contextmanager
def served(ready: int, at_once: int) -> Iterator[int]:
    """The example under uvicorn; its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--app-dir", "examples", "--port", str(port), "--log-level", "error", "asgi:app"]
    server = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", *words],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "ASGI_READY": str(ready),
            "ASGI_AT_ONCE": str(at_once),
            "ASGI_SECONDS": "30",
        },
    )
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait(30)


def load(port: int, clients: int, requests: int) -> tuple[float, list[float]]:
    """Requests a second, and the milliseconds that each took, with clients that each keep one connection."""
    local = threading.local()

    def ask(number: int) -> float:
        if not hasattr(local, "connection"):
            local.connection = HTTPConnection("127.0.0.1", port, timeout=60)
        start = time.perf_counter()
        local.connection.request("POST", "/echo", body=b"request %d\n" % number)
        answer = local.connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"1: request %d\n" % number)
        return (time.perf_counter() - start) * 1e3

    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(ask, range(clients)))
        start = time.perf_counter()
        took = list(threads.map(ask, range(requests)))
        return requests / (time.perf_counter() - start), sorted(took)


def server(requests: int) -> None:
    """`examples/asgi.py` under uvicorn, with a load on loopback."""
    table = Table("server", "clients", "requests/s", "ms, median", "99 of 100 within")
    for ready in (0, 4, 16):
        with served(ready, 4) as port:
            for clients in (1, 8):
                rate, took = load(port, clients, requests)
                table.add_row(
                    f"{ready} programs ready, 4 at once",
                    str(clients),
                    f"{rate:.0f}",
                    f"{statistics.median(took):.1f}",
                    f"{took[int(len(took) * 0.99)]:.1f}",
                )
    console.print(table)


@click.command()
@click.option("--workers", "count", default=8, show_default=True)
@click.option("--requests", default=300, show_default=True)
def main(count: int, requests: int) -> None:
    """Measure pools."""
    programs(40)
    server(requests)
    tasks(300)
    workers(count)


if __name__ == "__main__":
    main()
