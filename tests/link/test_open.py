"""The life of a load: what runs in which order, and what may be opened meanwhile."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import dl
from tests.support.modules import (
    MEMORY,
    MEMORY_BASE,
    constructor,
    data,
    got,
    imports,
    library,
    pie,
    returns,
)

NOTE = imports("note", "(param i32)")


GOOD = library(MEMORY, MEMORY_BASE, returns("f", 1), data("d", 0), memory_size=8)


def note(number: int, name: str = "__wasm_call_ctors") -> str:
    return constructor(f"i32.const {number} call $note", name=name)


def snapshot(program: dl.Linker) -> tuple[dict[str, Any], list[Any]]:
    """Everything a user can see of a program, except what only ever grows: handles, table, memory, protocol."""
    statistics = dataclasses.asdict(program.statistics())
    for grows in ("next_handle", "table_length", "memory_bytes", "protocol"):
        del statistics[grows]
    return statistics, [(m.name, m.handle) for m in program.modules]


class TestOrder:
    def test_relocations_of_all_before_constructors(self) -> None:
        """Data relocations of all new modules run before the first constructor; constructors run dependencies first."""
        log: list[Any] = []
        both = lambda n: (NOTE, note(n, "__wasm_apply_data_relocs"), note(10 + n))  # noqa: E731
        libs = {
            "top.so": library(*both(1), needed=["left.so", "right.so"]),
            "left.so": library(*both(2), needed=["bottom.so"]),
            "right.so": library(*both(3)),
            "bottom.so": library(*both(4)),
        }
        with dl.Linker(None, libraries=libs, imports={"env": {"note": log.append}}) as program:
            group = program.main_group
            group.dlopen("top.so")
            assert sorted(log[:4]) == [1, 2, 3, 4]
            assert log[4:] == [14, 12, 13, 11]

            group.dlopen("top.so")
            group.dlopen("left.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
            assert len(log) == 8, "each runs once"

    @pytest.mark.parametrize("start", ["_initialize", "__wasm_call_ctors"])
    def test_libraries_before_the_main_module(self, start: str) -> None:
        """What the main module needs is constructed before the main module is initialized."""
        log: list[Any] = []
        main = pie(NOTE, note(1, "__wasm_apply_data_relocs"), note(11, start), needed=["lib.so"])
        lib = library(NOTE, note(2, "__wasm_apply_data_relocs"), note(12))
        with dl.Linker(main, libraries={"lib.so": lib}, imports={"env": {"note": log.append}}):
            assert sorted(log[:2]) == [1, 2]
            assert log[2:] == [12, 11]

    def test_a_command_constructs_itself(self) -> None:
        """A program's own constructors are left to its _start."""
        log: list[Any] = []
        main = pie(NOTE, note(1), note(2, "_start"), needed=["lib.so"])
        libs = {"lib.so": library(NOTE, note(3))}
        with dl.Linker(main, libraries=libs, imports={"env": {"note": log.append}}) as program:
            assert log == [3]
            program.main_group.run()
            assert log == [3, 2]

    def test_relocations_see_the_whole_tree(self) -> None:
        """Relocations find addresses of modules that come later, both ways round a cycle."""
        relocate = "(i32.store (global.get $memory_base) (global.get $got_mem_{}))"
        fields = [MEMORY, MEMORY_BASE]
        libs = {
            "a.so": library(
                *fields,
                got("b", "mem"),
                data("a", 4),
                constructor(relocate.format("b"), name="__wasm_apply_data_relocs"),
                memory_size=8,
                memory_align=2,
                needed=["b.so"],
            ),
            "b.so": library(
                *fields,
                got("a", "mem"),
                data("b", 4),
                constructor(relocate.format("a"), name="__wasm_apply_data_relocs"),
                memory_size=8,
                memory_align=2,
                needed=["a.so"],
            ),
        }
        with dl.Linker(None, libraries=libs) as program:
            group = program.main_group
            handle = group.dlopen("a.so")
            a, b = group.dlsym(handle, "a").address, group.dlsym(handle, "b").address

            assert program.memory.read_u32(a - 4) == b
            assert program.memory.read_u32(b - 4) == a

    @pytest.mark.parametrize(
        ("exported", "expected"),
        [
            (["__wasm_call_ctors"], [0]),
            (["_initialize"], [0]),
            (["__post_instantiate"], [0]),
            (["_initialize", "__wasm_call_ctors"], [1]),
        ],
    )
    def test_names_of_constructors(self, exported: list[str], expected: list[int]) -> None:
        """A library's constructors run once under whichever name they are exported; _initialize would run them again."""
        log: list[Any] = []
        lib = library(NOTE, *(note(n, name) for n, name in enumerate(exported)))
        with dl.Linker(None, libraries={"lib.so": lib}, imports={"env": {"note": log.append}}) as program:
            program.main_group.dlopen("lib.so")

            assert log == expected

    def test_start_functions_run_before_relocations(self) -> None:
        """A module's start function, which copies its data, runs as it is instantiated, dependencies first."""
        log: list[Any] = []
        libs = {
            "a.so": library(
                NOTE, "(func $s i32.const 1 call $note)", "(start $s)", note(11), needed=["b.so"]
            ),
            "b.so": library(NOTE, "(func $s i32.const 2 call $note)", "(start $s)", note(12)),
        }
        with dl.Linker(None, libraries=libs, imports={"env": {"note": log.append}}) as program:
            program.main_group.dlopen("a.so")

            assert log == [2, 1, 12, 11]

    def test_memory_of_libraries_is_zero(self) -> None:
        """A library's data begins as zeros, also where a failed load has written before."""
        dirty = library(
            MEMORY,
            MEMORY_BASE,
            constructor(
                "(memory.fill (global.get $memory_base) (i32.const 255) (i32.const 4096)) unreachable"
            ),
            memory_size=4096,
        )
        clean = library(MEMORY, MEMORY_BASE, data("d", 0), memory_size=4096)
        with dl.Linker(None, libraries={"dirty.so": dirty, "clean.so": clean}) as program:
            group = program.main_group
            with pytest.raises(dl.InitializationError):
                group.dlopen("dirty.so")
            at = group.dlsym(group.dlopen("clean.so"), "d").address

            assert program.memory.read(at, 4096) == bytes(4096)


