"""What nothing defines: weak symbols, errors that name all, and stubs that are bound at their first call."""

from __future__ import annotations

import pytest

import dl
from tests.support.modules import (
    CALL_POINTER,
    MEMORY,
    TABLE,
    calls,
    data,
    got,
    imports,
    library,
    linker,
    pie,
    reads,
    returns,
)


class TestWeak:
    def test_undefined_weak_symbols_are_null(self) -> None:
        """A weak function and weak data that nothing defines have address 0, and no error is raised."""
        lib = library(
            TABLE, MEMORY, imports("wf"), got("wf", "func"), got("wd", "mem"),
            reads("function", "got_func_wf"), reads("data", "got_mem_wd"), calls("call", "wf"), weak=["wf", "wd"],
        )  # fmt: skip
        with linker({"lib.so": lib}) as program:
            group = program.main_group
            handle = group.dlopen("lib.so", dl.RTLD_NOW)

            assert (group.dlsym(handle, "function")(), group.dlsym(handle, "data")()) == (0, 0)
            with pytest.raises(dl.UnresolvedCallError, match=r"env\.wf"):
                group.dlsym(handle, "call")()

    def test_defined_weak_symbols_are_found(self) -> None:
        """A weak import of something defined is an import like any other."""
        libs = {
            "def.so": library(MEMORY, returns("wf", 3), data("wd", 4), memory_size=8),
            "lib.so": library(
                TABLE, MEMORY, got("wf", "func"), got("wd", "mem"), reads("function", "got_func_wf"),
                reads("data", "got_mem_wd"), weak=["wf", "wd"], needed=["def.so"],
            ),
        }  # fmt: skip
        with linker(libs) as program:
            group = program.main_group
            handle = group.dlopen("lib.so")

            assert group.dlsym(handle, "function")() == group.dlsym(handle, "wf").address
            assert group.dlsym(handle, "data")() == group.dlsym(handle, "wd").address

    def test_a_weak_function_defined_later(self) -> None:
        """A direct call of a weak function reaches what a later library defines; its address, taken before, stays null."""
        lib = library(
            TABLE,
            imports("wf"),
            got("wf", "func"),
            reads("at", "got_func_wf"),
            calls("call", "wf"),
            weak=["wf"],
        )
        with linker({"lib.so": lib, "later.so": library(returns("wf", 3))}) as program:
            group = program.main_group
            handle = group.dlopen("lib.so")
            group.dlopen("later.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)

            assert group.dlsym(handle, "call")() == 3
            assert group.dlsym(handle, "at")() == 0

    def test_an_own_weak_definition_is_interposable(self) -> None:
        """A module's import of its own weak function takes the first definition of all, as C++ inline functions need."""
        weak = [imports("inline_"), calls("use", "inline_")]
        libs = {
            "a.so": library(*weak, returns("inline_", 1)),
            "b.so": library(*weak, returns("inline_", 2), needed=["a.so"]),
        }
        with linker(libs) as program:
            group = program.main_group
            a = group.dlopen("a.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
            b = group.dlopen("b.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)

            assert (group.dlsym(a, "use")(), group.dlsym(b, "use")()) == (1, 1)


class TestMissing:
    def test_all_missing_symbols_are_named_at_once(self) -> None:
        """RTLD_NOW reports every missing function and variable of the whole tree in one error, with importer and type."""
        libs = {
            "top.so": library(imports("f1", "(param i64)"), got("d1", "mem"), needed=["dep.so"]),
            "dep.so": library(imports("f2"), got("f3", "func"), imports("x", namespace="other")),
        }
        with linker(libs) as program:
            with pytest.raises(dl.UnresolvedSymbolsError) as caught:
                program.main_group.dlopen("top.so", dl.RTLD_NOW)

            error = caught.value
            missing = {(m.importer, m.namespace, m.symbol) for m in error.missing}
            assert missing == {
                ("top.so", "env", "f1"),
                ("top.so", "GOT.mem", "d1"),
                ("dep.so", "env", "f2"),
                ("dep.so", "GOT.func", "f3"),
                ("dep.so", "other", "x"),
            }
            assert error.module == "top.so"
            assert set(error.searched) == {"top.so", "dep.so"}
            text = str(error)
            assert all(name in text for name in ("f1", "(i64)", "d1", "f2", "f3", "other.x", "dep.so"))
            assert "\n" not in text

    def test_data_must_be_there_even_when_lazy(self) -> None:
        """RTLD_LAZY leaves functions to their first call, through their addresses too, but data is needed at once."""
        lib = library(imports("f"), got("f", "func"), got("d", "mem"))
        with linker({"lib.so": lib}) as program:
            with pytest.raises(dl.UnresolvedSymbolsError) as caught:
                program.main_group.dlopen("lib.so", dl.RTLD_LAZY)

            assert [(m.namespace, m.symbol) for m in caught.value.missing] == [("GOT.mem", "d")]

    def test_missing_globals_and_tags(self) -> None:
        """A variable or a tag that nothing defines is reported like a function."""
        lib = library('(import "env" "g" (global i32))', '(import "env" "t" (tag (param i64)))')
        with linker({"lib.so": lib}) as program:
            with pytest.raises(dl.UnresolvedSymbolsError) as caught:
                program.main_group.dlopen("lib.so")

            assert [m.symbol for m in caught.value.missing] == ["g", "t"]

    def test_a_program_runs_without_what_it_never_calls(self) -> None:
        """The main module's imports that nobody provides stop it only when it calls one; the error names it."""
        main = pie(
            imports("nobody", namespace="elsewhere"), imports("neither"),
            imports("fd_nothing", namespace="wasi_snapshot_preview1"),
            returns("fine", 1), calls("a", "nobody"), calls("b", "neither"), calls("c", "fd_nothing"),
        )  # fmt: skip
        with dl.Linker(main, name="prog") as program:
            group = program.main_group

            assert group.dlsym(program.main, "fine")() == 1
            for name, wanted in (
                ("a", "elsewhere.nobody"),
                ("b", "env.neither"),
                ("c", "wasi_snapshot_preview1.fd_nothing"),
            ):
                with pytest.raises(dl.UnresolvedCallError) as caught:
                    group.dlsym(program.main, name)()
                assert f"{caught.value.namespace}.{caught.value.symbol}" == wanted
                assert caught.value.importer == "prog"
            assert group.dlsym(program.main, "fine")() == 1


class TestStubs:
    USER = library(
        imports("f", "(param i32) (result i32)"),
        '(func (export "g") (param i32) (result i32) local.get 0 call $f)',
    )

    def test_bound_at_the_first_call(self) -> None:
        """A LAZY function is looked up when it is called, among what has been loaded by then, and then stays."""
        libs = {
            "user.so": self.USER,
            "late.so": library(
                '(func (export "f") (param i32) (result i32) local.get 0 i32.const 1 i32.add)'
            ),
            "later.so": library('(func (export "f") (param i32) (result i32) i32.const 0)'),
        }
        with linker(libs) as program:
            group = program.main_group
            g = group.dlsym(group.dlopen("user.so", dl.RTLD_LAZY), "g")
            with pytest.raises(
                dl.UnresolvedCallError, match=r"user\.so: call of env\.f: nothing provides it"
            ):
                g(1)
            group.dlopen("late.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)

            assert g(1) == 2
            group.dlopen("later.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
            assert g(5) == 6

    def test_local_libraries_do_not_serve_stubs_of_others(self) -> None:
        """A stub sees what its module's scope holds: a LOCAL library of another tree is not in it."""
        late = library('(func (export "f") (param i32) (result i32) i32.const 1)')
        with linker({"user.so": self.USER, "late.so": late}) as program:
            group = program.main_group
            g = group.dlsym(group.dlopen("user.so", dl.RTLD_LAZY), "g")
            group.dlopen("late.so", dl.RTLD_NOW)

            with pytest.raises(dl.UnresolvedCallError):
                g(1)

    def test_a_definition_of_another_type(self) -> None:
        """A stub whose function turns out to have another type fails with both named, and can still be met later."""
        wrong = library('(func (export "f") (param i64))')
        with linker({"user.so": self.USER, "wrong.so": wrong}) as program:
            group = program.main_group
            g = group.dlsym(group.dlopen("user.so", dl.RTLD_LAZY), "g")
            group.dlopen("wrong.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)

            for _ in range(2):
                with pytest.raises(dl.UnresolvedCallError, match=r"wrong\.so") as caught:
                    g(1)
                assert "(i32) -> i32" in str(caught.value)

    def test_a_pointer_to_a_definition_of_another_type(self) -> None:
        """So does a pointer that was taken before there was any definition."""
        taker = library(TABLE, imports("f"), got("f", "func"), reads("at", "got_func_f"), CALL_POINTER)
        wrong = library('(func (export "f") (param i32) (result i32) (local.get 0))')
        with linker({"taker.so": taker, "wrong.so": wrong}) as program:
            group = program.main_group
            user = group.dlopen("taker.so", dl.RTLD_LAZY)
            pointer = group.dlsym(user, "at")()
            group.dlopen("wrong.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)

            with pytest.raises(dl.UnresolvedCallError, match=r"taker\.so.*wrong\.so") as caught:
                group.dlsym(user, "call_pointer")(pointer)
            assert "(i32) -> i32" in str(caught.value)

    def test_of_every_type(self) -> None:
        """A stub passes values of every type through, several results too."""
        kind = "(param i32 i64 f32 f64) (result f64 f32 i64 i32)"
        user = library(
            imports("f", kind),
            f'(func (export "g") {kind} local.get 0 local.get 1 local.get 2 local.get 3 call $f)',
        )
        late = library(f'(func (export "f") {kind} local.get 3 local.get 2 local.get 1 local.get 0)')
        with linker({"user.so": user, "late.so": late}) as program:
            group = program.main_group
            g = group.dlsym(group.dlopen("user.so", dl.RTLD_LAZY), "g")
            group.dlopen("late.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)

            assert g(-1, -(1 << 62), 0.5, 1e300) == (1e300, 0.5, -(1 << 62), -1)
