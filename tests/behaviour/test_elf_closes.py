"""Opens and closes of ELF: the same random histories, with the same libraries in both worlds, leave the same behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.elf import MAIN, Graph, Operation, Part, build, run_elf, run_wasm
from tests.support.elf_closes import random_history
from tests.support.elf_comparison import check_many


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_random_histories_leave_what_they_leave_in_elf(tmp_path: Path) -> None:
    """After each open and close the same libraries have been constructed and destroyed, and calls, data and look-ups agree."""
    count, destroyed = check_many(
        random_history, tmp_path, 10, lambda elf: sum(line.startswith(" destroyed") for line in elf)
    )
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
