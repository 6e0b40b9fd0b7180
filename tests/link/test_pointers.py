"""Function pointers: one function has one address, for everybody, also when it is passed on."""

from __future__ import annotations

import pytest

import dl
from tests.support.modules import (
    CALL_POINTER,
    MEMORY,
    TABLE,
    TABLE_BASE,
    calls,
    data,
    got,
    imports,
    library,
    linker,
    pie,
    reads,
    returns,
    static,
)


class TestFunctionPointers:
    ONE = library(
        TABLE,
        TABLE_BASE,
        '(func $f (export "f") (result i32) i32.const 1)',
        "(elem (global.get $table_base) $f)",
        reads("base", "table_base"),
        table_size=1,
    )
    TWO = library(TABLE, got("f", "func"), reads("at", "got_func_f"), CALL_POINTER, needed=["one.so"])

    def test_one_function_has_one_address(self) -> None:
        """Own element segment, other modules' GOT entries and dlsym agree on a function's address."""
        with linker({"one.so": self.ONE, "two.so": self.TWO, "three.so": self.TWO}) as program:
            group = program.main_group
            two, three = group.dlopen("two.so"), group.dlopen("three.so")
            one = group.dlopen("one.so")
            address = group.dlsym(one, "f").address

            assert address == group.dlsym(one, "base")()
            assert address == group.dlsym(two, "at")() == group.dlsym(three, "at")()
            assert group.dlsym(three, "call_pointer")(address) == 1

    def test_a_function_in_no_segment_gets_an_index_at_once(self) -> None:
        """An exported function that its module never takes the address of is callable by pointer all the same."""
        caller = library(TABLE, CALL_POINTER)
        with linker({"lib.so": library(returns("f", 3)), "caller.so": caller}) as program:
            group = program.main_group
            lib, other = group.dlopen("lib.so"), group.dlopen("caller.so")

            assert group.dlsym(other, "call_pointer")(group.dlsym(lib, "f").address) == 3

    def test_thousands_of_functions(self) -> None:
        """Neither exports nor table elements of a library are limited to some thousand."""
        functions = [f'(func $f{n} (export "f{n}") (result i32) i32.const {n})' for n in range(5000)]
        placed = " ".join(f"$f{n}" for n in range(0, 5000, 2))
        lib = library(
            TABLE,
            TABLE_BASE,
            *functions,
            f"(elem (global.get $table_base) {placed})",
            CALL_POINTER,
            table_size=2500,
        )
        with linker({"lib.so": lib}) as program:
            group = program.main_group
            handle = group.dlopen("lib.so")
            addresses = [group.dlsym(handle, f"f{n}").address for n in range(5000)]

            assert len(set(addresses)) == 5000
            call = group.dlsym(handle, "call_pointer")
            assert [call(addresses[n]) for n in (0, 1, 2500, 4999)] == [0, 1, 2500, 4999]

    def test_got_entries_of_every_type(self) -> None:
        """GOT entries may be immutable, and 64 bits wide."""
        lib = library(
            MEMORY,
            '(import "GOT.mem" "d" (global $d i32))',
            '(import "GOT.func" "f" (global $f i64))',
            data("d", 4),
            returns("f", 2),
            reads("d_at", "d"),
            '(func (export "f_at") (result i64) global.get $f)',
            memory_size=8,
        )
        with linker({"lib.so": lib}) as program:
            group = program.main_group
            handle = group.dlopen("lib.so")

            assert group.dlsym(handle, "d_at")() == group.dlsym(handle, "d").address
            assert group.dlsym(handle, "f_at")() == group.dlsym(handle, "f").address

    def test_aliases_share_an_address(self) -> None:
        """Two names of one function are one pointer."""
        lib = library('(func $f (export "a") (export "b") (result i32) i32.const 1)')
        with linker({"lib.so": lib}) as program:
            group = program.main_group
            handle = group.dlopen("lib.so")

            assert group.dlsym(handle, "a").address == group.dlsym(handle, "b").address
            assert group.dlsym(handle, "b")() == 1

    def test_a_static_main_module_shares_its_pointers(self) -> None:
        """A function in a static main module's element segment keeps the index that its linker gave it."""
        main = static('(func $f (export "f") (result i32) i32.const 8)', "(elem (i32.const 2) $f)")
        lib = library(TABLE, got("f", "func"), reads("at", "got_func_f"), CALL_POINTER)
        with dl.Linker(main, libraries={"lib.so": lib}) as program:
            group = program.main_group
            handle = group.dlopen("lib.so")

            assert group.dlsym(handle, "at")() == 2 == group.dlsym(program.main, "f").address
            assert group.dlsym(handle, "call_pointer")(2) == 8

    def test_pointers_of_a_host_function(self) -> None:
        """A host function has one address for all modules, and its callers go through it to the host."""
        lib = library(
            TABLE, imports("f"), got("f", "func"), reads("at", "got_func_f"), calls("g", "f"), CALL_POINTER
        )
        with linker({"a.so": lib, "b.so": lib}, imports={"env": {"f": lambda: 12}}) as program:
            group = program.main_group
            a, b = group.dlopen("a.so"), group.dlopen("b.so")
            address = group.dlsym(a, "at")()

            assert address == group.dlsym(b, "at")() != 0
            assert group.dlsym(b, "call_pointer")(address) == 12

    def test_pointer_of_a_host_function_that_is_never_called(self) -> None:
        """Where no import states a host function's signature, dl.HostFunction does; without it the error says so."""
        lib = library(TABLE, got("f", "func"), reads("at", "got_func_f"), CALL_POINTER)
        typed = dl.HostFunction(lambda: 13, (), ("i32",))
        with linker({"lib.so": lib}, imports={"env": {"f": typed}}) as program:
            group = program.main_group
            handle = group.dlopen("lib.so")

            assert group.dlsym(handle, "call_pointer")(group.dlsym(handle, "at")()) == 13
        with linker({"lib.so": lib}, imports={"env": {"f": lambda: 13}}) as program:
            with pytest.raises(dl.UnsupportedModuleError, match="HostFunction"):
                program.main_group.dlopen("lib.so")

    def test_a_wrong_signature_traps(self) -> None:
        """A call through a pointer of another signature traps, it never runs the function."""
        caller = library(TABLE, CALL_POINTER)
        lib = library('(func (export "f") (param i64))')
        with linker({"lib.so": lib, "caller.so": caller}) as program:
            group = program.main_group
            address = group.dlsym(group.dlopen("lib.so"), "f").address

            with pytest.raises(dl.TrapError, match="indirect call type mismatch"):
                group.dlsym(group.dlopen("caller.so"), "call_pointer")(address)

    def test_null_is_nobody(self) -> None:
        """Table index 0 holds nothing, so that a call through a null pointer traps."""
        with linker(
            {"caller.so": library(TABLE, CALL_POINTER), "lib.so": library(returns("f", 1))}
        ) as program:
            group = program.main_group
            group.dlopen("lib.so")

            with pytest.raises(dl.TrapError, match="uninitialized"):
                group.dlsym(group.dlopen("caller.so"), "call_pointer")(0)


