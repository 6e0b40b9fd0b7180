"""Runs functions of a plug-in in several processes, one of which dies.

python examples/process_pool.py --workers 2 --items 100
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import dl

LIBRARY = Path(__file__).resolve().parent.parent / "fixtures" / "plugins" / "unshared" / "libadd.so"


def total(group: dl.InstanceGroup, a: int, b: int) -> tuple[int, int]:
    """Add two numbers in the guest; return the sum, and which process that was."""
    return group.library("libadd.so").add(a, b), os.getpid()


def fail(group: dl.InstanceGroup) -> None:
    """Call what is not there."""
    group.library("libmissing.so")


def die(_group: dl.InstanceGroup) -> None:
    """End the process, as a fault in a native library would."""
    os._exit(3)


def main() -> None:
    """Run the functions."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--items", type=int, default=100)
    options = parser.parse_args()
    spec = dl.Spec(libraries={"libadd.so": LIBRARY})
    with dl.ProcessPool(spec, options.workers) as pool:
        pool.prepare()
        results = list(pool.map(total, range(options.items), range(options.items)))
        print(f"sum of all: {sum(value for value, _ in results)}")
        print(f"another process: {os.getpid() not in {process for _, process in results}}")
        for function in (fail, die):
            error = pool.submit(function).exception()
            print(f"{function.__name__}: {type(error).__name__}")
        print(f"and on it goes: {pool.submit(total, 2, 3).result()[0]}")


if __name__ == "__main__":
    main()
