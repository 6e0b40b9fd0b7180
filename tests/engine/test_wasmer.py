"""What is Wasmer's own: modules that are rewritten for interrupts, tables that cannot grow, stores inside each other."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import dl
from dl.engine import engine_named, known_engines
from dl.engine.protocol import Engine
from dl.errors import EngineError, InstantiationError, TrapError
from dl.wasm.types import FuncType
from tests.support.engines import NoBoundary, compiled, instantiated
from tests.support.modules import imports, library, module, returns

pytestmark = pytest.mark.skipif("wasmer" not in known_engines(), reason="wasix-dl-wasmer is not installed")

NOTHING, NUMBER, UNARY = FuncType((), ()), FuncType((), ("i32",)), FuncType(("i32",), ("i32",))


class Stop(BaseException):
    """What a handler raises."""


@pytest.fixture(name="engine")
def _engine() -> Any:
    return engine_named("wasmer")


@pytest.mark.parametrize(
    ("body", "checked"),
    [
        ("(func)", False),
        ("(func $f) (func (call $f))", False),
        ("(func $f (call $f))", False),
        ("(func $f) (func (call $f) (call $f))", True),
        ("(func (loop))", True),
        ("(func (block (loop (result i32) (i32.const 1)) (drop)))", True),
        ("(table 1 funcref) (func (call_indirect (i32.const 0)) (call_indirect (i32.const 0)))", True),
    ],
)
def test_only_code_that_may_compute_for_long_looks_for_interrupts(
    engine: Any, body: str, checked: bool
) -> None:
    """A loop, or a second call, brings checks; without interrupts no module has any."""
    assert compiled(engine, f"(module {body})").checked is checked  # type: ignore[attr-defined]
    assert not compiled(engine_named("wasmer", interrupts=False), f"(module {body})").checked  # type: ignore[attr-defined]


def test_what_places_and_binds_functions_has_no_checks() -> None:
    """Modules that are generated for a library whose imports are known pass calls on, and do not look for interrupts."""
    from dl.engine.wasmer.engine import WasmerEngine, WasmerModule

    seen: list[tuple[bool, bool]] = []

    class Recording(WasmerEngine):
        def compile(self, wasm: bytes) -> WasmerModule:
            code = super().compile(wasm)
            seen.append((b"dylink.0" in wasm, code.checked))
            return code

    uses = '(func (export "use") (result i32) (loop) (call $f))'
    libraries = {"a.so": library(returns("f", 1)), "b.so": library(imports("f"), uses)}
    with dl.Linker(None, memory=dl.MemoryType(2, 100), engine=Recording(), libraries=libraries) as linker:
        group = linker.main_group
        group.dlopen("a.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
        seen.clear()
        assert group.dlsym(group.dlopen("b.so", dl.RTLD_NOW), "use")() == 1

    assert [checked for given, checked in seen if given] == [True]
    assert [checked for given, checked in seen if not given] == [False] * (len(seen) - 1)


@pytest.mark.timeout(30)
def test_a_start_function_is_interrupted(engine: Any) -> None:
    """A start function that does not end is ended by the handler's exception, and the store can be used on."""
    store = engine.new_store(engine.host_functions(NoBoundary()))

    def stop() -> None:
        raise Stop

    store.on_interrupt(stop)
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.001):
            engine.interrupt()

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        with pytest.raises(Stop):
            store.instantiate(compiled(engine, "(module (func $f (loop $l (br $l))) (start $f))"), "start")
    finally:
        over.set()
        asker.join()
    store.on_interrupt(lambda: None)
    text = """(module (global $g (export "g") (mut i32) (i32.const 0)) (start $f)
      (func $f (loop) (global.set $g (i32.const 5))))"""
    assert store.instantiate(compiled(engine, text), "start").global_value("g") == 5


def test_an_interrupt_that_came_before_an_instance_reaches_it(engine: Any) -> None:
    """A store that was asked while it had no instance hears it in the first one; and one that handles, afterwards."""
    store = engine.new_store(engine.host_functions(NoBoundary()))
    heard: list[int] = []

    def handler() -> None:
        heard.append(len(heard))
        if len(heard) == 1:
            engine.interrupt()

    store.on_interrupt(handler)
    engine.interrupt()
    run = store.instantiate(compiled(engine, '(module (func (export "f") (loop)))'), "m").function(
        "f", NOTHING
    )
    run()
    run()
    run()

    assert heard == [0, 1]


