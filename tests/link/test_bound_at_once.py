"""Functions that one library imports from another are bound all at once, as they would be one by one."""

from __future__ import annotations

import random
from typing import Any

import pytest

import dl
from tests.support.engines import fresh_engine
from tests.support.modules import SHARED_MEMORY, TABLE, calls, got, imports, library, linker, reads, returns

GLOBAL = dl.RTLD_NOW | dl.RTLD_GLOBAL
SEED = 20260728


def answers(program: dl.Linker, handle: int, names: list[str]) -> list[Any]:
    """What functions return, in the main group and in a new one."""

    def each(group: dl.InstanceGroup) -> list[Any]:
        functions = [group.dlsym(handle, name) for name in names]
        return [function() for function in functions if isinstance(function, dl.GuestFunction)]

    group = program.main_group
    here = each(group)
    if program.program.shares_memory:
        assert program.spawn(each).join() == here
    return here


def left(program: dl.Linker) -> tuple[object, ...]:
    """What a load that fails must not leave behind."""
    now = program.statistics()
    return now.modules, now.table_elements, now.side_bytes, now.global_scope


def wide(prefix: str, count: int, first: int = 0, *, table: bool = False) -> bytes:
    """A library of many functions, every third of which it places itself if it has a table."""
    functions = [
        f'(func $f{n} (export "{prefix}{n}") (result i32) i32.const {first + n})' for n in range(count)
    ]
    own = list(range(0, count, 3)) if table else []
    base = '(import "env" "__table_base" (global $tb i32))'
    elements = f"(elem (global.get $tb) func {' '.join(f'$f{n}' for n in own)})"
    extra = (TABLE, base, elements) if own else ()
    return library(*functions, *extra, table_size=len(own))


def user(*names: str) -> bytes:
    """A library that imports functions and calls each from one of its own."""
    return library(*map(imports, names), *(calls(f"call_{name}", name) for name in names))


@pytest.mark.parametrize("table", [False, True])
def test_each_import_is_the_function_of_its_name(table: bool) -> None:
    """Many functions of a library, a part of them in its own segments, imported in another order by two libraries in turn."""
    shuffled = random.Random(SEED).sample([f"f{n}" for n in range(100)], 70)
    libs = {
        "wide.so": wide("f", 100, table=table),
        "user.so": user(*shuffled),
        "again.so": user(*shuffled[:5]),
    }
    with linker(libs, memory=dl.MemoryType(shared=True)) as program:
        group = program.main_group
        group.dlopen("wide.so", GLOBAL)
        for name, used in (("user.so", shuffled), ("again.so", shuffled[:5])):
            handle = group.dlopen(name)
            got_ = answers(program, handle, [f"call_{one}" for one in used])
            assert got_ == [int(one[1:]) for one in used]


def test_several_libraries_share_the_imports() -> None:
    """The first definition counts: of the global scope, then of the importer's own; and it is who provides it."""
    libs = {
        "a.so": library(returns("one", 1), returns("two", 2)),
        "b.so": library(returns("two", 20), returns("three", 30)),
        "c.so": library(returns("three", 300), returns("four", 400)),
        "user.so": library(
            *map(imports, ("four", "three", "two", "one")),
            *(calls(f"call_{n}", n) for n in ("one", "two", "three", "four")),
            needed=["c.so"],
        ),
    }
    with linker(libs, memory=dl.MemoryType(shared=True)) as program:
        group = program.main_group
        a, b = group.dlopen("a.so", GLOBAL), group.dlopen("b.so", GLOBAL)
        handle = group.dlopen("user.so")
        assert answers(program, handle, ["call_one", "call_two", "call_three", "call_four"]) == [
            1,
            2,
            30,
            400,
        ]
        group.dlclose(a)
        group.dlclose(b)
        assert sorted(m.name for m in program.modules) == ["a.so", "b.so", "c.so", "user.so"]
        group.dlclose(handle)
        assert program.modules == ()


def test_a_load_of_many_is_bound_within_itself() -> None:
    """Libraries of one load import from each other before any of it is committed, also where they close a circle."""
    libs = {
        "wide.so": wide("f", 40, table=True),
        "left.so": library(imports("f5"), imports("right"), calls("call_f5", "f5"), calls("left", "f5"),
                           calls("call_right", "right"), needed=["wide.so", "right.so"]),
        "right.so": library(imports("left"), imports("f7"), calls("right", "f7"), calls("call_left", "left"),
                            needed=["left.so"]),
    }  # fmt: skip
    with linker(libs, memory=dl.MemoryType(shared=True)) as program:
        handle = program.main_group.dlopen("left.so")
        assert answers(program, handle, ["call_f5", "call_right", "left"]) == [5, 7, 5]


