"""What main module, libraries and host ask of each other when a program is linked: streams, stacks, memories, names."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import dl
from tests.support.modules import (
    MEMORY,
    STACK_POINTER,
    TABLE,
    calls,
    imports,
    library,
    module,
    pie,
    reads,
    returns,
    static,
)

NOTE = '(import "host" "note" (func $note (param i32)))'
LIBRARY = library(NOTE, '(func (export "__wasm_call_ctors") i32.const 1 call $note)')
STREAMS = "_ZNSt3__28ios_base4InitC1Ev"


class TestStreams:
    """C++ streams that the main module has, in static constructors of the libraries that it needs."""

    def notes(self, wasm: bytes, libraries: dict[str, bytes]) -> list[int]:
        noted: list[int] = []
        with dl.Linker(wasm, libraries=libraries, imports={"host": {"note": noted.append}}):
            return noted

    @pytest.mark.parametrize(
        "kind", ["(param i32) (result i32)", "(param i32)"], ids=["returns this", "returns nothing"]
    )
    @pytest.mark.parametrize("name", [STREAMS, "_ZNSt3__18ios_base4InitC1Ev", "_ZNSt8ios_base4InitC1Ev"])
    def test_they_are_made_before_the_first_constructor(self, name: str, kind: str) -> None:
        """The constructor of the streams runs once, on zeroed memory of its own, before any other of the program."""
        result = "local.get 0" if "result" in kind else ""
        main = pie(
            NOTE,
            f'(func (export "{name}") {kind} i32.const 100 call $note (i32.load (local.get 0)) call $note '
            f"(i32.and (local.get 0) (i32.const 15)) call $note (i32.eqz (local.get 0)) call $note {result})",
            '(func (export "__wasm_call_ctors") i32.const 2 call $note)',
            needed=["a.so"],
        )
        assert self.notes(main, {"a.so": LIBRARY}) == [100, 0, 0, 0, 1, 2]

    def test_without_libraries_they_are_left_to_the_main_module(self) -> None:
        """A main module that needs no library makes its streams itself."""
        main = pie(NOTE, f'(func (export "{STREAMS}") (param i32) i32.const 100 call $note)')
        assert self.notes(main, {}) == []

    def test_a_failure_is_one_of_the_load(self) -> None:
        """A trap in it is reported with its name."""
        main = pie(f'(func (export "{STREAMS}") (param i32) unreachable)', needed=["a.so"])
        with pytest.raises(dl.InitializationError, match="ios_base"):
            self.notes(main, {"a.so": LIBRARY})


class TestMemoriesAndTables:
    """Memory and table are imported by their exact names."""

    @pytest.mark.parametrize(
        ("field", "name"),
        [
            ('(import "env" "mem" (memory 0))', r"env\.mem"),
            ('(import "nobody" "memory" (memory 0))', r"nobody\.memory"),
            ('(import "env" "table" (table 0 funcref))', r"env\.table"),
            ('(import "nobody" "thing" (table 0 funcref))', r"nobody\.thing"),
        ],
    )
    def test_a_library_with_another_name_is_refused(self, field: str, name: str) -> None:
        """A library that imports something else as its memory or table is refused by that name."""
        with dl.Linker(None) as program, pytest.raises(dl.UnresolvedSymbolsError, match=name):
            program.main_group.dlopen(library(field))

    @pytest.mark.parametrize("build", [module, library])
    def test_a_second_memory_of_the_main_module_is_refused(self, build: Any) -> None:
        """Two imported memories are two memories, of which a program has one: the other is named."""
        wasm = build('(import "a" "m" (memory 1))', '(import "b" "m" (memory 1))', '(func (export "_start"))')
        with pytest.raises(dl.DlError, match=r"b\.m"):
            dl.Linker(wasm)

    def test_the_one_memory_of_a_static_main_may_have_any_name(self) -> None:
        """An ordinary module knows nothing of the convention's names."""
        with dl.Linker(module('(import "js" "mem" (memory 1))', returns("f", 3))) as program:
            assert program.main_group.dlsym(program.main, "f")() == 3

    def test_a_library_with_a_memory_of_its_own_is_refused(self) -> None:
        """A library that defines its memory would write where nobody reads."""
        with dl.Linker(None) as program, pytest.raises(dl.NotDynamicError, match="memory of its own"):
            program.main_group.dlopen(library("(memory 1)"))