@pytest.mark.parametrize("kind", ["(param i32)", "(result i32)"])
def test_a_start_function_has_no_values(engine: Any, kind: str) -> None:
    """A start function with parameters or results is refused, although the library makes an export of it."""
    body = "(i32.const 1)" if "result" in kind else ""
    with pytest.raises(EngineError, match="start function has parameters or results"):
        compiled(engine, f"(module (func $f {kind} {body}) (start $f))")


def test_64_bit_addresses_are_refused_by_name() -> None:
    """What has a memory or table of 64-bit addresses is refused by the linker, which says what the engine lacks."""
    with dl.Linker(None, engine="wasmer", cache=False) as linker:
        for body in ("(memory i64 1)", "(table i64 1 funcref)"):
            with pytest.raises(
                dl.UnsupportedModuleError, match="64-bit addresses, which engine wasmer lacks"
            ):
                linker.instantiate(module(body))
        with pytest.raises(dl.LinkerUsageError, match="^engine wasmer lacks 64-bit addresses$"):
            linker.new_memory(1, is64=True)


def test_objects_are_let_go(engine: Any) -> None:
    """A store keeps few of the objects that passed through its tables, in calls as well."""
    store = engine.new_store(engine.host_functions(NoBoundary()))
    text = '(module (table (export "t") 1 externref) (func (export "f") (param externref) (result externref) (local.get 0)))'
    instance = store.instantiate(compiled(engine, text), "m")
    passed, seen = instance.external("f").callable(FuncType(("externref",), ("externref",))), 0
    for number in range(5000):
        thing = [number]
        instance.external("t").set(0, thing)
        assert passed(thing) is thing
        seen = max(seen, len(store.objects))
    assert 900 < seen <= 1000


def test_names_of_the_library_are_reserved(engine: Any) -> None:
    """A module that exports a name which the library uses for itself is refused."""
    with pytest.raises(EngineError, match="which is reserved"):
        compiled(engine, '(module (func (export "\\01wasix-dl flag")))')


def test_private_exports_stay_private(engine: Any) -> None:
    """Other modules cannot import the flag and the table of an instance's checks."""
    store = engine.new_store(engine.host_functions(NoBoundary()))
    store.define_instance(
        "a", store.instantiate(compiled(engine, '(module (func (export "f") (loop)))'), "a")
    )
    for wanted in ('"\\01wasix-dl flag" (global (mut i32))', '"\\01wasix-dl table" (table 1 funcref)'):
        with pytest.raises(InstantiationError, match="unknown import"):
            store.instantiate(compiled(engine, f'(module (import "a" {wanted}))'), "thief")


def test_a_table_that_cannot_grow_is_one_table(engine: Any) -> None:
    """What others put into an exported table whose size is fixed is called by its owner; it does not grow; its type fits."""
    store = engine.new_store(engine.host_functions(NoBoundary()))
    owner = store.instantiate(
        compiled(
            engine,
            """(module (table 1 1 externref) (table (export "t") 2 2 funcref) (table $own 1 1 funcref)
              (elem (table $own) (i32.const 0) func $seven) (func $seven (result i32) (i32.const 7))
              (func (export "grow") (param i32) (result i32) (table.grow 1 (ref.null func) (local.get 0)))
              (func (export "call") (param i32) (result i32) (call_indirect 1 (result i32) (local.get 0)))
              (func (export "own") (result i32) (call_indirect $own (result i32) (i32.const 0))))""",
        ),
        "owner",
    )
    store.define_instance("owner", owner)
    placer = """(module (import "owner" "t" (table 2 2 funcref)) (elem (i32.const 1) $f)
      (func $f (result i32) (i32.const 33)))"""
    store.instantiate(compiled(engine, placer), "placer")

    assert owner.function("call", UNARY)(1) == 33
    assert owner.function("own", NUMBER)() == 7
    assert owner.function("grow", UNARY)(1) == -1
    with pytest.raises(TrapError, match="uninitialized"):
        owner.function("call", UNARY)(0)


def test_functions_keep_their_names(engine: Any) -> None:
    """A module's own names of functions are told in traps, whatever its name section says of the module."""
    text = (
        '(module $own_name (func $inner unreachable) (func $outer (export "f") (call $inner) (call $inner)))'
    )
    with pytest.raises(TrapError) as caught:
        instantiated(engine, text, "lib.so").function("f", NOTHING)()

    assert caught.value.frames == ("lib.so!inner", "lib.so!outer")


