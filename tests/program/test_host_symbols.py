"""A program and its host: calls both ways, exceptions and traps, and the end of the linker itself."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest

import dl
from tests.support.modules import (
    MEMORY,
    calls,
    constructor,
    data,
    imports,
    library,
    module,
    pie,
    returns,
    wat_bytes,
)


class TestHostFunctions:
    def test_typed_values(self) -> None:
        """A host function gets and returns Python values of the signature that its import states."""
        seen = []
        kind = "(param i32 i64 f32 f64 v128) (result i64)"
        lib = library(imports("f", kind), '(export "f" (func $f))')

        def f(*arguments: Any) -> int:
            seen.append(arguments)
            return (1 << 63) + 1

        with dl.Linker(None, imports={"env": {"f": f}}) as program:
            group = program.main_group
            result = group.dlsym(group.dlopen(lib), "f")(0xFFFFFFFF, -1, 1.5, -0.0, bytes(range(16)))

            assert seen == [(-1, -1, 1.5, -0.0, bytes(range(16)))]
            assert result == -(1 << 63) + 1

    def test_one_callable_for_several_signatures(self) -> None:
        """The same callable serves imports of different signatures, each with its own conversion."""
        libs = {
            "a.so": library(
                imports("f", "(param i32) (result i32)"),
                '(func (export "a") (result i32) i32.const 7 call $f)',
            ),
            "b.so": library(
                imports("f", "(param f64) (result f64)"),
                '(func (export "b") (result f64) f64.const 0.5 call $f)',
            ),
        }
        with dl.Linker(None, libraries=libs, imports={"env": {"f": lambda x: x}}) as program:
            group = program.main_group

            assert (group.dlsym(group.dlopen("a.so"), "a")(), group.dlsym(group.dlopen("b.so"), "b")()) == (
                7,
                0.5,
            )

    def test_names_with_dots_are_told_apart(self) -> None:
        """Module name and field name are two names, wherever the dots are."""
        lib = library(
            '(import "a.b" "c" (func $one (result i32)))',
            '(import "a" "b.c" (func $two (result i32)))',
            '(import "a" "b" (func $three (result i32)))',
            '(import "a" "b" (func $four (result i32)))',
            '(import "a" "b#1" (func $five (result i32)))',
            *(calls(f"call_{n}", n) for n in ("one", "two", "three", "four", "five")),
        )
        host = {"a.b": {"c": lambda: 1}, "a": {"b.c": lambda: 2, "b": lambda: 3, "b#1": lambda: 5}}
        with dl.Linker(None, imports=host) as program:
            group = program.main_group
            handle = group.dlopen(lib)

            assert [group.dlsym(handle, f"call_{n}")() for n in ("one", "two", "three", "four", "five")] == [
                1,
                2,
                3,
                3,
                5,
            ]

    @pytest.mark.parametrize("value", [None, "text", object(), [1]])
    def test_what_is_no_import(self, value: Any) -> None:
        """An import that is neither a function nor a number is a mistake that names it."""
        with pytest.raises(dl.LinkerUsageError, match=r"imports\['env'\]\['f'\]"):
            dl.Linker(None, imports={"env": {"f": value}})

    def test_signature_that_python_cannot_hold(self) -> None:
        """A host function for an import with references is refused by name."""
        lib = library(imports("f", "(param externref)"))
        with (
            dl.Linker(None, imports={"env": {"f": print}}) as program,
            pytest.raises(dl.UnsupportedModuleError, match=r"env\.f"),
        ):
            program.main_group.dlopen(lib)

    @pytest.mark.parametrize(
        ("kind", "value"),
        [
            ("i32", "x"),
            ("i32", None),
            ("i32", 1 << 33),
            ("i32", 1.5),
            ("i64", (1, 2)),
            ("f64", "1"),
            ("v128", b"short"),
        ],
    )
    def test_results_that_do_not_fit(self, kind: str, value: Any) -> None:
        """A host function's result that the signature does not hold is an error at the caller; the program goes on."""
        lib = library(
            imports("f", f"(result {kind})"),
            f'(func (export "g") (result {kind}) call $f)',
            returns("fine", 1),
        )
        with dl.Linker(None, imports={"env": {"f": lambda: value}}) as program:
            group = program.main_group
            handle = group.dlopen(lib)
            with pytest.raises(dl.ValueConversionError):
                group.dlsym(handle, "g")()

            assert group.dlsym(handle, "fine")() == 1

    @pytest.mark.parametrize("arguments", [(), (1, 2), ([],), (None,), (1 << 32,), (1.0,)])
    def test_arguments_that_do_not_fit(self, arguments: Any) -> None:
        """A call with the wrong number or kinds of arguments does not enter the guest."""
        entered = []
        lib = library(imports("enter", ""), '(func (export "g") (param i32) call $enter)')
        with dl.Linker(None, imports={"env": {"enter": lambda: entered.append(1)}}) as program:
            group = program.main_group
            g = group.dlsym(group.dlopen(lib), "g")
            with pytest.raises(dl.ValueConversionError):
                g(*arguments)
            assert entered == []
            g(1)
            assert entered == [1]