class TestSideStack:
    """The stack of the libraries beside a static main module that exports no stack pointer."""

    SMALL = static(returns("f", 4), memory='(memory (export "memory") 1 2)')

    def test_a_program_that_opens_nothing_needs_none(self) -> None:
        """A memory without room for the stack still runs; nothing is taken of it."""
        with dl.Linker(self.SMALL) as program:
            assert program.main_group.dlsym(program.main, "f")() == 4
            assert program.memory.size == 65536

    def test_the_first_library_brings_it(self) -> None:
        """It comes with the first library, is the same for the next, and does not fit into a memory that is too small."""
        lib = library(MEMORY, TABLE, STACK_POINTER, reads("sp", "sp"))
        with dl.Linker(self.SMALL) as program:
            with pytest.raises(dl.ResourceLimitError, match="stack"):
                program.main_group.dlopen(lib)
            assert program.main_group.dlsym(program.main, "f")() == 4
        with dl.Linker(static(returns("f", 4))) as program:
            group = program.main_group
            tops = [group.dlsym(group.dlopen(lib), "sp")() for _ in range(2)]
            assert tops[0] == tops[1] > 1 << 20


class TestNumbersAndNames:
    """What the host gives, and what it gets back."""

    def test_a_constant_of_64_bits_is_no_address(self) -> None:
        """An exported i64 constant beyond 32 bits is not cut to an address; another module imports all of it."""
        big = 0x1_2345_6789
        get = '(func (export "get") (result i64) global.get $big)'
        libs = {
            "a.so": library(f'(global (export "big") i64 (i64.const {big}))'),
            "b.so": library('(import "env" "big" (global $big i64))', get, needed=["a.so"]),
        }
        with dl.Linker(None, libraries=libs) as program:
            group = program.main_group
            handle = group.dlopen("b.so")
            assert group.dlsym(handle, "get")() == big
            with pytest.raises(dl.SymbolNotFoundError, match="neither a function nor data"):
                group.dlsym(handle, "big")

    def test_an_address_that_a_function_returns_is_signed(self) -> None:
        """Numbers of the guest are signed, addresses are not: `memory.address` makes one of the other, and errors say so."""
        with dl.Linker(None, memory=dl.MemoryType(minimum=32769)) as program:
            group, memory = program.main_group, program.memory
            result = group.dlsym(group.dlopen(library(returns("high", -(1 << 31) + 8))), "high")()
            memory.write_u32(memory.address(result), 77)
            assert memory.read_u32((1 << 31) + 8) == 77
            with pytest.raises(IndexError, match=r"memory\.address"):
                memory.read_u32(result)
            with pytest.raises(ValueError, match="32 bits"):
                memory.address(1 << 32)

    @pytest.mark.parametrize("shared", [False, True])
    def test_a_number_for_a_mutable_global_is_one_global(self, shared: bool) -> None:
        """What one module sets, every other sees, in the thread that sets it; the type distinguishes globals."""
        wasm = library(
            '(import "env" "x" (global $x (mut i32)))',
            reads("get", "x"),
            '(func (export "set") (param i32) local.get 0 global.set $x)',
        )
        wide = library(
            '(import "env" "x" (global $x (mut i64)))', '(func (export "get") (result i64) global.get $x)'
        )
        memory = dl.MemoryType(minimum=1, maximum=64, shared=shared)
        with dl.Linker(None, imports={"env": {"x": 5}}, memory=memory) as program:
            group = program.main_group
            first, second = group.dlopen(wasm), group.dlopen(wasm)
            assert group.dlsym(second, "get")() == 5
            group.dlsym(first, "set")(6)
            assert group.dlsym(second, "get")() == 6
            assert group.dlsym(group.dlopen(wide), "get")() == 5
            if shared:
                assert program.spawn(lambda other: other.dlsym(second, "get")()).join() == 5

    def test_other_bytes_under_a_used_name(self) -> None:
        """The same bytes under a name are the module that is there; other bytes are an error."""
        with dl.Linker(None) as program:
            group = program.main_group
            first = group.dlopen(library(returns("f", 1)), name="x.so")
            assert group.dlopen(library(returns("f", 1)), name="x.so") == first
            with pytest.raises(dl.LinkError, match="other bytes"):
                group.dlopen(library(returns("f", 2)), name="x.so")
            assert group.dlsym(first, "f")() == 1

    def test_unused_imports_are_reported(self, caplog: pytest.LogCaptureFixture) -> None:
        """A key of `imports` that nothing imports is told of, and listed until something imports it."""
        given: Any = {"env": {"used": lambda: 1, "laet": lambda: 2}}
        with caplog.at_level(logging.INFO, "dl.link"):
            program = dl.Linker(pie(imports("used"), calls("f", "used")), imports=given)
        with program:
            assert "nothing imports env.laet yet" in caplog.text
            assert program.unused_imports() == [("env", "laet")]
            program.main_group.dlopen(library(imports("laet"), calls("g", "laet")))
            assert program.unused_imports() == []

    def test_a_name_much_alike_is_suggested(self) -> None:
        """The error of an undefined import names what `imports` has that is spelt almost so."""
        with dl.Linker(None, imports={"env": {"read_sensor": lambda: 1}}) as program:
            with pytest.raises(
                dl.UnresolvedSymbolsError, match=r"env\.read_sensr .*imports has env\.read_sensor"
            ):
                program.main_group.dlopen(library(imports("read_sensr"), calls("g", "read_sensr")))
