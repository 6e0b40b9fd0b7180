"""Instances that are offered: a store learns their exports when something imports one, and nobody can tell."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from dl.engine.protocol import Engine
from dl.errors import InstantiationError
from dl.wasm.types import FuncType
from tests.support.engines import NoBoundary
from tests.support.modules import module

GET = FuncType((), ("i32",))


def gives(number: int, *names: str) -> bytes:
    return module(*(f'(func (export "{name}") (result i32) i32.const {number})' for name in names))


def takes(*imported: tuple[str, str]) -> bytes:
    imports = (
        f'(import "{space}" "{name}" (func $f{n} (result i32)))' for n, (space, name) in enumerate(imported)
    )
    total = "call $f0" + "".join(f" call $f{n} i32.add" for n in range(1, len(imported)))
    return module(*imports, f'(func (export "get") (result i32) {total})')


@pytest.fixture
def store(engine: Engine) -> Any:
    return engine.new_store(engine.host_functions(NoBoundary()))


def offered(engine: Engine, store: Any, namespace: str, number: int, *names: str) -> None:
    store.offer_instance(namespace, store.instantiate(engine.compile(gives(number, *names)), namespace))


def linked(engine: Engine, store: Any, *imported: tuple[str, str]) -> int:
    instance = store.instantiate(engine.compile(takes(*imported)), "taker")
    result: int = instance.function("get", GET)()
    return result


def test_what_is_offered_is_importable(engine: Engine, store: Any) -> None:
    """From several instances at once, again, and beside what is defined."""
    for number in range(1, 5):
        offered(engine, store, f"m{number}", number, "f", "g")
    store.define_instance("defined", store.instantiate(engine.compile(gives(100, "f")), "defined"))

    assert linked(engine, store, ("m1", "f"), ("defined", "f"), ("m3", "g"), ("m2", "f")) == 106
    assert linked(engine, store, ("m3", "f")) == 3


def test_the_last_one_of_a_name_counts(engine: Engine, store: Any) -> None:
    """Whether anybody has imported from the one before or not: nobody gets a function of an instance that was replaced."""
    offered(engine, store, "m1", 1, "f")
    offered(engine, store, "m1", 2, "f")
    assert linked(engine, store, ("m1", "f")) == 2
    offered(engine, store, "m1", 3, "f")
    assert linked(engine, store, ("m1", "f")) == 3


@pytest.mark.parametrize("count", [1, 5, 6, 7, 20])
def test_some_of_many_exports(engine: Engine, store: Any, count: int) -> None:
    """However many of an instance's exports are imported, by one instance or by several; then those of another in its place."""
    names = [f"f{n}" for n in range(20)]
    for number in (1, 2):
        offered(engine, store, "m1", number, *names)
        assert linked(engine, store, *(("m1", name) for name in names[:count])) == number * count
        for name in names[:count]:
            assert linked(engine, store, ("m1", name), ("m1", "f19")) == 2 * number
        with pytest.raises(InstantiationError, match="f20"):
            linked(engine, store, ("m1", "f20"))


def test_what_nobody_offers_is_an_error(engine: Engine, store: Any) -> None:
    """A namespace or a name that is unknown, also of an instance that was offered; and the store is as before."""
    offered(engine, store, "m1", 1, "f")
    for unknown in (("m2", "f"), ("m1", "g"), ("m1", "")):
        with pytest.raises(InstantiationError):
            linked(engine, store, unknown)
    assert linked(engine, store, ("m1", "f")) == 1


def test_a_start_function_that_traps_runs_once(engine: Engine, store: Any) -> None:
    """What looks for an instance that is missing does not make another one twice."""
    counter = store.instantiate(
        engine.compile(
            module('(global $n (mut i32) (i32.const 0))', '(func (export "get") (result i32) global.get $n)',
                   '(func (export "more") global.get $n i32.const 1 i32.add global.set $n)')
        ),
        "counter",
    )  # fmt: skip
    store.offer_instance("m1", counter)
    offered(engine, store, "m2", 2, "f")
    trapping = module('(import "m1" "more" (func $more))', "(func $s call $more unreachable)", "(start $s)")
    for expected in (1, 2):
        with pytest.raises(Exception, match="unreachable"):
            store.instantiate(engine.compile(trapping), "trapping")
        assert counter.function("get", GET)() == expected


def test_what_is_offered_is_found_by_name(engine: Engine, store: Any) -> None:
    """Also where nothing has imported it."""
    if not engine.capabilities.externals:
        pytest.skip("the engine has no externals")
    offered(engine, store, "m1", 7, "f")

    assert store.external("m1", "f").callable(GET)() == 7


def test_an_offer_keeps_no_store(engine: Engine) -> None:
    """A store that is closed is freed with its last reference, whatever was offered in it."""
    if engine.name != "wasmtime":
        pytest.skip("only this engine's store keeps what it is offered")
    store: Any = engine.new_store(engine.host_functions(NoBoundary()))
    offered(engine, store, "m1", 1, "f")
    gc.collect()
    gc.disable()
    try:
        watch = weakref.ref(store)
        store.close()
        del store
        assert watch() is None
    finally:
        gc.enable()
