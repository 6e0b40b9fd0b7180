"""Instances whose imports are found by position: functions of a table, names, numbers, exports; for engines that take lists."""

from __future__ import annotations

from typing import Any

import pytest

from dl.engine.import_list import CHUNK, FEW, ImportList, TableFunctions
from dl.engine.protocol import Engine
from dl.errors import InstantiationError
from dl.wasm.types import FuncType
from tests.support.engines import NoBoundary
from tests.support.modules import module

GET = FuncType((), ("i32",))


def table_of(length: int, *, others: bool = False) -> bytes:
    """A table whose function at an index returns that index, and what reads it; with holes at multiples of 10, if asked for."""
    functions = "".join(f"(func $f{n} (result i32) i32.const {n})" for n in range(length))
    elements = "".join(f"(elem (i32.const {n}) $f{n})" for n in range(length) if not others or n % 10)
    reads = " ".join(f"(table.get $t (i32.add (local.get 0) (i32.const {n})))" for n in range(CHUNK))
    reader = f'(func (export "read") (param i32) (result {"funcref " * CHUNK}) {reads})'
    return module(f'(table $t (export "t") {length} funcref)', functions, elements, reader)


def taker(functions: int, *more: str) -> bytes:
    """Imports functions, and what more is given; `get N` returns what function N does."""
    imports = "".join(f'(import "x" "f{n}" (func $f{n} (result i32)))' for n in range(functions))
    gets = "".join(f'(func (export "get{n}") (result i32) call $f{n})' for n in range(functions))
    return module(imports, *more, gets)


@pytest.fixture
def store(engine: Engine) -> Any:
    if not engine.capabilities.import_lists:
        pytest.skip("the engine has no import lists")
    return engine.new_store(engine.host_functions(NoBoundary()))


def with_table(engine: Engine, store: Any, length: int, *, others: bool = False) -> None:
    instance = store.instantiate(engine.compile(table_of(length, others=others)), "table")
    store.read_table_by(instance, "t", "read")


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 100])
def test_functions_come_from_the_table(engine: Engine, store: Any, length: int) -> None:
    """Each import is the function at its index, in any order, whatever chunk it is in and wherever the table ends."""
    with_table(engine, store, length)
    indices = [(7 * n + 3) % length for n in range(min(length, 40))]
    base = min(indices)
    functions = TableFunctions(range(len(indices)), [index - base for index in indices])
    imports = ImportList(len(indices), placed=((functions, base),))
    instance = store.instantiate_listed(engine.compile(taker(len(indices))), "taker", imports)

    assert [instance.function(f"get{n}", GET)() for n in range(len(indices))] == indices


def test_all_kinds_of_places_together(engine: Engine, store: Any) -> None:
    """Functions of two runs, an offered one, one of the generated instance, and numbers, at positions of every order."""
    with_table(engine, store, 64)
    store.offer_instance("m", store.instantiate(engine.compile(table_of(1)), "m"))
    generated = store.instantiate(
        engine.compile(
            module('(global (export "n") i32 (i32.const 5))', '(func (export "f") (result i32) i32.const 6)')
        ),
        "generated",
    )
    code = engine.compile(
        module(
            '(import "x" "a" (func $a (result i32)))', '(import "x" "b" (global $b i32))',
            '(import "x" "c" (func $c (result i32)))', '(import "x" "d" (global $d (mut i32)))',
            '(import "x" "e" (global $e i32))', '(import "x" "f" (func $f (result i32)))',
            '(import "x" "g" (table 1 funcref))',
            """(func (export "get") (result i32) (global.set $d (i32.add (global.get $d) (i32.const 1000)))
               call $a call $c i32.add call $f i32.add global.get $b i32.add global.get $d i32.add global.get $e i32.add)""",
        )
    )  # fmt: skip
    imports = ImportList(
        7,
        placed=((TableFunctions([0], [40]), 0), (TableFunctions([2], [1]), 30)),
        named=((6, "m", "t"),),
        numbers=((1, False, 100_000), (3, True, 0xFFFFFFFF)),
        generated=((4, "n"), (5, "f")),
    )
    for _ in range(2):
        instance = store.instantiate_listed(code, "taker", imports, generated)
        assert instance.function("get", GET)() == 40 + 31 + 6 + 100_000 + 999 + 5


@pytest.mark.parametrize("length", [20, 60])
def test_an_element_without_a_function_is_an_error(engine: Engine, store: Any, length: int) -> None:
    """A null is refused before the engine sees it, and so is an index beyond the table; the store is as before."""
    with_table(engine, store, length, others=True)
    code = engine.compile(taker(2))
    for index in (10, length + 1, length + 2 * CHUNK):
        imports = ImportList(2, placed=((TableFunctions([0, 1], [3, index]), 0),))
        with pytest.raises(InstantiationError, match="no function for import 1"):
            store.instantiate_listed(code, "taker", imports)
    imports = ImportList(2, placed=((TableFunctions([0, 1], [3, 11]), 0),))
    assert store.instantiate_listed(code, "taker", imports).function("get1", GET)() == 11


