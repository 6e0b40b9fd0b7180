"""RTLD_NEXT, RTLD_DEFAULT, DEEPBIND, promotion, LD_PRELOAD, LD_BIND_NOW: what libraries see that ask themselves, as in ELF."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.elf import build, differences, missing_tool, run_elf, run_wasm
from tests.support.elf_scopes import random_scopes

FIRST_SEED = 1
SHORT, LONG = 10, 600


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_libraries_that_ask_see_what_they_see_in_elf(tmp_path: Path) -> None:
    """After each open and close, every library finds the same behind itself and by default as its twin in ELF."""
    reason = missing_tool()
    if reason:
        pytest.skip(reason)
    count = int(os.environ.get("DL_ELF_GRAPHS") or (LONG if os.environ.get("DL_SOAK_SECONDS") else SHORT))
    first = int(os.environ.get("DL_ELF_SEED") or FIRST_SEED)
    print(f"seeds {first} to {first + count - 1}")
    graphs = [random_scopes(seed) for seed in range(first, first + count)]
    build(graphs, tmp_path)
    answers = 0
    failed = []
    for graph in graphs:
        elf, wasm = run_elf(graph, tmp_path), run_wasm(graph, tmp_path)
        answers += sum(" ask next " in line and not line.endswith(" -1") for line in elf)
        found = differences(graph, elf, wasm)
        if found:
            failed.append(graph.seed)
            print(f"seed {graph.seed}: {graph}")
            print("\n".join((*found, "ELF:", *elf, "WebAssembly:", *wasm)))
    assert failed == []
    assert answers > 2 * count, "too few answers say anything"
