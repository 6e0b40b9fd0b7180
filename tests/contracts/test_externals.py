"""Externals as objects: what an engine that has them must do; see `Capabilities.externals` and `Capabilities.references`."""

from __future__ import annotations

import _thread
import functools
import gc
import signal
import weakref
from typing import Any

import pytest

from dl.engine.protocol import Engine
from dl.engine.values import Reference
from dl.errors import EngineError, InstantiationError, TrapError, ValueConversionError
from dl.wasm.types import FuncType, GlobalType, Limits, MemoryType
from tests.support.engines import NoBoundary, compiled

GET = FuncType((), ("i32",))


@pytest.fixture(name="store")
def _store(engine: Engine) -> Any:
    if not engine.capabilities.externals:
        pytest.skip("the engine has no externals")
    return engine.new_store(engine.host_functions(NoBoundary()))


@pytest.fixture(name="referring")
def _referring(engine: Engine) -> Engine:
    if not engine.capabilities.references:
        pytest.skip("the engine's references do not cross into Python")
    return engine


EXPORTS = """(module
  (memory (export "memory") 1 3) (table (export "table") 2 4 funcref)
  (global (export "global") (mut i32) (i32.const 5)) (tag (export "tag") (param i32))
  (func (export "function") (result i32) (global.get 0)))"""
IMPORTS = """(module
  (import "" "" (tag (param i32))) (import "" "" (func $f (result i32))) (import "" "" (global (mut i32)))
  (import "" "" (table 2 4 funcref)) (import "" "" (memory 1 3))
  (export "memory" (memory 0)) (export "table" (table 0)) (export "global" (global 0)) (export "tag" (tag 0))
  (export "function" (func $f)) (elem (i32.const 1) $own) (func $own (result i32) (i32.const 77))
  (func (export "set") (param i32) (global.set 0 (local.get 0))))"""
ORDER = ("tag", "function", "global", "table", "memory")


def test_a_list_of_externals_is_imported_in_order(engine: Engine, store: Any) -> None:
    """An instance takes a list, whatever the names of its imports, and what it exports again are the same externals."""
    first = store.instantiate(compiled(engine, EXPORTS), "first")
    given = [first.external(name) for name in ORDER]
    second = store.instantiate(compiled(engine, IMPORTS), "second", given)
    again = [second.external(name) for name in ORDER]
    assert [one.key for one in again] == [one.key for one in given]
    assert len({one.key for one in given}) == len(given)
    assert second.external("set").key not in {one.key for one in given}

    second.function("set", FuncType(("i32",), ()))(9)
    assert first.external("global").get() == 9
    assert first.function("function", GET)() == 9
    assert first.external("table").get(1).callable(GET)() == 77
    assert second.external("memory").grow(1) == 1
    assert first.memory("memory").data_size() == 2 * 65536


def test_what_does_not_fit_is_refused(engine: Engine, store: Any) -> None:
    """A list that is too short or of other types is an InstantiationError."""
    first = store.instantiate(compiled(engine, EXPORTS), "first")
    code = compiled(engine, IMPORTS)
    for given in ([], [first.external("memory")] * 5):
        with pytest.raises(InstantiationError):
            store.instantiate(code, "second", given)


def test_what_is_importable_by_name_is_found(engine: Engine) -> None:
    """A store gives out a host function, a memory and an instance's exports by namespace and name."""
    if not engine.capabilities.externals:
        pytest.skip("the engine has no externals")
    host = engine.host_functions(NoBoundary())
    store: Any = engine.new_store(host)
    host.define("host", "seven", GET, lambda: 7)
    store.define_memory(
        "host", "memory", store.new_memory(MemoryType(Limits(1, None, shared=False, is64=False)))
    )
    store.define_instance("first", store.instantiate(compiled(engine, EXPORTS), "first"))

    assert store.external("host", "seven").callable(GET)() == 7
    assert store.external("host", "seven").key == store.external("host", "seven").key
    assert store.external("host", "memory").data_size() == 65536
    assert store.external("first", "global").get() == 5
    for namespace, name in (("first", "nothing"), ("nothing", "global")):
        with pytest.raises(KeyError):
            store.external(namespace, name)


def test_globals_hold_every_type_of_number(engine: Engine, store: Any) -> None:
    """A global of the host's is read, set and bounded by its type; one that is immutable cannot be set."""
    vector = bytes(range(16))
    for kind, first, second, wrong in (
        ("i32", -1, 1 << 31, 1 << 32),
        ("i64", 1 << 63, 5, 1.5),
        ("f32", 0.5, float("inf"), "x"),
        ("f64", 0.1, -0.0, None),
        ("v128", vector, bytes(16), b"short"),
    ):
        made = store.new_global(GlobalType(kind, mutable=True), first)
        top = {"i32": 1 << 31, "i64": 1 << 63}.get(kind)

        def signed(value: Any, top: Any = top) -> Any:
            return value - 2 * top if top and value >= top else value

        assert made.get() == signed(first)
        made.set(second)
        assert made.get() == signed(second)
        with pytest.raises(ValueConversionError):
            made.set(wrong)
        with pytest.raises(EngineError):
            store.new_global(GlobalType(kind, mutable=False), first).set(second)


