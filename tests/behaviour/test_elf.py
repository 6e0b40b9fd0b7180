"""The meaning of ELF: the same random graphs of libraries, built for ELF and as WebAssembly, say the same."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.support.elf import build, differences, missing_tool, random_graph, run_elf, run_wasm
from tests.support.paths import ROOT

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


def test_every_row_of_the_page_has_a_test() -> None:
    """What docs/elf.md says is the same, and what it says differs, is shown by a test that exists, in each row."""
    rows = [
        line
        for line in (ROOT / "docs/elf.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith("| ---") and not line.endswith("| test |")
    ]
    assert len(rows) > 15
    for row in rows:
        named = re.findall(r"`(tests/[^`:]+)(?:::\w+)?::(\w+)`", row)
        assert named, row
        for file, function in named:
            assert f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), (file, function)