def test_the_programs_own_functions_come_first() -> None:
    """What the user gives for an import counts before a library's function, among many that are bound at once."""
    given = {"env": {"f3": dl.HostFunction(lambda: -3, (), ("i32",))}}
    libs = {"wide.so": wide("f", 10), "user.so": user("f1", "f2", "f3", "f4")}
    with linker(libs, imports=given) as program:
        program.main_group.dlopen("wide.so", GLOBAL)
        handle = program.main_group.dlopen("user.so")
        assert answers(program, handle, [f"call_f{n}" for n in (1, 2, 3, 4)]) == [1, 2, -3, 4]


def test_one_of_another_type_is_named() -> None:
    """An import whose type does not fit is an error that names it, and the load leaves nothing behind."""
    wrong = library(imports("f1"), imports("f2", "(result i64)"), calls("call_f1", "f1"))
    with linker({"wide.so": wide("f", 3), "wrong.so": wrong, "user.so": user("f1")}) as program:
        group = program.main_group
        group.dlopen("wide.so", GLOBAL)
        before = left(program)
        with pytest.raises(dl.ImportTypeError, match="f2"):
            group.dlopen("wrong.so")
        assert left(program) == before
        assert answers(program, group.dlopen("user.so"), ["call_f1"]) == [1]


def test_a_table_element_that_the_guest_has_cleared_is_an_error() -> None:
    """The load is refused with the module's name, and is taken back; other functions can be imported as before."""
    clears = library(TABLE, '(func (export "clear") (param i32) local.get 0 ref.null func table.set 0)')
    libs = {"wide.so": wide("f", 3), "clears.so": clears, "two.so": user("f1", "f2"), "one.so": user("f1")}
    with linker(libs) as program:
        if not program.engine.capabilities.import_lists:
            pytest.skip("the engine finds imports by name")
        group = program.main_group
        wide_handle = group.dlopen("wide.so", GLOBAL)
        clear, f2 = group.dlsym(group.dlopen("clears.so"), "clear"), group.dlsym(wide_handle, "f2")
        assert isinstance(clear, dl.GuestFunction)
        clear(f2.address)
        before = left(program)
        with pytest.raises(dl.InstantiationError, match=r"two\.so"):
            group.dlopen("two.so")
        assert left(program) == before
        assert answers(program, group.dlopen("one.so"), ["call_f1"]) == [1]


@pytest.mark.parametrize("lists", [True, False])
def test_both_ways_to_import_are_one(lists: bool) -> None:
    """A program with stubs, variables, addresses and functions does the same where the engine takes no lists of imports."""
    libs = {
        "wide.so": wide("f", 60),
        "mixed.so": library(
            SHARED_MEMORY, TABLE, imports("f9"), imports("late"), got("f4", "func"), got("word", "mem"),
            '(import "env" "__memory_base" (global $mb i32))', '(global (export "word") i32 (i32.const 4))',
            calls("call_f9", "f9"), calls("call_late", "late"), reads("address", "got_func_f4"),
            '(func (export "distance") (result i32) (i32.sub (global.get $got_mem_word) (global.get $mb)))',
            memory_size=8,
        ),
        "late.so": library(returns("late", 77)),
    }  # fmt: skip
    engine = fresh_engine() if lists else fresh_engine("import_lists")
    with linker(libs, memory=dl.MemoryType(shared=True), engine=engine) as program:
        group = program.main_group
        wide_handle = group.dlopen("wide.so", GLOBAL)
        handle = group.dlopen("mixed.so", dl.RTLD_LAZY)
        group.dlopen("late.so", GLOBAL)
        f4 = group.dlsym(wide_handle, "f4").address
        assert answers(program, handle, ["call_f9", "call_late", "address", "distance"]) == [9, 77, f4, 4]
        assert "wide.so" in str(program.explain("f9", handle))


def test_a_library_with_a_table_of_its_own() -> None:
    """The functions of a library with a table of its own are imported all the same, not what is at their numbers elsewhere."""
    private = library("(table 4 funcref)", '(func $p (export "p") (result i32) i32.const 5)')
    with linker({"private.so": private, "user.so": user("p"), "wide.so": wide("f", 9)}) as program:
        group = program.main_group
        group.dlopen("wide.so", GLOBAL)
        group.dlopen("private.so", GLOBAL)
        assert answers(program, group.dlopen("user.so"), ["call_p"]) == [5]