TABLES = """(module
  (table (export "functions") 2 5 funcref) (table (export "objects") 1 externref)
  (func (export "get") (param i32) (result externref) (table.get 1 (local.get 0)))
  (func (export "call") (param i32) (result i32) (call_indirect (result i32) (local.get 0)))
  (func (export "pass") (param externref funcref i32) (result i32 funcref externref)
    (local.get 2) (local.get 1) (local.get 0))
  (func $f (export "f") (result i32) (i32.const 3)) (elem (i32.const 0) $f))"""
OPAQUE = {
    "exnref": """(module (tag $t) (func (export "none") (result exnref) (ref.null exn))
      (func (export "some") (result exnref)
        (block $caught (result exnref) (try_table (catch_all_ref $caught) (throw $t)) unreachable)))""",
    "anyref": """(module (type $s (struct)) (func (export "some") (result anyref) (struct.new $s))
      (func (export "none") (result anyref) (ref.null any)))""",
}


def test_references_cross_into_python_and_back(referring: Engine, store: Any) -> None:
    """Functions, objects and null pass tables and calls unchanged."""
    instance = store.instantiate(compiled(referring, TABLES), "tables")
    functions, objects = instance.external("functions"), instance.external("objects")
    thing = object()
    f = instance.external("f")
    passing = instance.external("pass").callable(
        FuncType(("externref", "funcref", "i32"), ("i32", "funcref", "externref"))
    )
    number, function, same = passing(thing, f, 5)
    assert (number, function.key, same) == (5, f.key, thing)
    assert passing(None, None, -1) == (-1, None, None)
    assert f.type() == GET

    assert functions.get(1) is None
    functions.set(1, f)
    assert functions.get(0).key == functions.get(1).key == f.key
    assert instance.function("call", FuncType(("i32",), ("i32",)))(1) == 3
    objects.set(0, thing)
    assert instance.external("get").callable(FuncType(("i32",), ("externref",)))(0) is thing
    with pytest.raises(IndexError):
        objects.get(1)
    assert (objects.size(), objects.grow(2, thing), objects.get(2)) == (1, 1, thing)
    assert (functions.grow(4, None), functions.grow(3, f), functions.size()) == (None, 2, 5)
    with pytest.raises(ValueConversionError):
        functions.set(0, thing)
    with pytest.raises(IndexError):
        functions.set(99, None)


@pytest.mark.parametrize("kind", OPAQUE)
def test_what_python_cannot_hold_is_seen_not_to_be_null(referring: Engine, store: Any, kind: str) -> None:
    """A reference to an exception or a struct comes out as the top of its hierarchy, and null as None."""
    try:
        code = compiled(referring, OPAQUE[kind])
    except EngineError as refusal:
        pytest.skip(f"the engine has no {kind}: {refusal}")
    instance = store.instantiate(code, "opaque")
    assert instance.external("some").callable(FuncType((), (kind,)))() == Reference(kind)
    assert instance.external("none").callable(FuncType((), (kind,)))() is None


def test_host_functions_take_and_return_references(referring: Engine) -> None:
    """A Python function gets objects and functions, calls one, and returns others; what it raises reaches the caller."""
    host = referring.host_functions(NoBoundary())
    store: Any = referring.new_store(host)

    def work(thing: object, function: object, mode: int) -> object:
        if mode == 2:
            raise LookupError("no")
        return (function.callable(GET)(), thing) if mode == 0 else thing  # type: ignore[attr-defined]

    kind = FuncType(("externref", "funcref", "i32"), ("i32", "externref"))
    host.define("host", "work", kind, work)
    text = """(module (import "host" "work" (func $work (param externref funcref i32) (result i32 externref)))
      (func $f (result i32) (i32.const 8)) (elem declare func $f)
      (func (export "run") (param externref i32) (result i32 externref)
        (call $work (local.get 0) (ref.func $f) (local.get 1))))"""
    run = (
        store.instantiate(compiled(referring, text), "m")
        .external("run")
        .callable(FuncType(("externref", "i32"), kind.results))
    )
    thing = object()
    assert run(thing, 0) == (8, thing)
    with pytest.raises(LookupError):
        run(thing, 2)
    with pytest.raises(ValueConversionError):
        run(thing, 1)
    with pytest.raises(ValueConversionError):
        run(thing)


