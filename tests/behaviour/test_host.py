"""Behaviours of other linkers' tests that a program cannot show by itself: the host acts, or there are several programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import dl
from tests.support.modules import (
    MEMORY,
    calls,
    imports,
    library,
    pie,
    returns,
)

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"


class TestLibrariesOfTheHost:
    def test_host_opens_what_a_program_lacks(self) -> None:
        """A program finds what it lacks in libraries that the host opens GLOBAL after it was linked and before it runs."""
        main = pie(imports("late"), calls("run", "late"))
        with dl.Linker(main, libraries={"lib.so": library(returns("late", 42))}) as program:
            program.main_group.dlopen("lib.so", dl.DlFlags.NOW | dl.DlFlags.GLOBAL)

            assert program.main_group.dlsym(dl.MAIN_HANDLE, "run")() == 42

    def test_real_program_runs_with_what_the_host_opened(self) -> None:
        """A compiled program calls a function of a library that the host opened for it."""
        name = "nobody_defines_this_either"
        printed: list[Any] = []
        with dl.Linker(
            FIXTURES / "undefined" / "shared" / "main.wasm",
            libraries={"lib.so": library(f'(func (export "{name}") (param i32) (result i32) i32.const 7)')},
            args=["main", "call"],
            stdout=printed.append,
        ) as program:
            program.main_group.dlopen("lib.so", dl.DlFlags.NOW | dl.DlFlags.GLOBAL)

            assert program.main_group.run() == 0
        assert b"returned 7" in b"".join(printed)

    def test_needed_or_opened_first_is_the_same(self) -> None:
        """A library does the same whether another needs it, or it was opened GLOBAL before."""
        base = library(MEMORY, returns("f", 5))
        for needed in ((), ("base.so",)):
            user = library(imports("f"), calls("g", "f"), needed=needed)
            with dl.Linker(None, libraries={"base.so": base, "user.so": user}) as program:
                group = program.main_group
                if not needed:
                    group.dlopen("base.so", dl.DlFlags.NOW | dl.DlFlags.GLOBAL)

                assert group.dlsym(group.dlopen("user.so"), "g")() == 5


def test_library_with_exceptions_in_a_program_without() -> None:
    """A library that throws names what it misses of the run-time library, when the program has none."""
    folder = FIXTURES / "exceptions" / "shared"
    main = FIXTURES / "hello" / "shared" / "main.wasm"
    with dl.Linker(main, library_path=[folder, main.parent]) as program:
        with pytest.raises(dl.UnresolvedSymbolsError, match="__cxa_throw"):
            program.main_group.dlopen("libthrow.so", dl.DlFlags.NOW)


def test_programs_of_one_file_name_have_their_own_code(tmp_path: Path) -> None:
    """A library that is built anew is the new one in the next program, though file name and exports are the same."""
    path = tmp_path / "lib.so"
    results = []
    for value in (1, 2, 1):
        path.write_bytes(library(imports("f", "(result i32)"), returns("f", value), calls("g", "f")))
        with dl.Linker(None) as program:
            group = program.main_group
            handle = group.dlopen(path)
            results.append((group.dlsym(handle, "f")(), group.dlsym(handle, "g")()))

    assert results == [(1, 1), (2, 2), (1, 1)]


def test_library_calls_its_own_functions_by_pointer_wherever_it_is_placed() -> None:
    """Two libraries with segments alike each reach their own functions, though one pushes the other's indices up."""

    def segment(value: int) -> bytes:
        return library(
            '(import "env" "__indirect_function_table" (table 4 funcref))',
            '(import "env" "__table_base" (global $base i32))',
            *(f"(func $f{i} (result i32) i32.const {value + i})" for i in range(4)),
            "(elem (global.get $base) func $f0 $f1 $f2 $f3)",
            '(func (export "call") (param i32) (result i32) global.get $base local.get 0 i32.add call_indirect (result i32))',
            table_size=4,
        )

    with dl.Linker(None, libraries={"a.so": segment(10), "b.so": segment(20)}) as program:
        group = program.main_group
        a, b = (group.dlsym(group.dlopen(name), "call") for name in ("a.so", "b.so"))

        assert [[call(i) for i in range(4)] for call in (a, b)] == [[10, 11, 12, 13], [20, 21, 22, 23]]
