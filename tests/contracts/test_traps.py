"""Guest code that ends badly: what the caller gets, and that the store is as usable as before."""

from __future__ import annotations

import pytest

from dl.engine.protocol import Engine, EngineInstance
from dl.errors import EngineError, InstantiationError, TrapError
from dl.wasm.types import FuncType
from tests.support.engines import NoBoundary, instantiated

NOTHING = FuncType((), ())
NUMBER = FuncType((), ("i32",))

TRAPS = """
(module $its_own_name
  (memory 1) (table 2 funcref) (elem (i32.const 0) func $fine)
  (tag $two (param i32 i64)) (tag $long (param i64)) (tag $empty)
  (type $binary (func (param i32 i32)))
  (func $fine (export "fine") (result i32) (i32.const 42))
  (func (export "unreachable") unreachable)
  (func (export "divide") (drop (i32.div_s (i32.const 1) (i32.const 0))))
  (func (export "overflow") (drop (i32.div_s (i32.const -2147483648) (i32.const -1))))
  (func (export "convert") (drop (i32.trunc_f64_s (f64.const nan))))
  (func (export "load") (drop (i32.load (i32.const -4))))
  (func (export "grow") (drop (i32.load (i32.const 65533))))
  (func (export "unaligned") (drop (i32.atomic.load (i32.const 2))))
  (func (export "wait") (drop (memory.atomic.wait32 (i32.const 0) (i32.const 0) (i64.const 0))))
  (func (export "beyond") (drop (call_indirect (result i32) (i32.const 2))))
  (func (export "null") (drop (call_indirect (result i32) (i32.const 1))))
  (func (export "mismatch") (call_indirect (type $binary) (i32.const 0) (i32.const 0) (i32.const 0)))
  (func $endless (export "endless") (call $endless))
  (func $thrower (throw $two (i32.const 0xfffffff0) (i64.const 2)))
  (func (export "throw") (call $thrower))
  (func (export "throw long") (throw $long (i64.const 1)))
  (func (export "throw nothing") (throw $empty))
  (func (export "rethrow") (block $caught (result exnref) (try_table (catch_all_ref $caught) (call $thrower)) (unreachable))
    (throw_ref))
  (func (export "catch") (result i32)
    (block $caught (result i32 i64) (try_table (catch $two $caught) (call $thrower)) (unreachable)) (drop))
)
"""


@pytest.fixture(name="guest", scope="module")
def _guest(engine: Engine) -> EngineInstance:
    return instantiated(engine, TRAPS, "traps")


@pytest.mark.parametrize(
    ("function", "reason", "code"),
    [
        ("unreachable", "unreachable", 9),
        ("divide", "integer divide by zero", 7),
        ("overflow", "integer overflow", 6),
        ("convert", "invalid conversion to integer", 8),
        ("load", "out of bounds memory access", 1),
        ("grow", "out of bounds memory access", 1),
        ("unaligned", "unaligned atomic access", 2),
        ("wait", "atomic wait on a memory that is not shared", 12),
        ("beyond", "undefined table element: out of bounds", 3),
        ("null", "uninitialized table element", 4),
        ("mismatch", "indirect call type mismatch", 5),
        ("endless", "stack overflow", 0),
        ("throw", "uncaught exception (its first value is 0xfffffff0)", 49),
        ("throw long", "uncaught exception", 49),
        ("throw nothing", "uncaught exception", 49),
        ("rethrow", "uncaught exception (its first value is 0xfffffff0)", 49),
    ],
)
def test_each_trap_has_its_words_and_code(
    guest: EngineInstance, function: str, reason: str, code: int
) -> None:
    """A trap is a TrapError with a stable reason and code; guest code runs as before afterwards."""
    with pytest.raises(TrapError) as caught:
        guest.function(function, NOTHING)()

    assert (caught.value.reason, caught.value.code) == (reason, code)
    assert guest.function("fine", NUMBER)() == 42
    assert guest.function("catch", NUMBER)() & 0xFFFFFFFF == 0xFFFFFFF0


def test_frames_are_named_by_the_linker(guest: EngineInstance) -> None:
    """Frames are `module!function`, innermost first: the module as it was instantiated as, not as it calls itself."""
    with pytest.raises(TrapError) as caught:
        guest.function("throw", NOTHING)()

    assert caught.value.frames == ("traps!thrower", "traps!function 14")


def test_modules_without_names_get_the_file_name(engine: Engine) -> None:
    """A module that names nothing is shown by the base name of its file, its functions by their index."""
    plain = bytes.fromhex(
        "0061736d01000000 01040160 0000 0302 0100 0705 0101 66 0000 0a05 0103 00 000b".replace(" ", "")
    )
    store = engine.new_store(engine.host_functions(NoBoundary()))

    with pytest.raises(TrapError) as caught:
        store.instantiate(engine.compile(plain), "/opt/lib/libplain.so").function("f", NOTHING)()

    assert caught.value.frames == ("libplain.so!function 0",)


def test_names_that_are_not_unicode_do_no_harm(engine: Engine) -> None:
    """A file name that is not valid Unicode is still good enough to instantiate under."""
    instance = instantiated(engine, '(module (func (export "f") unreachable))', "lib\udcff.so")

    with pytest.raises(TrapError) as caught:
        instance.function("f", NOTHING)()

    assert caught.value.frames == ("lib?.so!function 0",)


def test_a_trap_in_a_start_function_is_a_trap(engine: Engine) -> None:
    """Instantiation that runs into a trap raises TrapError, one that lacks an import InstantiationError with names."""
    with pytest.raises(TrapError, match="unreachable"):
        instantiated(engine, "(module (func $f unreachable) (start $f))")
    with pytest.raises(TrapError, match="out of bounds"):
        instantiated(engine, '(module (memory 1) (data (i32.const 65535) "ab"))')
    with pytest.raises(TrapError, match="uncaught exception"):
        instantiated(engine, "(module (tag $t) (func $f (throw $t)) (start $f))")
    with pytest.raises(InstantiationError, match=r"^cannot link lacking: .*env.*missing"):
        instantiated(engine, '(module (import "env" "missing" (func)))', "lacking")


def test_refused_modules_carry_the_engines_text(engine: Engine) -> None:
    """A module the engine cannot compile raises EngineError with what the engine says."""
    body = bytes.fromhex("0061736d01000000 01050160 00017f 0302 0100 0a04 0102 000b".replace(" ", ""))
    with pytest.raises(EngineError, match=r"type mismatch: expected i32 but nothing on stack"):
        engine.compile(body)
    for garbage in (b"not wasm", b""):
        with pytest.raises(EngineError):
            engine.compile(garbage)
