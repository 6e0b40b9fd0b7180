"""Single meanings that ELF has too, one by one: what a stub sees later, the order of constructors in cycles."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import cast

import pytest

import dl
from dl.link.order import dependencies_first
from dl.modules.linked_module import LinkedModule
from tests.support.modules import MEMORY, TABLE, calls, imports, library, pie, returns

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
        modules = [Bare() for _ in range(5000)]
        for module, needed in itertools.pairwise(modules):
            module.needed.append(needed)
        assert [*map(id, dependencies_first(cast("list[LinkedModule]", modules)))] == [
            *map(id, modules[::-1])
        ]
        modules[-1].needed.append(modules[0])
        assert [*map(id, dependencies_first(cast("list[LinkedModule]", modules)))] == [*map(id, modules)]
