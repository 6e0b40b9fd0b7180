"""Modules that lie or are damaged: always an error of the linker, and the linker goes on as if nothing had been."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import dl
from dl.wasm.encode import name_bytes, section, unsigned, vector
from tests.support.modules import (
    MEMORY,
    TABLE,
    data,
    dylink,
    got,
    imports,
    library,
    module,
    pie,
    returns,
    subsection,
)

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
GOOD = library(MEMORY, TABLE, returns("f", 1), data("d", 0), memory_size=64, table_size=2)
EMPTY = b"\0asm\x01\0\0\0"


def with_section(body: bytes) -> bytes:
    """A module that is only a `dylink.0` section."""
    return EMPTY + section(0, name_bytes("dylink.0") + body)


def check_still_good(program: dl.Linker, handle: dl.ModuleHandle) -> None:
    """The program is as it was: one library, which still works, and another copy of it can be opened and used."""
    group = program.main_group
    assert [m.handle for m in program.modules] == [handle]
    assert group.dlsym(handle, "f")() == 1
    with dl.Linker(None) as other:
        assert other.main_group.dlsym(other.main_group.dlopen(GOOD), "f")() == 1


class TestLyingSizes:
    @pytest.mark.parametrize(
        "info",
        [
            {"memory_size": 1 << 31},
            {"memory_size": (1 << 32) - 1},
            {"memory_size": 1, "memory_align": 31},
            {"memory_size": 1, "memory_align": 32},
            {"memory_size": 1, "memory_align": 40},
            {"memory_size": 1, "memory_align": (1 << 32) - 1},
            {"table_size": 1 << 31},
            {"table_size": (1 << 32) - 1},
            {"table_size": 1, "table_align": 31},
            {"table_size": 1, "table_align": 40},
            {"memory_size": 1 << 31, "table_size": 1 << 31, "memory_align": 31, "table_align": 31},
        ],
    )
    def test_sizes_and_alignments(self, info: dict[str, Any]) -> None:
        """Sizes and alignments that no memory or table has are refused before anything is reserved."""
        lib = library(MEMORY, TABLE, **info)
        with dl.Linker(None, libraries={"lib.so": lib}, memory=dl.MemoryType(maximum=1000)) as program:
            good = program.main_group.dlopen(GOOD)
            before = program.statistics()
            with pytest.raises(dl.DlError, match=r"lib\.so"):
                program.main_group.dlopen("lib.so")

            after = program.statistics()
            assert after.side_bytes == before.side_bytes
            assert after.table_elements == before.table_elements
            assert after.memory_bytes == before.memory_bytes
            check_still_good(program, good)
        with pytest.raises(dl.DlError):
            dl.Linker(pie(**info), memory=dl.MemoryType(maximum=1000))

    def test_large_but_possible(self) -> None:
        """2 GiB of data fit a memory that may have them, but not twice."""
        big = library(MEMORY, data("d", 0), memory_size=1 << 31, memory_align=16)
        with dl.Linker(None, libraries={"big.so": big, "again.so": big}) as program:
            group = program.main_group
            at = group.dlsym(group.dlopen("big.so"), "d").address
            with pytest.raises(dl.ResourceLimitError, match=r"again\.so"):
                group.dlopen("again.so")

            assert at + (1 << 31) <= program.memory.size
            assert program.memory.read(at + (1 << 31) - 4, 4) == bytes(4)

    def test_many_needed_libraries(self) -> None:
        """A hundred thousand needed names end at the first that is missing."""
        lib = library(needed=[f"{n}.so" for n in range(100_000)])
        with dl.Linker(None, libraries={"lib.so": lib, "0.so": GOOD}) as program:
            with pytest.raises(dl.LibraryNotFoundError, match=r"1\.so"):
                program.main_group.dlopen("lib.so")

            assert program.modules == ()

    def test_huge_names(self) -> None:
        """Names of a megabyte, in any place, make no message of a megabyte."""
        name = "n" * 1_000_000
        bad = [
            library(needed=[name]),
            library(imports(name)),
            library(got(name, "mem")),
            library(imports("f", namespace=name)),
        ]
        for wasm in bad:
            with dl.Linker(None) as program, pytest.raises(dl.DlError) as caught:
                program.main_group.dlopen(wasm)
            assert len(str(caught.value)) < 3_000

    def test_many_missing_symbols(self) -> None:
        """Ten thousand missing symbols are all in the error, but not all in its text."""
        lib = library(*(got(f"s{n}", "mem") for n in range(10_000)))
        with dl.Linker(None) as program, pytest.raises(dl.UnresolvedSymbolsError) as caught:
            program.main_group.dlopen(lib)

        assert len(caught.value.missing) == 10_000
        assert len(str(caught.value)) < 10_000

    @pytest.mark.parametrize(
        "body",
        [
            b"\x01",
            b"\x01\x04\x08",
            subsection(1, b""),
            subsection(1, b"\x08\x02\x00\x00\x00"),
            subsection(2, unsigned(1 << 30)),
            subsection(2, unsigned(1) + unsigned(1 << 30) + b"a"),
            subsection(2, vector([unsigned(2) + b"\xff\xfe"])),
            subsection(3, unsigned(1) + name_bytes("x")),
            subsection(5, b"\xff\xff\xff\xff\xff"),
            b"\x02" + unsigned(1 << 31),
        ],
    )
    def test_corrupt_dylink_sections(self, body: bytes) -> None:
        """A dylink section that contradicts itself is reported with its place in the file."""
        with dl.Linker(None) as program:
            good = program.main_group.dlopen(GOOD)
            with pytest.raises(dl.MalformedModuleError) as caught:
                program.main_group.dlopen(with_section(body), name="lib.so")

            assert 8 <= caught.value.offset <= len(with_section(body))
            check_still_good(program, good)

    def test_unknown_subsections(self) -> None:
        """Subsections of the future are no obstacle."""
        lib = module(returns("f", 3))
        lib = (
            lib[:8]
            + section(0, name_bytes("dylink.0") + subsection(99, b"future") + subsection(1, b"\0\0\0\0"))
            + lib[8:]
        )
        with dl.Linker(None) as program:
            group = program.main_group

            assert group.dlsym(group.dlopen(lib), "f")() == 3

    def test_no_memory_info(self) -> None:
        """A dylink section without sizes means sizes of zero."""
        lib = module(returns("f", 3))
        lib = lib[:8] + section(0, name_bytes("dylink.0")) + lib[8:]
        with dl.Linker(None) as program:
            group = program.main_group

            assert group.dlsym(group.dlopen(lib), "f")() == 3

    def test_legacy_section(self) -> None:
        """A library with the section of before 2021 is loaded with its data, table and needed libraries."""
        legacy = b"".join(unsigned(n) for n in (16, 3, 0, 0)) + vector([name_bytes("dep.so")])
        lib = module(MEMORY, data("d", 8), imports("f"), '(func (export "g") (result i32) call $f)')
        lib = lib[:8] + section(0, name_bytes("dylink") + legacy) + lib[8:]
        with dl.Linker(None, libraries={"dep.so": GOOD, "lib.so": lib}) as program:
            group = program.main_group
            handle = group.dlopen("lib.so")

            assert group.dlsym(handle, "g")() == 1
            assert group.dlsym(handle, "d").address % 8 == 0


class TestOtherFiles:
    @pytest.mark.parametrize(
        "content",
        [
            b"", b"\0", b"\0asm", EMPTY[:-1], b"\x7fELF\x02\x01\x01" + bytes(60), b"#!/bin/sh\n", b"PK\x03\x04" + bytes(40),
            b"\0asm\x0d\0\x01\0", b"\0asm\x02\0\0\0", b"!<arch>\n", EMPTY + b"\0" * 100, EMPTY + b"\xff" * 100,
        ],
    )  # fmt: skip
    def test_not_a_module(self, content: bytes, tmp_path: Path) -> None:
        """Files of other kinds, components and other versions included, are refused by name, from disk and memory."""
        path = tmp_path / "lib.so"
        path.write_bytes(content)
        with dl.Linker(None) as program:
            good = program.main_group.dlopen(GOOD)
            for source in (path, content):
                with pytest.raises(dl.DlError):
                    program.main_group.dlopen(source)
            with pytest.raises(dl.DlError, match=r"lib\.so"):
                program.main_group.dlopen(path)
            check_still_good(program, good)

    def test_modules_that_are_no_libraries(self) -> None:
        """Ordinary modules, an empty one too, are no libraries."""
        with dl.Linker(None) as program:
            for wasm in (EMPTY, module(returns("f", 1)), module('(memory (export "memory") 1)')):
                with pytest.raises(dl.NotDynamicError):
                    program.main_group.dlopen(wasm)

    def test_a_library_with_a_memory_of_its_own(self) -> None:
        """A library that defines its memory writes where nobody else reads, so it is refused."""
        lib = library(
            "(memory 1)",
            '(func (export "f") (result i32) (i32.store (i32.const 0) (i32.const 5)) (i32.load (i32.const 0)))',
        )
        with dl.Linker(None) as program, pytest.raises(dl.NotDynamicError, match="a memory of its own"):
            program.main_group.dlopen(lib)


REAL = sorted(FIXTURES.glob("*/unshared/lib*.so"))


def real_libraries() -> Any:
    """Some real libraries, smallest first, each with what it needs beside it."""
    return sorted(REAL, key=lambda p: (p.stat().st_size, str(p)))[:25]


@pytest.fixture(scope="module")
def program() -> Iterator[dl.Linker]:
    """One program for all damaged libraries."""
    directories = sorted({p.parent for p in REAL})
    with dl.Linker(None, library_path=directories, memory=dl.MemoryType(maximum=2000)) as program:
        program.main_group.dlopen(GOOD)
        yield program


class TestDamage:
    """Real libraries, cut off or changed: opened in one program, which has to survive them all."""

    def attempt(self, program: dl.Linker, wasm: bytes) -> None:
        """Open damaged bytes; they load, or fail with an error of ours that leaves nothing behind."""
        group = program.main_group
        before = [m.handle for m in program.modules]
        in_use = program.statistics().side_bytes, program.statistics().table_elements
        failure = None
        try:
            group.dlopen(wasm, dl.RTLD_LAZY)
        except dl.DlError as error:
            failure = str(error)
        if failure is not None:
            assert "\n" not in failure.strip()
            assert [m.handle for m in program.modules] == before
            assert (program.statistics().side_bytes, program.statistics().table_elements) == in_use
        assert group.dlsym(2, "f")() == 1

    @pytest.mark.parametrize("path", real_libraries(), ids=lambda p: f"{p.parent.parent.name}-{p.stem}")
    def test_truncated(self, program: dl.Linker, path: Path) -> None:
        """A library cut off anywhere is an error, unless only custom sections at its end are lost."""
        wasm = path.read_bytes()
        step = max(len(wasm) // 60, 1)
        for cut in sorted({*range(0, len(wasm), step), *range(8), len(wasm) - 1}):
            self.attempt(program, wasm[:cut])

    @pytest.mark.parametrize("path", real_libraries(), ids=lambda p: f"{p.parent.parent.name}-{p.stem}")
    def test_changed_bytes(self, program: dl.Linker, path: Path) -> None:
        """A library with some bytes changed loads or fails, and never harms the program."""
        wasm = path.read_bytes()
        chance = random.Random(path.name)
        for _ in range(25):
            damaged = bytearray(wasm)
            for _ in range(chance.choice((1, 1, 2, 8))):
                damaged[chance.randrange(8, len(wasm))] = chance.choice(
                    (0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256))
                )
            self.attempt(program, bytes(damaged))

    @settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(8, len(GOOD) - 1), st.binary(min_size=1, max_size=6), st.integers(0, 4))
    @example(8, b"\x00", 0)
    def test_spliced(self, program: dl.Linker, at: int, inserted: bytes, removed: int) -> None:
        """A small library with bytes replaced by others at any place loads or fails."""
        self.attempt(program, GOOD[:at] + inserted + GOOD[at + removed :])

    @settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.fixed_dictionaries(
            {
                "memory_size": st.integers(0, 1 << 22), "memory_align": st.integers(0, 20),
                "table_size": st.integers(0, 5000), "table_align": st.integers(0, 12),
            }
        )
    )  # fmt: skip
    def test_any_sizes(self, program: dl.Linker, info: dict[str, Any]) -> None:
        """A library of any possible size and alignment gets bases that are aligned and apart from all others."""
        group = program.main_group
        lib = library(MEMORY, TABLE, data("d", 0), '(import "env" "__table_base" (global $t i32))',
                      '(func (export "base") (result i32) global.get $t)', **info)  # fmt: skip
        try:
            handle = group.dlopen(lib)
        except dl.ResourceLimitError:
            return
        at, base = group.dlsym(handle, "d").address, group.dlsym(handle, "base")()
        if info["memory_size"]:
            assert at % (1 << info["memory_align"]) == 0
            assert at + info["memory_size"] <= program.memory.size
        if info["table_size"]:
            assert base % (1 << info["table_align"]) == 0
            assert base >= 16

    @settings(max_examples=200)
    @given(st.binary(max_size=200))
    def test_any_dylink_section(self, payload: bytes) -> None:
        """Any bytes as a dylink section are read or refused, never more."""
        with dl.Linker(None, stack_size=1024) as program:
            try:
                program.main_group.dlopen(with_section(payload))
            except dl.DlError:
                assert program.modules == ()

    def test_a_section_that_lies_about_everything(self) -> None:
        """The generator of the other tests makes sections that are read as they were written."""
        info: dict[str, Any] = {"memory_size": 5, "memory_align": 3, "table_size": 2, "table_align": 1}
        info |= {"needed": ["a"], "weak": ["w"], "tls": ["t"], "run_path": ["$ORIGIN"]}
        assert dylink(**info) in library(**info)