class Cancelled(BaseException):
    """Like trio's: no Exception."""


class TestExceptions:
    @pytest.mark.parametrize(
        "kind",
        [KeyboardInterrupt, SystemExit, GeneratorExit, Cancelled, StopIteration, ValueError, dl.TrapError],
    )
    def test_pass_unchanged(self, kind: type[Exception]) -> None:
        """Whatever a host function raises reaches the caller of the guest, the same object; the program goes on."""
        error = kind("mine")

        def fail() -> None:
            raise error

        lib = library(imports("fail", ""), '(func (export "g") call $fail)', returns("fine", 1))
        with dl.Linker(None, imports={"env": {"fail": fail}}) as program:
            group = program.main_group
            handle = group.dlopen(lib)
            for _ in range(3):
                with pytest.raises(kind) as caught:
                    group.dlsym(handle, "g")()
                assert caught.value is error

            assert group.dlsym(handle, "fine")() == 1

    def test_each_level_may_catch(self) -> None:
        """In guest to host to guest calls an exception ends the levels it passes, and who catches it goes on."""
        box: list[Any] = []

        def host(depth: int) -> Any:
            if depth == 0:
                raise KeyError("bottom")
            if depth == 5:
                with pytest.raises(KeyError):
                    box[0](depth - 1)
                return 55
            return box[0](depth - 1) + 1

        lib = library(
            imports("host", "(param i32) (result i32)"),
            '(func (export "g") (param i32) (result i32) local.get 0 call $host)',
        )
        with dl.Linker(None, imports={"env": {"host": host}}) as program:
            group = program.main_group
            box.append(group.dlsym(group.dlopen(lib), "g"))

            assert box[0](9) == 59
            with pytest.raises(KeyError, match="bottom"):
                box[0](4)

    def test_traps_name_the_functions(self) -> None:
        """A trap tells its reason and the guest's stack, innermost first, through libraries."""
        libs = {
            "inner.so": library(
                '(func $divide (export "divide") (param i32) (result i32) i32.const 1 local.get 0 i32.div_u)'
            ),
            "outer.so": library(
                imports("divide", "(param i32) (result i32)"),
                '(func $outer (export "outer") (result i32) i32.const 0 call $divide)',
                needed=["inner.so"],
            ),
        }
        with dl.Linker(None, libraries=libs) as program:
            group = program.main_group
            outer = group.dlsym(group.dlopen("outer.so"), "outer")
            for _ in range(2):
                with pytest.raises(dl.TrapError, match="integer divide by zero") as caught:
                    outer()

            assert [f.split("!")[1] for f in caught.value.frames][:2] == ["divide", "outer"]
            assert [f.split("!")[0] for f in caught.value.frames][:2] == ["inner.so", "outer.so"]

    def test_deep_recursion(self) -> None:
        """Endless recursion of the guest is a trap, not the end of the process, and the program goes on."""
        lib = library(
            '(func $f (export "f") (param i32) (result i32) local.get 0 call $f i32.const 1 i32.add)',
            returns("fine", 1),
        )
        with dl.Linker(None) as program:
            group = program.main_group
            handle = group.dlopen(lib)
            with pytest.raises(dl.TrapError, match="stack"):
                group.dlsym(handle, "f")(1)

            assert group.dlsym(handle, "fine")() == 1

    def test_the_shadow_stack_after_a_trap(self) -> None:
        """A trap does not leave the shadow stack where it was."""
        lib = library(
            '(import "env" "__stack_pointer" (global $sp (mut i32)))',
            '(func (export "sp") (result i32) global.get $sp)',
            '(func (export "deep") (global.set $sp (i32.sub (global.get $sp) (i32.const 4096))) unreachable)',
        )
        with dl.Linker(None) as program:
            group = program.main_group
            handle = group.dlopen(lib)
            before = group.dlsym(handle, "sp")()
            for _ in range(3):
                with pytest.raises(dl.TrapError):
                    group.dlsym(handle, "deep")()

            assert group.dlsym(handle, "sp")() == before