class TestOpeningWithinConstructors:
    def test_a_constructor_opens_a_library(self) -> None:
        """A constructor may open libraries, those already open and itself included, and use them at once."""
        seen = []

        def opened(program: dl.Linker) -> None:
            group = program.main_group
            inner = group.dlopen("inner.so")
            seen.append((inner, group.dlsym(inner, "f")(), group.dlopen("outer.so"), group.dlopen("dep.so")))

        libs = {
            "outer.so": library(imports("open", ""), constructor("call $open"), needed=["dep.so"]),
            "dep.so": library(returns("dep", 1)),
            "inner.so": GOOD,
        }
        box: list[Any] = []
        with dl.Linker(None, libraries=libs, imports={"env": {"open": lambda: opened(box[0])}}) as program:
            box.append(program)
            outer = program.main_group.dlopen("outer.so")

            assert outer == 3
            assert seen == [(4, 1, 3, 2)]

    def test_a_constructor_closes_a_circle_of_opens(self) -> None:
        """Constructors that open each other's libraries get them as they are."""
        box: list[Any] = []
        log: list[Any] = []

        def enter(number: int) -> None:
            log.append(number)
            box[0].main_group.dlopen(f"{1 - number}.so")
            log.append(10 + number)

        libs = {
            f"{n}.so": library(imports("enter", "(param i32)"), constructor(f"i32.const {n} call $enter"))
            for n in (0, 1)
        }
        with dl.Linker(None, libraries=libs, imports={"env": {"enter": enter}}) as program:
            box.append(program)
            program.main_group.dlopen("0.so")

            assert log == [0, 1, 11, 10]

    def test_a_start_function_cannot_open(self) -> None:
        """While modules are instantiated nothing can be opened; the attempt fails, and so does the load, cleanly."""
        box: list[Any] = []
        lib = library(imports("open", ""), "(func $s call $open)", "(start $s)")
        with dl.Linker(
            None,
            libraries={"lib.so": lib, "good.so": GOOD},
            imports={"env": {"open": lambda: box[0].main_group.dlopen("good.so")}},
        ) as program:
            box.append(program)
            before = snapshot(program)
            with pytest.raises(dl.DlError):
                program.main_group.dlopen("lib.so")

            assert snapshot(program) == before
            assert program.main_group.dlsym(program.main_group.dlopen("good.so"), "f")() == 1


class TestGrowth:
    @pytest.mark.parametrize("shared", [False, True])
    def test_a_guest_that_grows_its_memory_too(self, shared: bool) -> None:
        """Pages that the guest adds and data of libraries never overlap, in whatever order they come."""
        memory = '(import "env" "memory" (memory 0 65536 shared))' if shared else MEMORY
        main = pie('(func (export "grow") (param i32) (result i32) local.get 0 memory.grow)', shared=shared)
        lib = library(memory, data("d", 0), memory_size=70_000)
        with dl.Linker(main) as program:
            group = program.main_group
            parts = []
            for n in range(1, 9):
                at = group.dlsym(group.dlopen(lib), "d").address
                parts.append((at, 70_000, n))
                parts.append((group.dlsym(1, "grow")(1) * 65536, 65536, 100 + n))
                for address, size, value in parts[-2:]:
                    assert program.memory.read(address, size) == bytes(size)
                    program.memory.fill(address, value, size)

            assert all(
                program.memory.read(address, size) == bytes([value]) * size for address, size, value in parts
            )


class TestMany:
    def test_thousands_of_modules(self) -> None:
        """A program takes thousands of modules: more instances than an engine's default limit of 10,000."""
        lib = library(MEMORY, MEMORY_BASE, data("d", 0), memory_size=4)
        libs = {f"{n}.so": lib for n in range(5100)}
        top = library(needed=list(libs))
        with dl.Linker(None, libraries=libs) as program:
            group = program.main_group
            handle = group.dlopen(top)

            assert handle == 5102
            addresses = {group.dlsym(n, "d").address for n in range(2, 5102)}
            assert len(addresses) == 5100
