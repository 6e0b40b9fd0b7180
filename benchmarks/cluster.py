"""What a task costs on a Dask cluster, with a program and without: processor time of scheduler, workers and client.

    python benchmarks/cluster.py [--workers 2] [--tasks 1000]

Processor time does not depend on what else the machine does, so it says what an idle one could do.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from common import ROOT, take_turns
from rich.console import Console
from rich.table import Table

import dl

if TYPE_CHECKING:
    from distributed import Client

PLUGINS = ROOT / "fixtures/plugins/unshared"
SPEC = dl.Spec(main=PLUGINS / "main.wasm", libraries={"libadd.so": PLUGINS / "libadd.so"})
TICK = os.sysconf("SC_CLK_TCK")
console = Console()


def plain(number: int) -> int:
    """A task without a program."""
    return number + number


def guest(group: dl.InstanceGroup, number: int) -> int:
    """The same, added by the guest."""
    return group.library("libadd.so").add(number, number)


def guest_many(group: dl.InstanceGroup, numbers: list[int]) -> list[int]:
    """A task for many items."""
    add = group.library("libadd.so").add
    return [add(number, number) for number in numbers]


def processor_seconds(process: int) -> float:
    """Processor time that a process has taken, all its threads together."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


@contextlib.contextmanager
def cluster(workers: int) -> Iterator[tuple[Client, int, list[int]]]:
    """A scheduler and workers, a process each; a client, and the processes' numbers."""
    from distributed import Client  # noqa: PLC0415  of the extra `dask`; the help needs no library for it

    with contextlib.ExitStack() as stack:
        file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "scheduler.json"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}

        def start(*words: str) -> int:
            command = [sys.executable, "-m", *words, "--scheduler-file", str(file)]
            process = subprocess.Popen(command, env=environment, cwd=file.parent, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process.pid

        scheduler = start("distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard")
        while not file.exists():
            time.sleep(0.05)
        own = [
            start("distributed.cli.dask_worker", "--nthreads", "1", "--no-nanny", "--no-dashboard")
            for _ in range(workers)
        ]
        client = stack.enter_context(Client(scheduler_file=str(file)))
        client.wait_for_workers(workers)
        yield client, scheduler, own


def measured(
    work: Callable[[], list[Any]], count: int, scheduler: int, workers: list[int]
) -> dict[str, float]:
    """Microseconds for each task: processor time of each kind of process, and time that passed."""
    from distributed import wait  # noqa: PLC0415  as above

    before = [processor_seconds(scheduler), sum(map(processor_seconds, workers)), time.process_time()]
    start = time.perf_counter()
    futures = work()
    wait(futures)
    passed = time.perf_counter() - start
    assert all(future.status == "finished" for future in futures)
    after = [processor_seconds(scheduler), sum(map(processor_seconds, workers)), time.process_time()]
    used = [(b - a) / count * 1e6 for a, b in zip(before, after, strict=True)]
    return {"scheduler": used[0], "worker": used[1], "client": used[2], "passed": passed / count * 1e6}


def tasks(client: Client, scheduler: int, workers: list[int], count: int, rounds: int) -> None:
    """Tasks of one item each, and of a hundred."""
    import dl.cluster  # noqa: PLC0415  as above
    from dl.cluster.worker import Run  # noqa: PLC0415

    start = time.perf_counter()
    program = dl.cluster.Program(SPEC, client)
    sent = time.perf_counter() - start
    start = time.perf_counter()
    for address in client.scheduler_info()["workers"]:
        program.submit(guest, 1, workers=[address]).result()
    built = time.perf_counter() - start
    lists = [list(range(100)) for _ in range(count)]
    samples: dict[str, list[dict[str, float]]] = {}

    def way(name: str, work: Callable[[], list[Any]]) -> Callable[[], float]:
        def once() -> float:
            samples.setdefault(name, []).append(measured(work, count, scheduler, workers))
            return 0.0

        return once

    take_turns(
        {
            name: way(name, work)
            for name, work in {
                "Python function": lambda: client.map(plain, range(count), pure=False),
                "guest function": lambda: program.map(guest, range(count)),
                "guest function, 100 items a task": lambda: program.map(guest_many, lists),
            }.items()
        },
        rounds,
    )
    table = Table("a task, µs, the least", "scheduler", "worker", "client", "passed")
    for name, found in samples.items():
        table.add_row(name, *(f"{min(one[kind] for one in found[1:]):.0f}" for kind in found[0]))
    console.print(table)
    console.print(f"given to {len(workers)} workers in {sent:.2f} s, built there in {built:.2f} s")
    console.print(f"pickled: a task's function {len(pickle.dumps(Run(program.digest, guest, None)))} bytes")
    program.forget()


@click.command()
@click.option("--workers", "count", default=2, show_default=True)
@click.option("--tasks", "number", default=1000, show_default=True)
@click.option("--rounds", default=5, show_default=True)
def main(count: int, number: int, rounds: int) -> None:
    """Measure tasks."""
    with cluster(count) as (client, scheduler, workers):
        tasks(client, scheduler, workers, number, rounds)


if __name__ == "__main__":
    main()
