"""The meaning of ELF: the same random graphs of libraries, built for ELF and as WebAssembly, say the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.elf import build, differences, missing_tool, random_graph, run_elf, run_wasm

FIRST_SEED = 1
SHORT, LONG = 40, 600


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_random_graphs_mean_what_they_mean_in_elf(tmp_path: Path) -> None:
    """Every call, address and look-up gives in both worlds the same, whatever is opened in whatever order; see docs/elf.md."""
    reason = missing_tool()
    if reason:
        pytest.skip(reason)
    count = int(os.environ.get("DL_ELF_GRAPHS") or (LONG if os.environ.get("DL_SOAK_SECONDS") else SHORT))
    first = int(os.environ.get("DL_ELF_SEED") or FIRST_SEED)
    print(f"seeds {first} to {first + count - 1}")
    graphs = [random_graph(seed) for seed in range(first, first + count)]
    build(graphs, tmp_path)
    started = 0
    failed = []
    for graph in graphs:
        elf, wasm = run_elf(graph, tmp_path), run_wasm(graph, tmp_path)
        started += len(elf) > 1
        found = differences(graph, elf, wasm)
        if found:
            failed.append(graph.seed)
            print(f"seed {graph.seed}: {graph}")
            print("\n".join((*found, "ELF:", *elf, "WebAssembly:", *wasm)))
    assert failed == []
    assert started > count // 2, "too few graphs say anything"
