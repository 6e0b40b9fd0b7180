"""A load that fails, in whichever way and at whichever step, leaves everything as it was."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import dl
from tests.support.modules import (
    MEMORY,
    MEMORY_BASE,
    TABLE,
    TABLE_BASE,
    calls,
    constructor,
    data,
    got,
    imports,
    library,
    pie,
    reads,
    returns,
)

GOOD = library(MEMORY, MEMORY_BASE, returns("f", 1), data("d", 0), memory_size=8)


def snapshot(
    program: dl.Linker,
) -> tuple[dict[str, Any], list[Any]] | tuple[dict[str, Any], list[tuple[str, dl.ModuleHandle]]]:
    """Everything a user can see of a program, except what only ever grows: handles, table, memory, protocol."""
    statistics = dataclasses.asdict(program.statistics())
    for grows in ("next_handle", "table_length", "memory_bytes", "protocol"):
        del statistics[grows]
    return statistics, [(m.name, m.handle) for m in program.modules]


# Every way in which a load can fail, by what goes wrong in the second of three libraries.
BROKEN = {
    "malformed": GOOD[:-4],
    "no library": b"\0asm\x01\0\0\0",
    "needs what is missing": library(needed=["gone.so"]),
    "invalid code": library('(func (export "f") (result i32) i32.const 1)')[:-1] + b"\x01",
    "unresolved function": library(MEMORY, imports("nothing"), memory_size=100),
    "unresolved data": library(MEMORY, TABLE, got("nothing", "mem"), memory_size=100, table_size=7),
    "import of another type": library(imports("dep", "(param i64)"), returns("exported", 1)),
    "import of another sharing": library('(import "env" "memory" (memory 0 1 shared))'),
    "too much memory": library(MEMORY, memory_size=(1 << 32) - 1),
    "too much table": library(TABLE, table_size=(1 << 32) - 1),
    "memory minimum": library('(import "env" "memory" (memory 2000))'),
    "table minimum": library('(import "env" "__indirect_function_table" (table 4000000000 funcref))'),
    "element segment too long": library(
        TABLE, TABLE_BASE, "(func $f)", "(elem (global.get $table_base) $f $f)", table_size=1
    ),
    "data segment outside of memory": library(MEMORY, '(data (i32.const -8) "12345678abc")'),
    "start function traps": library(
        MEMORY, TABLE, "(func $s unreachable)", "(start $s)", returns("x", 1), memory_size=64
    ),
    "relocations trap": library(
        MEMORY, constructor("unreachable", name="__wasm_apply_data_relocs"), memory_size=64
    ),
    "constructor traps": library(
        MEMORY, TABLE, constructor("unreachable"), returns("x", 1), memory_size=64, table_size=3
    ),
    "constructor of another type": library('(func (export "__wasm_call_ctors") (param i32))'),
    "constructor that is none": library('(global (export "__wasm_call_ctors") i32 (i32.const 0))'),
    "constructor calls a missing import": library(
        imports("nothing", "", "wasi_snapshot_preview1"), constructor("call $nothing")
    ),
    "host function raises": library(imports("fail", ""), constructor("call $fail")),
    "host function raises at start": library(imports("fail", ""), "(func $s call $fail)", "(start $s)"),
    "exception thrown": library("(tag $t (param i32))", constructor("i32.const 1 throw $t")),
}


LENIENT = {"unresolved function", "import of another type", "memory minimum"}
"""What is no failure where functions may come later and memory is not limited."""


class TestFailure:
    def program(self, broken: bytes) -> dl.Linker:
        def fail() -> None:
            raise ZeroDivisionError("of the host")

        libs = {
            "top.so": library(
                MEMORY,
                TABLE,
                imports("dep"),
                calls("top", "dep"),
                memory_size=1000,
                table_size=4,
                needed=["first.so", "second.so", "third.so"],
            ),
            "first.so": library(MEMORY, returns("dep", 1), memory_size=200),
            "second.so": broken,
            "third.so": library(MEMORY, TABLE, returns("third", 1), memory_size=300, table_size=2),
            "good.so": GOOD,
        }
        return dl.Linker(
            None, libraries=libs, imports={"env": {"fail": fail}}, memory=dl.MemoryType(maximum=1000)
        )

    @pytest.mark.parametrize("what", BROKEN)
    def test_nothing_is_left_behind(self, what: str) -> None:
        """However a load fails, the program is as before; again and again; and goes on to load what is good."""
        with self.program(BROKEN[what]) as program:
            group = program.main_group
            early = group.dlsym(group.dlopen(GOOD), "f")
            before = snapshot(program)
            for _ in range(3):
                with pytest.raises((dl.DlError, ZeroDivisionError)) as caught:
                    group.dlopen("top.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
                assert "\n" not in str(caught.value)
                assert snapshot(program) == before
            none: Any = None
            settled = dataclasses.replace(program.statistics(), next_handle=0, protocol=none)
            with pytest.raises((dl.DlError, ZeroDivisionError)):
                group.dlopen("top.so")
            assert dataclasses.replace(program.statistics(), next_handle=0, protocol=none) == settled, (
                "no growth"
            )

            assert early() == 1
            with pytest.raises(dl.SymbolNotFoundError):
                group.dlsym(dl.RTLD_DEFAULT, "dep")
            with pytest.raises(dl.LibraryNotFoundError):
                group.dlopen("top.so", dl.RTLD_NOW | dl.RTLD_NOLOAD)
            good = group.dlopen("good.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
            assert group.dlsym(good, "f")() == 1
            at = group.dlsym(good, "d").address
            assert program.memory.read(at, 8) == bytes(8)

    @pytest.mark.parametrize("what", sorted(set(BROKEN) - LENIENT))
    def test_as_the_main_module_needs_it(self, what: str) -> None:
        """A program that needs a broken library does not start, and the error is one of ours or the host's own."""
        with pytest.raises((dl.DlError, ZeroDivisionError)):
            dl.Linker(
                pie(needed=["lib.so"]),
                libraries={"lib.so": BROKEN[what]},
                imports={"env": {"fail": lambda: 1 // 0}},
            )

    def test_errors_name_the_module(self) -> None:
        """The error names the library that broke, not the one that was opened."""
        for what in (
            "start function traps",
            "constructor traps",
            "relocations trap",
            "too much memory",
            "invalid code",
            "unresolved data",
        ):
            with self.program(BROKEN[what]) as program:
                with pytest.raises(dl.DlError, match=r"second\.so"):
                    program.main_group.dlopen("top.so")

    def test_a_constructor_of_another_type(self) -> None:
        """A constructor with parameters, or one that is no function, is told as what it is."""
        for what, told in (
            ("constructor of another type", r"\(i32\) -> \(\)"),
            ("constructor that is none", "global i32"),
        ):
            with self.program(BROKEN[what]) as program, pytest.raises(dl.InitializationError, match=told):
                program.main_group.dlopen("top.so")

    def test_traps_tell_what_ran(self) -> None:
        """An initialization error tells which function failed, and carries the trap."""
        with self.program(BROKEN["constructor traps"]) as program:
            with pytest.raises(dl.InitializationError) as caught:
                program.main_group.dlopen("top.so")

            assert caught.value.module == "second.so"
            assert caught.value.function == "__wasm_call_ctors"
            assert isinstance(caught.value.__cause__, dl.TrapError)
            assert "unreachable" in str(caught.value)

    @pytest.mark.parametrize(
        "kind", [KeyboardInterrupt, SystemExit, GeneratorExit, ZeroDivisionError, MemoryError]
    )
    def test_exceptions_of_the_host_pass_unchanged(self, kind: type[Exception]) -> None:
        """Whatever a host function raises within a constructor reaches the caller of dlopen as the same object."""
        error = kind("mine")

        def fail() -> None:
            raise error

        with dl.Linker(
            None, libraries={"lib.so": BROKEN["host function raises"]}, imports={"env": {"fail": fail}}
        ) as program:
            before = snapshot(program)
            with pytest.raises(kind) as caught:
                program.main_group.dlopen("lib.so")

            assert caught.value is error
            assert snapshot(program) == before

    def test_opened_again_after_it_was_mended(self, tmp_path: Path) -> None:
        """A library whose constructor failed can be opened again when what it lacked is there."""
        ready: list[Any] = []

        def check() -> None:
            if not ready:
                raise RuntimeError("not yet")

        lib = library(imports("check", ""), constructor("call $check"), returns("f", 4))
        with dl.Linker(None, libraries={"lib.so": lib}, imports={"env": {"check": check}}) as program:
            group = program.main_group
            with pytest.raises(RuntimeError, match="not yet"):
                group.dlopen("lib.so")
            ready.append(True)

            assert group.dlsym(group.dlopen("lib.so"), "f")() == 4

    @pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
    def test_failing_at_every_step(self, error: type[Exception]) -> None:
        """A load that fails as any of its steps begins leaves nothing behind, and the next one succeeds."""
        libs = {
            "top.so": library(
                MEMORY, TABLE, imports("f"), calls("g", "f"), memory_size=100, needed=["lib.so"]
            ),
            "lib.so": library(MEMORY, constructor("nop"), returns("f", 1), memory_size=100, table_size=3),
        }
        steps: list[Any] = []
        with dl.Linker(None, libraries=libs) as program:
            program.program.checkpoint = lambda step, group: steps.append(step) if group is None else None
            program.main_group.dlopen("top.so")
        assert len(set(steps)) >= 7
        for failing in range(len(steps)):
            with dl.Linker(None, libraries=libs) as program:
                before = snapshot(program)
                passed: list[Any] = []

                def reached(
                    step: str, group: str | None, passed: list[str] = passed, failing: int = failing
                ) -> None:
                    if group is not None:
                        return
                    passed.append(step)
                    if len(passed) == failing + 1:
                        raise error(step)

                program.program.checkpoint = reached
                with pytest.raises(error) as caught:
                    program.main_group.dlopen("top.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)

                assert str(caught.value) == steps[failing]
                assert snapshot(program) == before
                assert program.main_group.dlsym(program.main_group.dlopen("top.so"), "g")() == 1

    def test_space_is_reused(self) -> None:
        """A thousand failed loads take no more memory and table than one."""
        bad = library(
            MEMORY, TABLE, constructor("unreachable"), returns("x", 1), memory_size=10_000, table_size=50
        )
        with dl.Linker(None, libraries={"bad.so": bad}) as program:
            group = program.main_group
            sizes = set()
            for _ in range(300):
                with pytest.raises(dl.InitializationError):
                    group.dlopen("bad.so")
                sizes.add((program.memory.size, program.statistics().table_length))

            assert len(sizes) == 1

    def test_a_failing_constructor_keeps_what_it_opened(self) -> None:
        """A library that a failing constructor opened stays; what it takes from the failed one is not given to others."""
        box: list[Any] = []

        def opens() -> None:
            box.append(box[0].main_group.dlopen("inner.so", dl.RTLD_NOW | dl.RTLD_GLOBAL))
            raise ZeroDivisionError

        libs = {
            "outer.so": library(
                MEMORY,
                MEMORY_BASE,
                TABLE,
                imports("opens", ""),
                constructor("call $opens"),
                returns("f", 7),
                data("d", 0),
                memory_size=64,
            ),
            "inner.so": library(
                MEMORY,
                imports("f"),
                calls("g", "f"),
                got("d", "mem"),
                got("f", "func"),
                reads("at", "got_mem_d"),
                needed=["outer.so"],
                memory_size=64,
            ),
            "other.so": library(MEMORY, data("e", 0), returns("h", 9), memory_size=64),
        }
        with dl.Linker(None, libraries=libs, imports={"env": {"opens": opens}}) as program:
            box.append(program)
            group = program.main_group
            with pytest.raises(ZeroDivisionError):
                group.dlopen("outer.so")
            other = group.dlopen("other.so")
            inner = box[1]
            names = [m.name for m in program.modules]

            assert names == ["outer.so", "inner.so", "other.so"], "what a library is bound to stays"
            assert group.dlsym(inner, "at")() != group.dlsym(other, "e").address
            assert group.dlsym(inner, "g")() == 7
            with pytest.raises(dl.InitializationError):
                group.dlopen("inner.so")

    def test_a_stub_bound_to_a_library_that_failed(self) -> None:
        """A stub that a constructor's library served never reaches another function after that library is gone."""
        box: list[Any] = []

        def during() -> None:
            box[0].append(box[1]())
            raise ZeroDivisionError

        libs = {
            "user.so": library(imports("f"), calls("g", "f")),
            "lib.so": library(imports("during", ""), constructor("call $during"), returns("f", 7)),
            "other.so": library(returns("h", 9)),
        }
        with dl.Linker(None, libraries=libs, imports={"env": {"during": during}}) as program:
            group = program.main_group
            g = group.dlsym(group.dlopen("user.so", dl.RTLD_LAZY), "g")
            box[:] = [[], g]
            with pytest.raises(ZeroDivisionError):
                group.dlopen("lib.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
            assert box[0] == [7]
            for n in range(4):
                group.dlopen(libs["other.so"], name=f"{n}.so")

            assert g() == 7, "what a stub is bound to stays"
            with pytest.raises(dl.SymbolNotFoundError):
                group.dlsym(dl.RTLD_DEFAULT, "f")

    def test_a_large_memory_minimum_of_a_load_that_fails(self) -> None:
        """Memory does not grow for a library that cannot be linked."""
        greedy = library('(import "env" "memory" (memory 65536))', imports("nothing"))
        with dl.Linker(None, libraries={"greedy.so": greedy, "good.so": GOOD}) as program:
            size = program.memory.size
            with pytest.raises(dl.UnresolvedSymbolsError):
                program.main_group.dlopen("greedy.so")

            assert program.memory.size == size
            assert program.main_group.dlopen("good.so") == 2

    def test_a_constructor_that_exits(self) -> None:
        """A constructor that ends the program does: dlopen raises its exit code, and so does all that follows."""
        exit_ = '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))'
        lib = library(exit_, constructor("i32.const 3 call $exit"))
        with dl.Linker(pie(returns("f", 1)), libraries={"lib.so": lib}) as program:
            group = program.main_group
            f = group.dlsym(1, "f")
            for use in (lambda: group.dlopen("lib.so"), f, lambda: group.dlopen("lib.so")):
                with pytest.raises(dl.ProgramExited) as caught:
                    use()
                assert caught.value.code == 3