class TestReexports:
    def test_an_imported_function_that_is_exported_again(self) -> None:
        """A re-exported function is the function: same address, callable by handle and by import, over several steps."""
        libs = {
            "origin.so": library(returns("f", 6)),
            "one.so": library(imports("f"), '(export "g" (func $f))', needed=["origin.so"]),
            "two.so": library(imports("g"), '(export "h" (func $g))', needed=["one.so"]),
            "user.so": library(
                TABLE,
                imports("h"),
                got("h", "func"),
                calls("k", "h"),
                reads("at", "got_func_h"),
                needed=["two.so"],
            ),
        }
        with linker(libs) as program:
            group = program.main_group
            user = group.dlopen("user.so")
            address = group.dlsym(user, "f").address

            assert group.dlsym(user, "k")() == 6
            assert group.dlsym(user, "at")() == address
            assert [group.dlsym(user, n).address for n in "gh"] == [address, address]
            assert group.dlsym(user, "h")() == 6

    def test_a_function_exported_again_under_its_name(self) -> None:
        """A main module that only passes a library's function on does not change whose function it is."""
        lib = library(returns("f", 6), imports("g"), calls("via", "g"), returns("g", 1))
        main = pie(imports("f"), '(export "f" (func $f))', needed=["lib.so"])
        with dl.Linker(main, libraries={"lib.so": lib}) as program:
            group = program.main_group

            assert group.dlsym(program.main, "f")() == 6
            assert group.dlsym(program.main, "f").address == group.dlsym(2, "f").address

    def test_a_host_function_exported_again(self) -> None:
        """A module may pass a host function on; others import it and dlsym gives it an address."""
        libs = {
            "proxy.so": library(imports("log", "(param i32) (result i32)"), '(export "say" (func $log))'),
            "user.so": library(
                TABLE,
                imports("say", "(param i32) (result i32)"),
                '(func (export "run") (result i32) i32.const 3 call $say)',
                '(func (export "by_pointer") (param i32) (result i32) i32.const 4 local.get 0'
                " call_indirect (param i32) (result i32))",
                needed=["proxy.so"],
            ),
        }
        with linker(libs, imports={"env": {"log": lambda n: n * 10}}) as program:
            group = program.main_group
            user = group.dlopen("user.so")
            say = group.dlsym(user, "say")

            assert group.dlsym(user, "run")() == 30
            assert say(2) == 20
            assert group.dlsym(user, "by_pointer")(say.address) == 40

    def test_in_a_cycle(self) -> None:
        """A re-export of what a later module of the same cycle defines is found too."""
        libs = {
            "a.so": library(returns("f", 2), imports("h"), calls("via", "h"), needed=["b.so"]),
            "b.so": library(imports("f"), '(export "h" (func $f))', needed=["a.so"]),
        }
        with linker(libs) as program:
            group = program.main_group
            a = group.dlopen("a.so")

            assert group.dlsym(a, "via")() == 2
            assert group.dlsym(a, "h").address == group.dlsym(a, "f").address

    def test_a_global_exported_again(self) -> None:
        """A wasm variable passes through a module that re-exports it."""
        libs = {
            "origin.so": library(
                '(global $v (export "v") (mut i64) (i64.const 5))',
                '(func (export "get") (result i64) global.get $v)',
            ),
            "proxy.so": library(
                '(import "env" "v" (global $v (mut i64)))', '(export "w" (global $v))', needed=["origin.so"]
            ),
            "user.so": library(
                '(import "env" "w" (global $w (mut i64)))',
                '(func (export "set") (param i64) local.get 0 global.set $w)',
                needed=["proxy.so"],
            ),
        }
        with linker(libs) as program:
            group = program.main_group
            user = group.dlopen("user.so")
            group.dlsym(user, "set")(77)

            assert group.dlsym(user, "get")() == 77
