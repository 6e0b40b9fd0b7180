"""Main modules and libraries that import from ordinary modules by name."""

from __future__ import annotations

from pathlib import Path

import pytest

import dl
from tests.support.modules import (
    CALL_POINTER,
    MEMORY,
    TABLE,
    got,
    imports,
    library,
    module,
    pie,
    reads,
    returns,
    static,
)

COUNTER = module(
    "(global $n (mut i32) (i32.const 0))", '(memory (export "memory") 1)', '(global (export "limit") i32 (i32.const 40))',
    '(func (export "next") (result i32) (global.set $n (i32.add (global.get $n) (i32.const 1))) (global.get $n))',
)  # fmt: skip
CALLS = '(func (export "call") (result i32) (i32.add (call $next) (global.get $limit)))'
NEEDS = (imports("next", namespace="counter"), '(import "counter" "limit" (global $limit i32))', CALLS)


@pytest.mark.parametrize("kind", ["static", "pie"])
def test_a_main_module_and_a_library_import_from_one_module(tmp_path: Path, kind: str) -> None:
    """Both get the functions and constants of the one instance of a name; its memory stays its own."""
    (tmp_path / "counter.wasm").write_bytes(COUNTER)
    main = static(*NEEDS) if kind == "static" else pie(*NEEDS, '(func (export "_start"))')
    with dl.Linker(main, module_path=[tmp_path], cache=False, stack_size=1024) as linker:
        group = linker.main_group
        assert group.dlsym(dl.MAIN_HANDLE, "call")() == 41
        handle = group.dlopen(library(MEMORY, *NEEDS))
        assert group.dlsym(handle, "call")() == 42
        assert linker.find("counter") is not None
        instance = linker.instantiate(module(*NEEDS))
        assert instance["call"]() == 43


def test_a_registered_instance_serves_a_library() -> None:
    """What is registered later serves libraries that are opened later; a type that does not fit names the instance."""
    with dl.Linker(None, cache=False) as linker:
        group = linker.main_group
        needs = library(MEMORY, imports("f", namespace="late"), '(func (export "g") (result i32) call $f)')
        with pytest.raises(dl.UnresolvedSymbolsError, match=r"late\.f"):
            group.dlopen(needs)
        linker.register("late", linker.instantiate(module(returns("f", 6)), name="the late one"))
        assert group.dlsym(group.dlopen(needs), "g")() == 6
        with pytest.raises(dl.ImportTypeError, match="the late one"):
            group.dlopen(library(MEMORY, imports("f", "(result i64)", namespace="late")))


def test_a_library_gets_it_in_every_thread() -> None:
    """Threads that come before and after a library that imports from a module have both."""
    constant = module(returns("f", 9))
    with dl.Linker(
        None, cache=False, memory=dl.MemoryType(1, 512, shared=True), modules={"m": constant}
    ) as linker:
        group = linker.main_group
        memory = '(import "env" "memory" (memory 0 65536 shared))'
        needs = library(memory, imports("f", namespace="m"), '(func (export "g") (result i32) call $f)')
        handle = group.dlopen(needs)
        assert group.dlsym(handle, "g")() == 9
        assert linker.spawn(lambda own: own.dlsym(handle, "g")()).join(30) == 9


def test_a_main_module_keeps_its_memory_the_programs() -> None:
    """A main module that imports its memory from another module would get another one in silence: it is refused."""
    main = module('(import "counter" "memory" (memory 1))', returns("f", 1))
    with pytest.raises(dl.UnsupportedModuleError, match=r"Linker\(None"):
        dl.Linker(main, modules={"counter": COUNTER}, cache=False)
    with dl.Linker(None, modules={"counter": COUNTER}, cache=False) as linker:
        assert linker.instantiate(main).dependencies["counter"]["memory"].pages == 1


def test_a_dependency_that_fails_undoes_the_load() -> None:
    """A module that traps at its start fails the library's load, which leaves nothing behind."""
    traps = module("(func $s unreachable)", "(start $s)", returns("f", 1))
    with dl.Linker(None, cache=False, modules={"bad": traps}) as linker:
        before = linker.statistics()
        with pytest.raises(dl.InitializationError, match="unreachable"):
            linker.main_group.dlopen(library(MEMORY, imports("f", namespace="bad")))
        assert linker.statistics() == before
        assert [m.name for m in linker.modules] == []


def test_a_library_passes_a_modules_function_on() -> None:
    """A library that exports again what it imports from a module: the function has one address, which calls reach."""
    passes = library(MEMORY, imports("next", namespace="counter"), '(export "again" (func $next))')
    takes = library(MEMORY, got("again", "func"), TABLE, reads("address", "got_func_again"), CALL_POINTER)
    with dl.Linker(
        None, modules={"counter": COUNTER}, cache=False, libraries={"passes.so": passes}
    ) as linker:
        group = linker.main_group
        handle = group.dlopen("passes.so", dl.DlFlags.NOW | dl.DlFlags.GLOBAL)
        again = group.dlsym(handle, "again")
        assert again() == 1
        taker = group.dlopen(takes)
        address = group.dlsym(taker, "address")()
        assert address == again.address
        assert group.dlsym(taker, "call_pointer")(address) == 2


def test_libraries_share_an_instance_whatever_isolate_says() -> None:
    """Two libraries have one instance of a name; instances that are made from Python each have their own."""
    with dl.Linker(None, modules={"counter": COUNTER}, cache=False, isolate=True) as linker:
        group = linker.main_group
        first, second = (
            group.dlsym(group.dlopen(library(MEMORY, *NEEDS, returns(n, 1))), "call") for n in ("a", "b")
        )
        assert (first(), second()) == (41, 42)
        assert [linker.instantiate(module(*NEEDS))["call"]() for _ in range(2)] == [41, 41]


def test_a_library_of_threads_cannot_import_what_changes() -> None:
    """A mutable global of an instance would be another one in each thread: a library that imports one is refused."""
    variable = module('(global (export "g") (mut i32) (i32.const 1))')
    needs = library('(import "env" "memory" (memory 0 65536 shared))', '(import "v" "g" (global (mut i32)))')
    with dl.Linker(
        None, cache=False, memory=dl.MemoryType(1, 512, shared=True), modules={"v": variable}
    ) as linker:
        with pytest.raises(dl.UnsupportedModuleError, match=r"global v\.g, which changes"):
            linker.main_group.dlopen(needs)
