"""Opens and closes of ELF: the same random histories, with the same libraries in both worlds, leave the same behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.elf import (
    MAIN,
    Graph,
    Operation,
    Part,
    build,
    differences,
    missing_tool,
    run_elf,
    run_wasm,
)
from tests.support.elf_closes import random_history

FIRST_SEED = 1
SHORT, LONG = 10, 600


@pytest.fixture(autouse=True)
def _tools() -> None:
    reason = missing_tool()
    if reason:
        pytest.skip(reason)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_random_histories_leave_what_they_leave_in_elf(tmp_path: Path) -> None:
    """After each open and close the same libraries have been constructed and destroyed, and calls, data and look-ups agree."""
    count = int(os.environ.get("DL_ELF_GRAPHS") or (LONG if os.environ.get("DL_SOAK_SECONDS") else SHORT))
    first = int(os.environ.get("DL_ELF_SEED") or FIRST_SEED)
    print(f"seeds {first} to {first + count - 1}")
    graphs = [random_history(seed) for seed in range(first, first + count)]
    build(graphs, tmp_path)
    destroyed = 0
    failed = []
    for graph in graphs:
        elf, wasm = run_elf(graph, tmp_path), run_wasm(graph, tmp_path)
        destroyed += sum(line.startswith(" destroyed") for line in elf)
        found = differences(graph, elf, wasm)
        if found:
            failed.append(graph.seed)
            print(f"seed {graph.seed}: {graph}")
            print("\n".join((*found, "ELF:", *elf, "WebAssembly:", *wasm)))
    assert failed == []
    assert destroyed > 2 * count, "too few closes say anything"


def told(tmp_path: Path, *operations: Operation, parts: tuple[Part, ...]) -> tuple[list[str], list[str]]:
    """Return which libraries each world destroyed, close by close."""
    graph = Graph(0, Part(MAIN, ".", "main"), parts, operations)
    build([graph], tmp_path)
    both = run_elf(graph, tmp_path), run_wasm(graph, tmp_path)
    elf, wasm = ([line.strip() for line in lines if line.startswith(" destroyed")] for lines in both)
    return elf, wasm


def test_a_look_up_by_the_host_keeps_nothing(tmp_path: Path) -> None:
    """`dlsym(RTLD_DEFAULT)` by a program binds the program to the library, for good in ELF; the host is no module."""
    elf, wasm = told(
        tmp_path,
        Operation("open", "d0/x0.so", ("LAZY", "GLOBAL"), 0),
        Operation("function", "fa", (), -2),
        Operation("close", "-", (), 0),
        parts=(Part(0, "d0", "x0.so", functions={"fa": False}),),
    )
    assert elf == []
    assert wasm == ["destroyed 0"]


def test_who_is_bound_late_ends_before_what_it_is_bound_to(tmp_path: Path) -> None:
    """A library that was bound at a first call, to one that came after it, is destroyed before that in both worlds."""
    elf, wasm = told(
        tmp_path,
        Operation("open", "d0/x0.so", ("LAZY",), 0),
        Operation("open", "d0/x1.so", ("LAZY", "GLOBAL"), 1),
        Operation("close", "-", (), 1),
        Operation("close", "-", (), 0),
        parts=(Part(0, "d0", "x0.so", uses={"fa": "call"}), Part(1, "d0", "x1.so", functions={"fa": False})),
    )
    assert elf == wasm == ["destroyed 0 1"]
