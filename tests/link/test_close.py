"""dlclose: counts, destructors, what is given back, and what threads see of it."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest

import dl
from tests.link.plugins import SHARED, plugin
from tests.support.groups import held
from tests.support.modules import (
    TABLE,
    calls,
    imports,
    library,
)


class TestCounts:
    def test_the_last_close_unloads(self) -> None:
        """A library opened twice is there after one close and gone after the second, with all that it held."""
        with dl.Linker(None, libraries={"a.so": plugin(7)}) as linker:
            group, before = linker.main_group, held(linker)
            handle = group.dlopen("a.so")
            assert group.dlopen("a.so") == handle
            group.dlclose(handle)
            assert group.dlsym(handle, "f")() == 7
            group.dlclose(handle)

            assert held(linker) == before
            with pytest.raises(dl.InvalidHandleError, match="it was closed"):
                group.dlsym(handle, "f")
            with pytest.raises(dl.InvalidHandleError, match="it was closed"):
                group.dlclose(handle)
            again = group.dlopen("a.so")
            assert again > handle
            assert group.dlsym(again, "f")() == 7

    def test_what_only_it_needed_goes_with_it(self) -> None:
        """A needed library stays while it is open by itself or needed by another, and goes with the last of them."""
        libs = {
            "top.so": plugin(1, needed=("low.so",)),
            "other.so": plugin(2, needed=("low.so",)),
            "low.so": plugin(3),
        }
        with dl.Linker(None, libraries=libs) as linker:
            group, before = linker.main_group, held(linker)
            top, other = group.dlopen("top.so"), group.dlopen("other.so")
            group.dlclose(top)
            assert [m.name for m in linker.modules] == ["low.so", "other.so"]
            low = next(m.handle for m in linker.modules if m.name == "low.so")
            with pytest.raises(dl.InvalidHandleError, match="not open"):
                group.dlclose(low)
            assert group.dlopen("low.so") == low
            group.dlclose(other)
            assert group.dlsym(low, "f")() == 3
            group.dlclose(low)

            assert held(linker) == before

    def test_a_library_that_another_is_bound_to_stays(self) -> None:
        """A symbol that was bound keeps its library, without a needed list, until the other library goes."""
        libs = {"user.so": library(imports("f"), calls("g", "f")), "maker.so": plugin(5)}
        with dl.Linker(None, libraries=libs) as linker:
            group, before = linker.main_group, held(linker)
            maker = group.dlopen("maker.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
            user = group.dlopen("user.so")
            group.dlclose(maker)
            assert group.dlsym(user, "g")() == 5
            assert "maker.so" in [m.name for m in linker.modules]
            group.dlclose(user)

            assert held(linker) == before

    def test_a_stub_keeps_what_it_was_bound_to_at_its_first_call(self) -> None:
        """A lazy stub binds its library to the one that it found, from its first call on."""
        libs = {"user.so": library(imports("f"), calls("g", "f")), "maker.so": plugin(6)}
        with dl.Linker(None, libraries=libs) as linker:
            group, before = linker.main_group, held(linker)
            user = group.dlopen("user.so", dl.RTLD_LAZY)
            maker = group.dlopen("maker.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
            assert group.dlsym(user, "g")() == 6
            group.dlclose(maker)
            assert group.dlsym(user, "g")() == 6
            group.dlclose(user)

            assert held(linker) == before

    def test_a_cycle_goes_as_a_whole(self) -> None:
        """Libraries that need each other go together when nothing else keeps one of them."""
        libs = {"a.so": plugin(1, needed=("b.so",)), "b.so": plugin(2, needed=("a.so",))}
        with dl.Linker(None, libraries=libs) as linker:
            group, before = linker.main_group, held(linker)
            handle = group.dlopen("a.so")
            assert len(linker.modules) == 2
            group.dlclose(handle)

            assert held(linker) == before

    def test_nothing_of_it_stays_with_those_that_stay(self) -> None:
        """A library that was loaded with another, and outlives it, holds nothing of that: not even its record."""
        libs = {"low.so": plugin(1), "top.so": plugin(2, needed=("low.so",))}
        with dl.Linker(None, libraries=libs) as linker:
            group = linker.main_group
            top = group.dlopen("top.so")
            low = group.dlopen("low.so")
            record = weakref.ref(linker.program.state.modules[top])
            group.dlclose(top)
            gc.collect()
            assert record() is None
            assert group.dlsym(low, "f")() == 1

    def test_nodelete_and_the_main_module_stay(self) -> None:
        """RTLD_NODELETE keeps a library for good; closing the main module is allowed and does nothing."""
        with dl.Linker(None, libraries={"a.so": plugin(7)}) as linker:
            group = linker.main_group
            handle = group.dlopen("a.so", dl.RTLD_NOW | dl.RTLD_NODELETE)
            group.dlclose(handle)

            assert [m.name for m in linker.modules] == ["a.so"]
            assert group.dlopen("a.so") == handle


class TestEnds:
    def test_destructors_run_last_constructed_first(self) -> None:
        """What libraries registered with `__cxa_atexit` runs at their close, in reverse order, once."""
        ran: list[int] = []

        def registers(number: int, *needed: str) -> bytes:
            return library(
                TABLE,
                '(import "env" "__table_base" (global $tb i32))',
                '(import "env" "__cxa_atexit" (func $atexit (param i32 i32 i32) (result i32)))',
                '(import "env" "ran" (func $ran (param i32)))',
                "(func $end (param i32) (call $ran (local.get 0)))",
                "(elem (global.get $tb) $end)",
                '(func (export "__wasm_call_ctors")'
                f" (drop (call $atexit (global.get $tb) (i32.const {number}) (i32.const 0)))"
                f" (drop (call $atexit (global.get $tb) (i32.const {number + 1}) (i32.const 0))))",
                table_size=1,
                needed=needed,
            )

        libs = {"low.so": registers(10), "top.so": registers(20, "low.so")}
        with dl.Linker(None, libraries=libs, imports={"env": {"ran": ran.append}}) as linker:
            group, before = linker.main_group, held(linker)
            group.dlclose(group.dlopen("top.so"))
            assert ran == [21, 20, 11, 10]
            assert held(linker) == before
            group.dlclose(group.dlopen("top.so"))
        assert ran == [21, 20, 11, 10] * 2

    def test_a_destructor_that_fails_does_not_save_its_library(self) -> None:
        """The error names library and function, the others' destructors run, and everything goes."""
        ran: list[int] = []
        libs = {
            "low.so": library(
                '(import "env" "ran" (func $ran (param i32)))',
                '(func (export "_fini") (call $ran (i32.const 1)))',
            ),
            "top.so": library('(func (export "_fini") unreachable)', needed=["low.so"]),
        }
        with dl.Linker(None, libraries=libs, imports={"env": {"ran": ran.append}}) as linker:
            group, before = linker.main_group, held(linker)
            handle = group.dlopen("top.so")
            with pytest.raises(dl.FinalizationError, match=r"top\.so.*_fini.*unreachable"):
                group.dlclose(handle)

            assert ran == [1]
            assert held(linker) == before

    def test_a_destructor_may_open_and_close(self) -> None:
        """A destructor that opens its own library again gets a new one, which has its own life."""
        box: list[Any] = []

        def end() -> None:
            linker, handles = box
            if len(handles) < 3:
                handles.append(linker.main_group.dlopen("a.so"))

        lib = library('(import "env" "end" (func $end))', '(func (export "_fini") (call $end))')
        with dl.Linker(None, libraries={"a.so": lib}, imports={"env": {"end": end}}) as linker:
            group, before = linker.main_group, held(linker)
            handles = [group.dlopen("a.so")]
            box[:] = [linker, handles]
            for number in range(3):
                group.dlclose(handles[number])
            assert len(set(handles)) == 3
            assert held(linker) == before


