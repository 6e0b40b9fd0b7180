"""Many random graphs in both worlds, and where these differ, for the tests of what is as in ELF."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support.elf import Graph, build, run_elf, run_wasm

_FIRST_SEED = 1
_LONG = 600


def check_many(
    make: Callable[[int], Graph], root: Path, short: int, says: Callable[[list[str]], int]
) -> tuple[int, int]:
    """Check that graphs of many seeds say the same in both worlds.

    `DL_ELF_SEED` is the first seed and `DL_ELF_GRAPHS` says how many; otherwise 1, and `short` or, in a soak, 600.

    Args:
        make: makes the graph of a seed.
        root: where to build.
        short: how many graphs outside a soak.
        says: how much the lines of an ELF program say of what the test is about.

    Returns:
        How many graphs there were, and how much they said together: a test that compares nothing must fail.
    """
    count = int(os.environ.get("DL_ELF_GRAPHS") or (_LONG if os.environ.get("DL_SOAK_SECONDS") else short))
    first = int(os.environ.get("DL_ELF_SEED") or _FIRST_SEED)
    print(f"seeds {first} to {first + count - 1}")
    graphs = [make(seed) for seed in range(first, first + count)]
    build(graphs, root)
    said = 0
    failed = []
    for graph in graphs:
        elf, wasm = run_elf(graph, root), run_wasm(graph, root)
        said += says(elf)
        found = _differences(graph, elf, wasm)
        if found:
            failed.append(graph.seed)
            print(f"seed {graph.seed}: {graph}")
            print("\n".join((*found, "ELF:", *elf, "WebAssembly:", *wasm)))
    assert failed == []
    return count, said


def _differences(graph: Graph, elf: Sequence[str], wasm: Sequence[str]) -> list[str]:
    """Return the lines in which the two worlds differ, side by side, but for what may differ (docs/elf.md).

    The order in which unrelated libraries are constructed and destroyed; and a weak function that nothing defined when its
    library was opened with RTLD_NOW: null for good in ELF, looked for again at each call here.
    """
    found = [] if len(elf) == len(wasm) else [f"{len(elf)} lines and {len(wasm)}"]
    opens = iter([o for o in graph.operations if o.what == "open"])
    now = graph.bind_now
    final: set[str] = set()
    for left, right in zip(elf, wasm, strict=False):
        if left.startswith("open "):
            now = graph.bind_now or "NOW" in next(opens).flags
        if left.startswith((" constructed", " destroyed")):
            final |= set(left.split()[1:]) if now else set()
            same = sorted(left.split()) == sorted(right.split())
        else:
            number, _, label = left.strip().partition(" ")
            null = number in final and label.startswith("weak call") and label.endswith(" unresolved")
            same = left == right or (null and right.startswith(left.removesuffix("unresolved")))
        found += [] if same else [f"{left:40} | {right}"]
    return found
