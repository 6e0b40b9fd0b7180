"""Single meanings that ELF has too, one by one: what a stub sees later, the order of constructors in cycles."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest

import dl
from dl.link.order import dependencies_first
from tests.support.groups import SECONDS, until
from tests.support.modules import MEMORY, TABLE, calls, got, imports, library, pie, reads, returns

USER = library(imports("f"), calls("go", "f"))


class TestLaterTrees:
    """What a stub sees that was opened after its module."""

    def test_a_stub_sees_a_local_tree_that_contains_its_module(self) -> None:
        """A library opened with RTLD_LOCAL later, which needs the stub's module, defines the function for it."""
        libs = {
            "use.so": USER,
            "def.so": library(returns("f", 5)),
            "plug.so": library(needed=["use.so", "def.so"]),
        }
        with dl.Linker(None, libraries=libs) as program:
            group = program.main_group
            go = group.dlsym(group.dlopen("use.so", dl.RTLD_LAZY), "go")
            with pytest.raises(dl.UnresolvedCallError):
                go()
            group.dlopen("plug.so", dl.RTLD_LAZY)
            assert go() == 5

    def test_a_stub_does_not_see_another_local_tree(self) -> None:
        """A tree that does not contain the stub's module stays invisible to it."""
        libs = {"use.so": USER, "def.so": library(returns("f", 5))}
        with dl.Linker(None, libraries=libs) as program:
            group = program.main_group
            go = group.dlsym(group.dlopen("use.so", dl.RTLD_LAZY), "go")
            group.dlopen("def.so", dl.RTLD_LAZY)
            with pytest.raises(dl.UnresolvedCallError):
                go()

    def test_the_tree_that_was_opened_first_wins(self) -> None:
        """Of two later trees with a definition, the stub takes that of the one opened first."""
        libs = {
            "use.so": USER,
            "one.so": library(returns("f", 1), needed=["use.so"]),
            "two.so": library(returns("f", 2), needed=["use.so"]),
        }
        with dl.Linker(None, libraries=libs) as program:
            group = program.main_group
            go = group.dlsym(group.dlopen("use.so", dl.RTLD_LAZY), "go")
            group.dlopen("two.so", dl.RTLD_LAZY)
            group.dlopen("one.so", dl.RTLD_LAZY)
            assert go() == 2

    def test_a_library_needed_at_start_sees_the_global_scope_only(self) -> None:
        """What the main module needs does not see a later LOCAL tree, though that contains it."""
        libs = {"use.so": USER, "plug.so": library(returns("f", 5), needed=["use.so"])}
        with dl.Linker(pie(needed=["use.so"]), libraries=libs) as program:
            group = program.main_group
            go = group.dlsym(dl.RTLD_DEFAULT, "go")
            group.dlopen("plug.so", dl.RTLD_LAZY)
            with pytest.raises(dl.UnresolvedCallError):
                go()
            group.dlopen("plug.so", dl.RTLD_LAZY | dl.RTLD_GLOBAL)
            assert go() == 5

    def test_a_tree_whose_constructor_failed_is_not_seen(self) -> None:
        """A load that was taken back leaves nothing for a stub to find."""
        trap = '(func (export "__wasm_call_ctors") unreachable)'
        libs = {"use.so": USER, "bad.so": library(returns("f", 5), trap, needed=["use.so"])}
        with dl.Linker(None, libraries=libs) as program:
            group = program.main_group
            go = group.dlsym(group.dlopen("use.so", dl.RTLD_LAZY), "go")
            with pytest.raises(dl.InitializationError):
                group.dlopen("bad.so", dl.RTLD_LAZY)
            with pytest.raises(dl.UnresolvedCallError):
                go()


def constructed(libs: dict[str, list[str]], root: str) -> list[str]:
    """Open a library that needs others, and return the names in the order of their constructors."""
    order: list[int] = []
    names = list(libs)
    wasm = {
        name: library(
            '(import "host" "note" (func $note (param i32)))',
            f'(func (export "__wasm_call_ctors") i32.const {names.index(name)} call $note)',
            MEMORY,
            TABLE,
            needed=needed,
        )
        for name, needed in libs.items()
    }
    with dl.Linker(None, libraries=wasm, imports={"host": {"note": order.append}}) as program:
        program.main_group.dlopen(root)
    return [names[number] for number in order]


@dataclass(eq=False)
class Bare:
    """As much of a linked module as its place in the order takes."""

    needed: list[Bare] = field(default_factory=list)