class TestThreads:
    def test_every_group_forgets(self) -> None:
        """A library that one thread closes is gone in all, also in one that was away, and in later ones."""
        with dl.Linker(None, memory=SHARED, libraries={"a.so": plugin(7, shared=True)}) as linker:
            group = linker.main_group
            ready, go = threading.Event(), threading.Event()

            def away(own: dl.InstanceGroup) -> list[object]:
                own.dlsym(handle, "f")()
                ready.set()
                assert go.wait(30)
                return own.table()

            handle = group.dlopen("a.so")
            thread = linker.spawn(away)
            assert ready.wait(30)
            group.dlclose(handle)
            go.set()

            tables = [thread.join(30), group.table(), linker.spawn(lambda own: own.table()).join(30)]
            assert tables[0] == tables[1] == tables[2]

    def test_eight_threads_open_and_close(self) -> None:
        """Threads that open and close the same libraries leave nothing behind, and every call between is right."""
        libs = {
            "a.so": plugin(1, shared=True, needed=("low.so",)),
            "b.so": plugin(2, shared=True, needed=("low.so",)),
            "low.so": plugin(3, shared=True),
        }
        with dl.Linker(None, memory=SHARED, libraries=libs) as linker:
            before = held(linker)

            def work(own: dl.InstanceGroup, seed: int) -> None:
                for number in range(25):
                    name, value = (("a.so", 1), ("b.so", 2), ("low.so", 3))[(seed + number) % 3]
                    with own.library(name) as handle:
                        function = own.dlsym(handle, "f")
                        assert isinstance(function, dl.GuestFunction)
                        assert function() == value

            threads = [linker.spawn(work, seed) for seed in range(8)]
            for thread in threads:
                thread.join(60)
            linker.program.limbo.drain()

            assert held(linker) == before
            assert linker.statistics().protocol.log_entries < 60

    def test_many_cycles_leave_the_log_and_the_table_flat(self) -> None:
        """A program that replaces a plug-in again and again grows in nothing but handles."""
        with dl.Linker(None, memory=SHARED, libraries={"a.so": plugin(7, shared=True)}) as linker:
            group = linker.main_group
            sizes = set()
            for number in range(500):
                with group.library("a.so") as handle:
                    assert group.dlsym(handle, "f").address
                if number >= 400:
                    now = linker.statistics()
                    sizes.add((now.table_length, now.memory_bytes, now.side_bytes, now.protocol.log_entries))

            assert len(sizes) == 1
