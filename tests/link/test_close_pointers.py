"""dlclose: what handles, pointers and host objects do that somebody kept of a closed library."""

from __future__ import annotations

import threading
from operator import index
from typing import Any

import pytest

import dl
from tests.link.plugins import SHARED, caller, plugin
from tests.support.modules import (
    MEMORY,
    TABLE,
    got,
    imports,
    library,
    returns,
    static,
)


class TestPointers:
    def test_host_objects_of_a_closed_library_refuse(self) -> None:
        """A function or data object that the host kept raises an error that names the symbol."""
        with dl.Linker(None, libraries={"a.so": plugin(7)}) as linker:
            group = linker.main_group
            handle = group.dlopen("a.so")
            function, variable = group.dlsym(handle, "f"), group.dlsym(handle, "d")
            assert isinstance(function, dl.GuestFunction)
            group.dlclose(handle)

            with pytest.raises(dl.InvalidHandleError, match="f is gone: its library was closed"):
                function()
            with pytest.raises(dl.InvalidHandleError, match="d is gone: its library was closed"):
                _ = variable.address

    def test_a_stale_function_pointer_traps(self) -> None:
        """A pointer that the guest kept reaches no other function, although others are loaded in between."""
        libs = {"a.so": plugin(7), "b.so": plugin(8), "caller.so": caller()}
        with dl.Linker(None, libraries=libs) as linker:
            group = linker.main_group
            call = group.dlsym(group.dlopen("caller.so"), "call")
            assert isinstance(call, dl.GuestFunction)
            handle = group.dlopen("a.so")
            pointer = group.dlsym(handle, "f").address
            assert call(pointer) == 7
            group.dlclose(handle)
            for _ in range(20):
                with pytest.raises(dl.StalePointerError, match=r"a\.so, which was closed") as caught:
                    call(pointer)
                assert (caught.value.library, caught.value.handle) == ("a.so", handle)
                # Wasmer tells no frames of a trap that a function of the host raises.
                assert ("caller.so!" in str(caught.value)) == (linker.engine.name != "wasmer")
                group.dlclose(group.dlopen("b.so"))

    def test_a_stale_pointer_is_named_in_every_group(self) -> None:
        """Groups that were there, that were away during several closes, and that came later name the same libraries."""
        libs = {f"{n}.so": plugin(n, shared=True) for n in range(6)}
        with dl.Linker(None, memory=SHARED, libraries={**libs, "caller.so": caller(shared=True)}) as linker:
            group = linker.main_group
            calling = group.dlopen("caller.so")
            ready, go = threading.Event(), threading.Event()

            def names(own: dl.InstanceGroup) -> list[str]:
                call, found = own.dlsym(calling, "call"), []
                for pointer in pointers:
                    with pytest.raises(dl.StalePointerError) as caught:
                        call(pointer)
                    found.append(caught.value.library)
                return found

            def away(own: dl.InstanceGroup) -> list[str]:
                own.synchronize()
                ready.set()
                assert go.wait(30)
                return names(own)

            pointers = []
            threads = []
            for number in range(6):
                ready.clear()
                threads.append(linker.spawn(away))
                assert ready.wait(30)
                handle = group.dlopen(f"{number}.so")
                pointers.append(group.dlsym(handle, "f").address)
                group.dlclose(handle)
            go.set()
            expected = list(libs)
            assert names(group) == expected
            assert [thread.join(30) for thread in threads] == [expected] * 6
            assert linker.spawn(names).join(30) == expected
            tables = [group.table(), linker.spawn(lambda own: own.table()).join(30)]
            assert tables[0] == tables[1]

    def test_every_signature_is_named(self) -> None:
        """Functions of many signatures, in the library's own elements and placed by the linker, all name their library."""
        kinds = ["", "(param i32)", "(param i64 f64) (result f32)", "(result i32 i64)", "(param v128)"]
        zeros = ["", "i32.const 0", "(i64.const 0) (f64.const 0)", "", "(v128.const i64x2 0 0)"]
        many = library(
            TABLE,
            '(import "env" "__table_base" (global $tb i32))',
            *(f'(func $f{n} (export "f{n}") {kind} unreachable)' for n, kind in enumerate(kinds)),
            "(elem (global.get $tb) $f4 $f0 $f4)",
            table_size=3,
        )
        calls_all = library(
            TABLE,
            *(f"(type $t{n} (func {kind}))" for n, kind in enumerate(kinds)),
            *(
                f'(func (export "call{n}") (param i32) {zeros[n]} (call_indirect (type $t{n}) (local.get 0))'
                f" {'drop ' * kind.partition('result')[2].count('i')}{'drop' if 'f32' in kind else ''})"
                for n, kind in enumerate(kinds)
            ),
        )
        with dl.Linker(None, libraries={"many.so": many, "all.so": calls_all}) as linker:
            group = linker.main_group
            calling, handle = group.dlopen("all.so"), group.dlopen("many.so")
            pointers = [group.dlsym(handle, f"f{n}").address for n in range(len(kinds))]
            group.dlclose(handle)
            for number, pointer in enumerate(pointers):
                with pytest.raises(dl.StalePointerError, match=r"many\.so"):
                    group.dlsym(calling, f"call{number}")(pointer)

    def test_the_host_calls_a_stale_pointer(self) -> None:
        """A call of the host's through a table index names the library too."""
        lib = library('(func (export "f"))')
        with dl.Linker(None, libraries={"a.so": lib}) as linker:
            group = linker.main_group
            with group.library("a.so") as handle:
                pointer = group.dlsym(handle, "f").address
                group.own.call_pointer(pointer, None)
            with pytest.raises(dl.StalePointerError, match=r"a\.so"):
                group.own.call_pointer(pointer, None)

    def test_beside_a_static_main_module(self) -> None:
        """In a table that the main module defines a stale pointer is named as well, also by the main module's own calls."""
        main = static(
            "(type $t (func (result i32)))",
            '(func (export "call") (param i32) (result i32) (call_indirect (type $t) (local.get 0)))',
            memory='(memory (export "memory") 40)',
        )
        with dl.Linker(main, libraries={"a.so": plugin(7)}) as linker:
            group = linker.main_group
            call = group.dlsym(dl.MAIN_HANDLE, "call")
            with group.library("a.so") as handle:
                pointer = group.dlsym(handle, "f").address
                assert call(pointer) == 7
            with pytest.raises(dl.StalePointerError, match=r"a\.so"):
                call(pointer)

    def test_without_room_for_code_a_stale_pointer_traps_unnamed(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A program that may hold no more code closes its libraries all the same, and says that pointers find null."""
        libs = {"a.so": plugin(7), "caller.so": caller()}
        for most in range(3, 20):
            caplog.clear()
            limits = dl.Limits(code_modules=most)
            try:
                with dl.Linker(None, libraries=libs, limits=limits, cache=False) as linker:
                    group = linker.main_group
                    call = group.dlsym(group.dlopen("caller.so"), "call")
                    handle = group.dlopen("a.so")
                    pointer = group.dlsym(handle, "f").address
                    group.dlclose(handle)
                    assert len(linker.modules) == 1
                    with pytest.raises(dl.TrapError) as caught:
                        call(pointer)
            except dl.ResourceLimitError:
                continue
            assert "will find null" in caplog.text
            assert not isinstance(caught.value, dl.StalePointerError)
            return
        pytest.fail("no limit leaves room for the libraries alone")

    def test_everything_that_the_host_kept_refuses(self) -> None:
        """Functions, typed ones and data of another thread's group, libraries and handles say that the library was closed."""
        with dl.Linker(None, memory=SHARED, libraries={"a.so": plugin(7, shared=True)}) as linker:
            kept, closed = threading.Event(), threading.Event()

            def other(own: dl.InstanceGroup) -> None:
                function, variable = own.dlsym(opened.handle, "f"), own.dlsym(opened.handle, "d")
                assert isinstance(function, dl.GuestFunction)
                typed = function.returning(int)
                assert typed() == 7
                kept.set()
                assert closed.wait(30)
                uses: list[Any] = [
                    function,
                    typed,
                    lambda: variable.address,
                    lambda: index(variable),
                    lambda: own.dlsym(opened.handle, "f"),
                    lambda: own.dlclose(opened.handle),
                    lambda: opened.f,
                    opened.symbols,
                    lambda: linker.module(opened.handle),
                    lambda: linker.explain("f", opened.handle),
                ]
                for use in uses:
                    with pytest.raises(dl.InvalidHandleError, match="closed"):
                        use()

            opened = linker.main_group.library("a.so")
            thread = linker.spawn(other)
            assert kept.wait(30)
            opened.close()
            closed.set()
            thread.join(30)

    def test_indices_are_used_again_as_late_as_possible(self) -> None:
        """At most 1,024 indices rest, but those of the last library always; those that rested longest go first."""
        big = library(TABLE, returns("f", 1), table_size=3000)
        libs = {"a.so": plugin(1), "b.so": plugin(2), "big.so": big, "caller.so": caller()}
        with dl.Linker(None, libraries=libs) as linker:
            group = linker.main_group
            call = group.dlsym(group.dlopen("caller.so"), "call")

            def closed(name: str) -> int:
                with group.library(name) as handle:
                    return group.dlsym(handle, "f").address

            first = closed("a.so")
            for _ in range(1024 // 3 - 1):  # each has three indices
                assert closed("b.so") != first
            with pytest.raises(dl.StalePointerError, match=r"a\.so"):
                call(first)
            pointer = closed("b.so")
            with pytest.raises(dl.TrapError) as caught:
                call(first)
            assert not isinstance(caught.value, dl.StalePointerError)
            assert closed("b.so") == first != pointer
            pointer = closed("big.so")
            with pytest.raises(dl.StalePointerError, match=r"big\.so"):
                call(pointer)

    def test_an_address_that_was_bound_to_it_binds_again(self) -> None:
        """The address of a function that nothing defined finds, after its library's close, whoever defines the name next."""

        def takes() -> bytes:
            body = "(global.get $got_func_f) (call_indirect (result i32))"
            call = f'(func (export "call") (result i32) {body})'
            return library(TABLE, imports("f"), got("f", "func"), call)

        libs = {"first.so": takes(), "second.so": takes(), "one.so": plugin(1), "two.so": plugin(2)}
        with dl.Linker(None, libraries=libs) as linker:
            group = linker.main_group
            first, second = (group.dlopen(name, dl.RTLD_LAZY) for name in ("first.so", "second.so"))
            one = group.dlopen("one.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
            assert group.dlsym(first, "call")() == 1
            group.dlclose(one)
            assert group.dlsym(second, "call")() == 1  # the first library keeps it
            group.dlclose(first)
            assert [m.name for m in linker.modules] == ["second.so"]
            with pytest.raises(dl.UnresolvedCallError, match="f"):
                group.dlsym(second, "call")()
            group.dlopen("two.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
            assert group.dlsym(second, "call")() == 2

    def test_memory_rests_while_a_thread_is_inside(self) -> None:
        """A library whose function is on the stack keeps its data until the thread has left guest code."""
        box: list[Any] = []

        def close_me() -> None:
            linker, handle = box[:2]
            linker.main_group.dlclose(handle)
            linker.main_group.dlopen("other.so")
            box.append(linker.statistics().side_bytes)

        lib = library(
            MEMORY,
            '(import "env" "__memory_base" (global $mb i32))',
            '(import "env" "close_me" (func $close))',
            '(func (export "f") (result i32) (i32.store (global.get $mb) (i32.const 99)) (call $close)'
            " (i32.load (global.get $mb)))",
            memory_size=4096,
        )
        other = library(
            MEMORY,
            '(import "env" "__memory_base" (global $mb i32))',
            '(func (export "__wasm_call_ctors") (i32.store (global.get $mb) (i32.const 1)))',
            memory_size=4096,
        )
        libs = {"a.so": lib, "other.so": other}
        with dl.Linker(None, libraries=libs, imports={"env": {"close_me": close_me}}) as linker:
            group = linker.main_group
            handle = group.dlopen("a.so")
            box[:] = [linker, handle]
            assert group.dlsym(handle, "f")() == 99
            assert box[2] == 8192
            assert linker.statistics().side_bytes == 4096