class TestConstructorsInCycles:
    """Libraries that need one another, and what they need beside."""

    def test_what_a_cycle_needs_comes_before_all_of_it(self) -> None:
        """A library outside a cycle that its members need is constructed before each of them, wherever the cycle closes."""
        order = constructed({"a": ["b", "out"], "b": ["a", "out2"], "out": [], "out2": ["out"]}, "a")
        assert order == ["out", "out2", "b", "a"]

    def test_a_chain_of_cycles(self) -> None:
        """Each cycle is constructed as a whole, after the cycles that it leads to."""
        libs = {"a": ["b"], "b": ["c", "a", "d"], "c": ["d"], "d": ["e", "c"], "e": ["f"], "f": ["e"]}
        order = constructed(libs, "a")
        assert [set(order[:2]), set(order[2:4]), set(order[4:])] == [{"e", "f"}, {"c", "d"}, {"a", "b"}]

    def test_without_cycles_the_order_is_that_of_the_needed_lists(self) -> None:
        """Unrelated libraries are constructed in the order in which they are needed."""
        assert constructed({"a": ["b", "c"], "b": [], "c": ["d"], "d": []}, "a") == ["b", "d", "c", "a"]

    def test_a_long_chain(self) -> None:
        """The depth of a tree is not bounded by the depth of Python's stack."""
        modules: list[Any] = [Bare() for _ in range(5000)]
        for module, needed in itertools.pairwise(modules):
            module.needed.append(needed)
        assert dependencies_first(modules) == modules[::-1]
        modules[-1].needed.append(modules[0])
        assert dependencies_first(modules) == modules


INDIRECT = "(result i32) global.get $got_func_f call_indirect (result i32)"
TAKER = library(
    imports("f"), got("f", "func"), TABLE, reads("at", "got_func_f"), f'(func (export "go") {INDIRECT})'
)


class TestAddressOfAnUndefinedFunction:
    """`&f` under RTLD_LAZY, where nothing defines `f` yet; ELF refuses it, as it refuses data."""

    def test_it_can_be_called_once_something_defines_the_function(self) -> None:
        """The address is no null pointer, and calls the function that a later library defines."""
        with dl.Linker(None, libraries={"t.so": TAKER, "def.so": library(returns("f", 5))}) as program:
            group = program.main_group
            taker = group.dlopen("t.so", dl.RTLD_LAZY)
            assert group.dlsym(taker, "at")() > 0
            with pytest.raises(dl.UnresolvedCallError, match=r"env\.f"):
                group.dlsym(taker, "go")()
            group.dlopen("def.so", dl.RTLD_LAZY | dl.RTLD_GLOBAL)
            assert group.dlsym(taker, "go")() == 5

    def test_every_taker_gets_one_address(self) -> None:
        """Two libraries that take the address hold the same one, also if the first does not call the function itself."""
        only_address = library(
            got("f", "func"), TABLE, reads("at", "got_func_f"), f'(func (export "go") {INDIRECT})'
        )
        libs = {"t.so": TAKER, "u.so": only_address}
        with dl.Linker(None, libraries=libs) as program:
            group = program.main_group
            with pytest.raises(dl.UnresolvedSymbolsError, match="f"):
                group.dlopen("u.so", dl.RTLD_LAZY)  # nothing says its signature
            handles = [group.dlopen(name, dl.RTLD_LAZY) for name in libs]
            assert len({group.dlsym(handle, "at")() for handle in handles}) == 1
            group.dlopen(library(returns("f", 6)), dl.RTLD_NOW | dl.RTLD_GLOBAL)
            assert [group.dlsym(handle, "go")() for handle in handles] == [6, 6]

    def test_now_demands_it(self) -> None:
        """RTLD_NOW refuses the library by the function's name."""
        with dl.Linker(None, libraries={"t.so": TAKER}) as program, pytest.raises(dl.UnresolvedSymbolsError):
            program.main_group.dlopen("t.so", dl.RTLD_NOW)

    def test_other_groups_have_it_too(self) -> None:
        """A thread that comes later calls the same function through the same address."""
        memory = dl.MemoryType(minimum=1, maximum=64, shared=True)
        with dl.Linker(
            None, memory=memory, libraries={"t.so": TAKER, "d.so": library(returns("f", 7))}
        ) as program:
            taker = program.main_group.dlopen("t.so", dl.RTLD_LAZY)
            program.main_group.dlopen("d.so", dl.RTLD_LAZY | dl.RTLD_GLOBAL)
            assert program.spawn(lambda group: group.dlsym(taker, "go")()).join() == 7
            assert program.main_group.dlsym(taker, "go")() == 7

    def test_undefined_data_is_refused_as_in_elf(self) -> None:
        """Data cannot come later: there is no call at which to look for it."""
        wasm = library(got("d", "mem"))
        with dl.Linker(None) as program, pytest.raises(dl.UnresolvedSymbolsError, match=r"GOT\.mem\.d"):
            program.main_group.dlopen(wasm, dl.RTLD_LAZY)

    def test_the_address_of_a_host_function_that_another_library_calls(self) -> None:
        """Its signature may come from any library that imports it."""
        taker = library(
            got("h", "func"),
            TABLE,
            '(func (export "go") (result i32) global.get $got_func_h call_indirect (result i32))',
        )
        with dl.Linker(None, imports={"env": {"h": lambda: 8}}) as program:
            group = program.main_group
            with pytest.raises(dl.UnsupportedModuleError, match="signature is unknown"):
                group.dlopen(taker, name="early")
            group.dlopen(library(imports("h"), calls("x", "h")))
            assert group.dlsym(group.dlopen(taker), "go")() == 8

    @pytest.mark.parametrize("host", [False, True])
    def test_an_address_that_another_thread_is_just_placing_is_waited_for(self, host: bool) -> None:
        """A load that fails takes its table indices with it; another one that wants the same address gets one of its own."""
        memory = dl.MemoryType(minimum=1, maximum=64, shared=True)
        given: Any = {"env": {"f": lambda: 7}} if host else None
        with dl.Linker(None, memory=memory, imports=given, interrupts=True) as program:
            planned = threading.Event()
            failed: list[str] = []

            def checkpoint(step: str, _group: str | None) -> None:
                if step == "instantiate" and not failed:
                    failed.append(step)
                    planned.set()
                    # the other thread has resolved, and waits for what this one is loading
                    until(lambda: any("constructors" in what for _, what in program.program.waits.waiting()))
                    raise dl.LinkError("t", "as the test wants it")

            def open_failing(group: dl.InstanceGroup) -> None:
                with pytest.raises(dl.LinkError, match="as the test wants"):
                    group.dlopen(TAKER, dl.RTLD_LAZY)

            program.program.checkpoint = checkpoint
            thread = program.spawn(open_failing)
            assert planned.wait(SECONDS)
            group = program.main_group
            taker = group.dlopen(TAKER, dl.RTLD_LAZY)
            thread.join()
            if not host:
                group.dlopen(library(returns("f", 7)), dl.RTLD_LAZY | dl.RTLD_GLOBAL)
            assert group.dlsym(taker, "go")() == 7