def test_a_trap_leaves_nothing_of_the_arguments(referring: Engine, store: Any) -> None:
    """Objects that were passed are free once the store is closed, also after a trap and after ten thousand calls."""
    text = '(module (func (export "f") (param externref i32) (if (local.get 1) (then unreachable))))'
    f = (
        store.instantiate(compiled(referring, text), "m")
        .external("f")
        .callable(FuncType(("externref", "i32"), ()))
    )

    class Thing:
        pass

    thing = Thing()
    seen = weakref.ref(thing)
    for _ in range(10_000):
        f(thing, 0)
    with pytest.raises(TrapError, match="unreachable"):
        f(thing, 1)
    store.close()
    del thing
    gc.collect()
    assert seen() is None


def test_a_signal_outlives_the_collector(referring: Engine, store: Any) -> None:
    """A signal that arrives while the engine's collector lets objects go is raised in the program."""
    objects = store.instantiate(compiled(referring, TABLES), "tables").external("objects")

    class Thing:
        pass

    class Interrupted(BaseException):
        pass

    def handle(*_: object) -> None:
        raise Interrupted

    # In the middle of what is let go, and without Python code, which would handle the signal at once.
    interrupt = functools.partial(next, map(_thread.interrupt_main, [signal.SIGUSR1]))
    former = signal.signal(signal.SIGUSR1, handle)
    try:
        for _ in range(100):
            objects.set(0, Thing())
        thing = Thing()
        seen = weakref.ref(thing, interrupt)
        objects.set(0, thing)
        del thing
        with pytest.raises(Interrupted):
            any(objects.set(0, Thing()) for _ in range(100_000))
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert seen() is None


def test_a_function_of_another_store_is_refused(referring: Engine, store: Any) -> None:
    """A store takes functions of its own only."""
    other: Any = referring.new_store(referring.host_functions(NoBoundary()))
    code = compiled(referring, TABLES)
    mine, foreign = store.instantiate(code, "mine"), other.instantiate(code, "foreign")
    with pytest.raises(ValueConversionError):
        mine.external("functions").set(0, foreign.external("f"))


def test_a_host_function_is_called_through_a_table(engine: Engine) -> None:
    """A function of the host that no module imports is called by guest code that finds it in a table, and is itself."""
    if not engine.capabilities.externals:
        pytest.skip("the engine has no externals")
    host = engine.host_functions(NoBoundary())
    kind = FuncType(("i64", "f32", "i32"), ("f64", "i32"))
    host.define("host", "mix", kind, lambda a, b, c: (a + b, c + 1))
    store: Any = engine.new_store(host)
    text = """(module (table (export "t") 2 2 funcref) (type $mix (func (param i64 f32 i32) (result f64 i32)))
      (func (export "call") (param i32) (result f64 i32)
        (call_indirect (type $mix) (i64.const 4) (f32.const 0.5) (i32.const 6) (local.get 0))))"""
    instance = store.instantiate(compiled(engine, text), "caller")
    mix, table = store.external("host", "mix"), instance.external("t")
    table.set(1, mix)
    assert instance.function("call", FuncType(("i32",), ("f64", "i32")))(1) == (4.5, 7)
    assert table.get(1).key == mix.key
    assert table.get(1).callable(kind)(1, 2, 3) == (3.0, 4)
    passed_on = """(module (import "host" "mix" (func $f (param i64 f32 i32) (result f64 i32))) (export "f" (func $f)))"""
    again = store.instantiate(compiled(engine, passed_on), "again").external("f")
    assert (again.key, again.type()) == (mix.key, kind)


def test_objects_stay_as_long_as_something_refers_to_them(referring: Engine, store: Any) -> None:
    """Of ten thousand objects, those in a table, a global and an exception are found again."""
    text = """(module (table (export "t") 3 externref) (global (export "g") (mut externref) (ref.null extern))
      (tag $e (param externref)) (global $kept (mut exnref) (ref.null exn))
      (func (export "throw") (param externref)
        (block $caught (result externref exnref)
          (try_table (catch_ref $e $caught) (throw $e (local.get 0))) unreachable)
        (global.set $kept) drop)
      (func (export "thrown") (result externref)
        (block $caught (result externref) (try_table (catch $e $caught) (throw_ref (global.get $kept))) unreachable)))"""
    instance = store.instantiate(compiled(referring, text), "keeper")
    table, held = instance.external("t"), instance.external("g")
    throw = instance.external("throw").callable(FuncType(("externref",), ()))
    first, second, third = object(), object(), object()
    table.set(2, first)
    held.set(second)
    throw(third)
    for number in range(10_000):
        table.set(0, [number])
    assert (table.get(0), table.get(1), table.get(2) is first, held.get() is second) == (
        [9999],
        None,
        True,
        True,
    )
    assert instance.external("thrown").callable(FuncType((), ("externref",)))() is third
