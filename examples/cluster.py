"""Runs a C program's function on the workers of a Dask cluster, one of which is killed in the middle.

    python examples/cluster.py --workers 3 --items 300

Starts Dask's scheduler and worker processes on this machine. On a cluster that is there: `--scheduler tcp://HOST:8786`; then
none of its workers is killed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import dl

if TYPE_CHECKING:
    from distributed import Client

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
SPEC = dl.Spec(
    main=FIXTURES / "plugins/unshared/main.wasm",
    libraries={
        "libadd.so": FIXTURES / "plugins/unshared/libadd.so",
        "libtrap.so": FIXTURES / "traps/unshared/libtrap.so",
    },
    interrupts=True,
)


def double(group: dl.InstanceGroup, number: int) -> tuple[int, int]:
    """Double a number in the guest; return it, and which process that was."""
    time.sleep(0.005)  # so that there is a middle
    return group.library("libadd.so").add(number, number), os.getpid()


def trap(group: dl.InstanceGroup, _item: object) -> None:
    """Call a function that traps."""
    group.library("libtrap.so").fall()


@contextlib.contextmanager
def connected(scheduler: str | None, workers: int) -> Iterator[Client]:
    """A client of a scheduler that is there, or of one with worker processes that are started here."""
    from distributed import Client, LocalCluster  # noqa: PLC0415  of the extra `dask`; the help needs no library for it

    with contextlib.ExitStack() as stack:
        where: str | LocalCluster = scheduler or stack.enter_context(
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address=":0",
                silence_logs=50,
            )
        )
        yield stack.enter_context(Client(where))


def main() -> None:
    """Run the functions."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scheduler", help="address of a scheduler; default: one is started")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--items", type=int, default=300)
    options = parser.parse_args()

    from distributed import as_completed  # noqa: PLC0415

    import dl.cluster  # noqa: PLC0415  as above, and says what to install

    with connected(options.scheduler, options.workers) as client:
        processes = set(client.run(os.getpid).values())
        print(f"worker processes: {len(processes)}")
        futures = dl.cluster.map(SPEC, double, range(options.items), client=client)
        victim = None if options.scheduler else min(processes)
        for done, _ in enumerate(as_completed(futures)):
            if victim and done == options.items // 3:
                os.kill(victim, signal.SIGKILL)
                print(f"killed one after {done} results")
                victim = None
        results = client.gather(futures)
        print(
            f"results: {len(results)}, all right: {[n for n, _ in results] == [2 * n for n in range(options.items)]}"
        )
        client.wait_for_workers(options.workers if options.scheduler is None else 1)
        after = set(client.run(os.getpid).values())
        print(f"worker processes: {len(after)}, of which new: {len(after - processes)}")
        shares = Counter(process in processes for _, process in results)
        print(f"results of the first processes: {shares[True] > 0}")
        error = dl.cluster.map(SPEC, trap, [0], client=client)[0].exception()
        print(f"an error as it was raised: {type(error).__name__}: {error}")
        dl.cluster.forget(SPEC, client)


if __name__ == "__main__":
    main()