class TestDifferences:
    """What docs/elf.md lists as different, where no other test shows it."""

    def test_a_direct_call_of_an_own_definition_stays(self) -> None:
        """A function that a library calls without importing it is its own, whatever came before in the global scope."""
        own = library('(func $f (export "f") (result i32) i32.const 2)', calls("direct", "f"))
        with dl.Linker(None) as program:
            group = program.main_group
            group.dlopen(library(returns("f", 1)), dl.RTLD_NOW | dl.RTLD_GLOBAL)
            handle = group.dlopen(own, dl.RTLD_NOW | dl.RTLD_GLOBAL)
            assert group.dlsym(handle, "direct")() == 2
            assert group.dlsym(dl.RTLD_DEFAULT, "f")() == 1

    def test_what_is_defined_is_bound_at_the_load(self) -> None:
        """A later definition that comes first in scope does not change what a library was bound to, called or not."""
        libs = {
            "use.so": library(imports("f"), calls("go", "f"), needed=["f.so"]),
            "f.so": library(returns("f", 1)),
        }
        with dl.Linker(None, libraries=libs) as program:
            group = program.main_group
            handle = group.dlopen("use.so", dl.RTLD_LAZY)
            group.dlopen(library(returns("f", 2)), dl.RTLD_LAZY | dl.RTLD_GLOBAL)
            assert group.dlsym(handle, "go")() == 1

    def test_an_undefined_weak_function_may_come_later(self) -> None:
        """A weak function is looked for at each call until something defines it, after RTLD_NOW too; its address stays null."""
        weak = library(
            imports("f"), got("f", "func"), calls("go", "f"), reads("at", "got_func_f"), weak=["f"]
        )
        with dl.Linker(None) as program:
            group = program.main_group
            handle = group.dlopen(weak, dl.RTLD_NOW)
            with pytest.raises(dl.UnresolvedCallError):
                group.dlsym(handle, "go")()
            group.dlopen(library(returns("f", 3)), dl.RTLD_NOW | dl.RTLD_GLOBAL)
            assert group.dlsym(handle, "go")() == 3
            assert group.dlsym(handle, "at")() == 0