def test_a_function_of_the_host_comes_from_the_table(engine: Engine, store: Any) -> None:
    """One that a module imports and puts into its table is imported from there by another one, and called with arguments."""
    host = engine.host_functions(NoBoundary())
    unary = FuncType(("i32",), ("i32",))
    host.define("env", "twice", unary, lambda n: 2 * n, blocking=False)
    own = engine.new_store(host)
    reads = " ".join(f"(table.get $t (i32.add (local.get 0) (i32.const {n})))" for n in range(CHUNK))
    placer = module(
        '(import "env" "twice" (func $twice (param i32) (result i32)))',
        f'(table $t (export "t") {2 * CHUNK} funcref) (elem (i32.const 3) $twice)',
        f'(func (export "read") (param i32) (result {"funcref " * CHUNK}) {reads})',
    )
    own.read_table_by(own.instantiate(engine.compile(placer), "placer"), "t", "read")
    code = engine.compile(
        module(
            '(import "x" "f" (func $f (param i32) (result i32)))',
            '(func (export "get") (param i32) (result i32) (call $f (local.get 0)))',
        )
    )
    imports = ImportList(1, placed=((TableFunctions([0], [3]), 0),))
    for number in (4, 5):
        instance = own.instantiate_listed(code, "taker", imports)
        assert instance.function("get", unary)(number) == 2 * number


@pytest.mark.parametrize("imports", [FEW, FEW + 1])
def test_a_list_needs_a_reader_or_not(engine: Engine, store: Any, imports: int) -> None:
    """A store that has no reader says for which lists it needs one; what it says is enough to instantiate."""
    many = ImportList(imports, placed=((TableFunctions(range(imports), range(imports)), 0),))
    tables = store.instantiate(engine.compile(table_of(CHUNK)), "table")
    store.read_table_by(tables, "t", None)
    if store.lacks_reader(many):
        assert imports > FEW
        store.read_table_by(tables, "t", "read")
        assert not store.lacks_reader(many)
    instance = store.instantiate_listed(engine.compile(taker(imports)), "taker", many)
    assert instance.function(f"get{imports - 1}", GET)() == imports - 1


def test_a_table_that_is_not_there_is_an_error(engine: Engine, store: Any) -> None:
    """A table's name that nothing has, or that is another kind of export, is a KeyError."""
    instance = store.instantiate(engine.compile(table_of(1)), "table")
    for name in ("nothing", "read"):
        with pytest.raises(KeyError):
            store.read_table_by(instance, name, None)


def test_a_list_that_lacks_an_import_is_an_error(engine: Engine, store: Any) -> None:
    """Each import is in the list once; the generated instance that lacks an export is named by it."""
    with_table(engine, store, CHUNK)
    generated = store.instantiate(
        engine.compile(module('(global (export "n") i32 (i32.const 5))')), "generated"
    )
    code = engine.compile(module('(import "x" "n" (global i32))'))
    with pytest.raises(InstantiationError, match="m"):
        store.instantiate_listed(code, "taker", ImportList(1, generated=((0, "m"),)), generated)
    store.instantiate_listed(code, "taker", ImportList(1, generated=((0, "n"),)), generated)


def test_what_does_not_fit_is_an_error(engine: Engine, store: Any) -> None:
    """A function of another type, a name that is unknown, and a list of another length are refused."""
    with_table(engine, store, CHUNK)
    other = engine.compile(module('(import "x" "f" (func (param i64)))'))
    one = TableFunctions([0], [1])
    refused = [
        (other, ImportList(1, placed=((one, 0),))),
        (other, ImportList(1, named=((0, "m", "f"),))),
        (engine.compile(taker(2)), ImportList(1, placed=((one, 0),))),
    ]
    for code, imports in refused:
        with pytest.raises(InstantiationError):
            store.instantiate_listed(code, "taker", imports)


def test_a_name_means_what_was_defined_last(engine: Engine, store: Any) -> None:
    """Also after it was looked up before."""
    code = engine.compile(
        module('(import "x" "n" (global $n i32))', '(func (export "get") (result i32) global.get $n)')
    )
    imports = ImportList(1, named=((0, "m", "n"),))
    for value in (1, 2):
        store.define_number("m", "n", value)
        assert store.instantiate_listed(code, "taker", imports).function("get", GET)() == value