def test_names_of_functions_may_be_anything(engine: Any) -> None:
    """Names with line ends and NULs, which a guest may give its functions, do not confuse the frames of a trap."""
    names = b"\x01\x09\x01\0\x06a\nb\0c\x0b"
    wasm = bytes.fromhex("0061736d0100000001040160000003020100070501016600000a05010300000b")
    wasm += b"\0" + bytes([len(names) + 5]) + b"\x04name" + names
    store = engine.new_store(engine.host_functions(NoBoundary()))
    with pytest.raises(TrapError) as caught:
        store.instantiate(engine.compile(wasm), "odd.so").function("f", NOTHING)()

    assert caught.value.frames == ("odd.so!a?b?c\x0b",)


def test_a_stack_overflow_has_no_frames(engine: Any) -> None:
    """The engine tells no frames of a stack overflow; if it does, `docs/engine-wasmer.md` need not say so."""
    with pytest.raises(TrapError) as caught:
        instantiated(engine, '(module (func $f (export "f") (call $f)))').function("f", NOTHING)()

    assert (caught.value.reason, caught.value.frames) == ("stack overflow", ())


def test_stores_call_each_other(engine: Engine) -> None:
    """Guest code of one store calls another store's by the host, which calls back into the first, to any depth."""
    text = """(module (import "host" "other" (func $other (param i32) (result i32)))
      (func (export "f") (param i32) (result i32)
        (if (result i32) (local.get 0)
          (then (i32.add (local.get 0) (call $other (i32.sub (local.get 0) (i32.const 1)))))
          (else (i32.const 0)))))"""
    calls: list[Any] = []
    for number in range(2):
        host = engine.host_functions(NoBoundary())
        host.define("host", "other", UNARY, lambda n, number=number: calls[1 - number](n))
        calls.append(engine.new_store(host).instantiate(compiled(engine, text), "m").function("f", UNARY))

    assert calls[0](40) == 820


@pytest.mark.timeout(60)
def test_a_request_that_is_seen_is_handled_at_once(engine: Any) -> None:
    """From the check that sees a flag to the handler it takes less than a millisecond, however busy the machine is."""
    asked: list[float] = []
    heard: list[float] = []

    def ask() -> None:
        engine.interrupt()
        asked.append(time.perf_counter())

    host = engine.host_functions(NoBoundary())
    host.define("host", "ask", NOTHING, ask, blocking=False)
    store = engine.new_store(host)
    store.on_interrupt(lambda: heard.append(time.perf_counter()))
    text = '(module (import "host" "ask" (func $ask)) (func (export "f") (call $ask) (loop)))'
    run = store.instantiate(compiled(engine, text), "m").function("f", NOTHING)
    for _ in range(200):
        run()

    assert len(heard) == len(asked) == 200
    assert min(after - before for before, after in zip(asked, heard, strict=True)) < 1e-3


THROWER = """(module (tag $t (param i64)) (global $kept (mut exnref) (ref.null exn))
  (func (export "many") (param i32) (result i32)
    (loop $again
      (block $caught (result i64) (try_table (catch $t $caught) (throw $t (i64.const 7))) (i64.const 0)) (drop)
      (br_if $again (local.tee 0 (i32.sub (local.get 0) (i32.const 1))))) (local.get 0))
  (func (export "keep") (param i32) (result i32)
    (block $caught (result i64 exnref) (try_table (catch_ref $t $caught) (throw $t (i64.const 9))) (unreachable))
    (global.set $kept) (drop) (local.get 0))
  (func (export "again") (param i32) (result i32)
    (i32.wrap_i64 (block $caught (result i64) (try_table (catch $t $caught) (throw_ref (global.get $kept))) (i64.const 0)))))"""
UNARY = FuncType(("i32",), ("i32",))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the resident size from /proc")
def test_exceptions_are_let_go_between_calls(engine: Any) -> None:
    """The engine keeps what was thrown; a store whose guest code has returned does not, as long as nothing refers to one."""
    instance = instantiated(engine, THROWER)
    many = instance.function("many", UNARY)
    for _ in range(3):
        many(1000)
    before = resident_bytes()
    for _ in range(40):
        many(1000)  # 440 bytes each, were they kept: 17 MiB
    assert resident_bytes() - before < 4 << 20


def test_an_exception_that_a_global_holds_is_kept(engine: Any) -> None:
    """It is thrown again long after, with its value, whatever was thrown and let go in between."""
    instance = instantiated(engine, THROWER)
    functions = {name: instance.function(name, UNARY) for name in ("many", "keep", "again")}
    functions["keep"](0)
    for _ in range(3):
        functions["many"](1000)
        assert functions["again"](0) == 9