class TestEnd:
    def test_use_after_close(self) -> None:
        """After close every use is an error of the linker, none a crash; closing again is nothing."""
        lib = library(MEMORY, returns("f", 1), data("d", 0), memory_size=8)
        program = dl.Linker(None, libraries={"lib.so": lib})
        group = program.main_group
        handle = group.dlopen("lib.so")
        f, d, memory = group.dlsym(handle, "f"), group.dlsym(handle, "d"), program.memory
        program.close()
        program.close()

        for use in (
            f,
            lambda: group.dlopen("lib.so"),
            lambda: group.dlsym(handle, "f"),
            lambda: program.main_group,
            lambda: program.memory,
            lambda: program.grow_memory(1),
            group.run,
            group.table,
        ):
            with pytest.raises(dl.LinkerClosedError):
                use()
        with pytest.raises(Exception, match="closed|given up"):
            memory.read(d.address, 1)
        assert "Linker" in repr(program)
        assert "f" in repr(f)

    def test_close_within_a_call(self) -> None:
        """Closing a program from one of its own host functions does not pull the ground from under it."""
        box: list[Any] = []
        lib = library(imports("close", ""), '(func (export "g") (result i32) call $close i32.const 5)')
        with dl.Linker(
            None,
            libraries={"lib.so": lib},
            imports={"env": {"close": lambda: box[0].close()}},  # noqa: PLW0108
        ) as program:
            box.append(program)
            group = program.main_group
            g = group.dlsym(group.dlopen("lib.so"), "g")
            with pytest.raises(dl.DlError):
                g()

    def test_close_within_a_constructor(self) -> None:
        """The same within a constructor that dlopen runs."""
        box: list[Any] = []
        lib = library(imports("close", ""), constructor("call $close"))
        with dl.Linker(
            None,
            libraries={"lib.so": lib},
            imports={"env": {"close": lambda: box[0].close()}},  # noqa: PLW0108
        ) as program:
            box.append(program)
            with pytest.raises(dl.DlError):
                program.main_group.dlopen("lib.so")

    def test_another_thread(self) -> None:
        """A group's functions, and its dlopen, are for its own thread; another gets an error that says what to do."""
        lib = library(returns("f", 1))
        failures = []
        with dl.Linker(None, libraries={"lib.so": lib, "b.so": lib}) as program:
            group = program.main_group
            f = group.dlsym(group.dlopen("lib.so"), "f")

            def elsewhere() -> None:
                for use in (
                    f,
                    lambda: group.dlopen("b.so"),
                    lambda: group.dlopen("lib.so"),
                    lambda: group.dlsym(2, "f"),
                ):
                    try:
                        use()
                    except dl.LinkerUsageError as error:
                        failures.append(str(error))

            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join(60)

            assert len(failures) == 4
            assert all("thread" in text for text in failures)
            assert f() == 1
            assert len(program.modules) == 1

    def test_programs_do_not_meet(self) -> None:
        """Two programs of one process share no memory, table, globals or names."""
        counter = library(
            MEMORY,
            "(global $n (mut i32) (i32.const 0))",
            data("d", 0),
            '(func (export "next") (result i32) (global.set $n (i32.add (global.get $n) (i32.const 1))) global.get $n)',
            memory_size=16,
        )
        with (
            dl.Linker(None, libraries={"c.so": counter}) as one,
            dl.Linker(None, libraries={"c.so": counter}) as two,
        ):
            first, second = (p.main_group.dlsym(p.main_group.dlopen("c.so"), "next") for p in (one, two))

            assert [first(), first(), second()] == [1, 2, 1]
            one.memory.write_u32(one.main_group.dlsym(2, "d").address, 9)
            assert two.memory.read_u32(two.main_group.dlsym(2, "d").address) == 0

    def test_a_closed_program_is_freed(self) -> None:
        """Nothing keeps a closed program: it goes with its last reference."""

        class Host:
            def __call__(self) -> int:
                return 1

        host = Host()
        gone = weakref.ref(host)
        with dl.Linker(None, imports={"env": {"f": host}}) as program:
            group = program.main_group
            assert group.dlsym(group.dlopen(library(imports("f"), calls("g", "f"))), "g")() == 1
        del program, group, host
        gc.collect()

        assert gone() is None

    def test_hundreds_of_programs(self) -> None:
        """Programs may be made and closed by the hundred."""
        main = pie(returns("f", 1), needed=["lib.so"])
        lib = library(MEMORY, memory_size=100_000)
        for _ in range(200):
            with dl.Linker(main, libraries={"lib.so": lib}, stack_size=1024) as program:
                assert program.main_group.dlsym(1, "f")() == 1

    def test_data_segments(self) -> None:
        """A library's data segments arrive at its memory base."""
        lib = library(
            MEMORY,
            '(import "env" "__memory_base" (global $base i32))',
            f"(data (global.get $base) {wat_bytes(b'some text')})",
            data("text", 0),
            memory_size=16,
        )
        with dl.Linker(None) as program:
            group = program.main_group
            at = group.dlsym(group.dlopen(lib), "text").address

            assert program.memory.read(at, 10) == b"some text\0"

    def test_a_program_without_anything(self) -> None:
        """An empty module is a program too, without memory, functions or libraries."""
        with dl.Linker(module()) as program:
            with pytest.raises(dl.LinkerUsageError, match="memory"):
                program.memory  # noqa: B018
            with pytest.raises(dl.NotDynamicError):
                program.main_group.dlopen(library())
            with pytest.raises(dl.SymbolNotFoundError):
                program.main_group.dlsym(1, "f")
