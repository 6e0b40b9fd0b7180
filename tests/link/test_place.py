"""Exported functions and their table indices: where they are put, by whom, and that nobody can tell the difference."""

from __future__ import annotations

import pytest

import dl
from dl.modules.symbols import PLACE, places_itself
from dl.wasm.module import parse_module
from tests.support.modules import (
    TABLE,
    TABLE_BASE,
    calls,
    imports,
    library,
    linker,
    module,
    pie,
    returns,
    static,
)

SHARED = dl.MemoryType(32, 256, shared=True)
CALL = '(type $get (func (result i32))) (func (export "call") (param i32) (result i32) local.get 0 call_indirect (type $get))'
OWN_TABLE = "(table 3 funcref)"
OF_ITS_OWN = f'(func (export "{PLACE}") (result i32) i32.const 77)'


@pytest.mark.parametrize(
    ("extra", "itself", "table_size"),
    [
        ((), True, 0),
        ((TABLE,), True, 0),
        ((TABLE, TABLE_BASE, "(elem (global.get $table_base) $f1)"), True, 1),
        ((OWN_TABLE,), False, 0),
        ((OF_ITS_OWN,), False, 0),
    ],
    ids=["no table", "the program's table", "elements of its own", "a table of its own", "the name is taken"],
)
@pytest.mark.parametrize("static_main", [False, True])
def test_every_exported_function_has_its_index(
    extra: tuple[str, ...], itself: bool, table_size: int, static_main: bool
) -> None:
    """In every group, also one that is made later, through pointers and by name, in both kinds of program."""
    functions = [f'(func $f{n} (export "f{n}") (result i32) i32.const {n})' for n in range(130)]
    wasm = library(*functions, *extra, table_size=table_size)
    assert places_itself(parse_module(wasm, "lib.so")) is itself
    main = static(CALL, table='(table (export "table") 1 funcref)') if static_main else pie(TABLE, CALL)
    with dl.Linker(main, libraries={"lib.so": wasm}) as program:
        group = program.main_group
        handle = group.dlopen("lib.so")
        call = group.dlsym(program.main, "call")
        for number in (0, 1, 64, 127, 128, 129):
            function = group.dlsym(handle, f"f{number}")
            assert isinstance(function, dl.GuestFunction)
            assert (function(), call(function.address)) == (number, number)
        addresses = {group.dlsym(handle, f"f{n}").address for n in range(130)}
        assert len(addresses) == 130
        if extra == (OF_ITS_OWN,):
            assert group.dlsym(handle, PLACE)() == 77


def test_groups_place_the_same() -> None:
    """A thread that was there before, and one that comes later, find each function where it is."""
    libraries = {"lib.so": library(*(returns(f"f{n}", n) for n in range(200)))}
    with dl.Linker(pie(CALL, shared=True), libraries=libraries) as program:
        handle = program.main_group.dlopen("lib.so")
        addresses = {n: program.main_group.dlsym(handle, f"f{n}").address for n in range(0, 200, 33)}

        def look(group: dl.InstanceGroup) -> dict[int, int]:
            call = group.dlsym(program.main, "call")
            return {n: call(address) for n, address in addresses.items()}

        assert program.spawn(look).join() == {n: n for n in addresses}


def test_a_library_that_takes_the_place_of_another_is_the_one_that_is_bound() -> None:
    """A seat that is used again: what imports from the new library never reaches the one that had the seat before."""
    with linker({}) as program:
        program.program.state.seats._most_free = 0  # a seat is given to the next one that comes
        group, seats = program.main_group, set()
        for number in range(6):
            wasm = library(returns("f", number))
            handles = [group.dlopen(wasm, dl.RTLD_NOW | dl.RTLD_GLOBAL, name=f"def{number}.so")]
            seats.add(program.program.state.modules[dl.ModuleHandle(handles[0])].seat)
            if number % 2:  # every other one is imported from
                handles.append(group.dlopen(library(imports("f"), calls("g", "f")), name=f"use{number}.so"))
                assert group.dlsym(handles[1], "g")() == number
            for handle in reversed(handles):
                group.dlclose(handle)
        assert len(seats) < 4


def test_no_export_costs_a_step_of_python() -> None:
    """Opening a library makes no symbol of what nobody looks up, whatever it exports."""
    with linker({"lib.so": library(*(returns(f"f{n}", n) for n in range(300)))}) as program:
        group = program.main_group
        handle = group.dlopen("lib.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
        symbols = program.program.state.modules[dl.ModuleHandle(handle)].symbols
        assert not symbols._made

        assert group.dlsym(handle, "f7")() == 7
        assert set(symbols._made) == {"f7"}


def test_a_main_module_with_functions_of_that_name_runs() -> None:
    """A static program without a table that can grow places nothing, and one without functions has nothing to place."""
    wasm = module('(memory (export "memory") 1)', OF_ITS_OWN, '(func (export "_start"))')
    with dl.Linker(wasm) as program:
        assert program.main_group.run() == 0
