"""Code and instances: names, namespaces, exports, tables, tags, and code that crosses processes."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import wasmtime

from dl.engine.protocol import CompiledModule, Engine
from dl.errors import EngineError, InstantiationError, TrapError, UncaughtExceptionError
from dl.wasm.types import FuncType
from tests.support.engines import NoBoundary, compiled, instantiated

NOTHING, NUMBER, UNARY = FuncType((), ()), FuncType((), ("i32",)), FuncType(("i32",), ("i32",))
TRAP = '(module (func $inner unreachable) (func (export "trap") (call $inner)))'
ROOT = str(Path(__file__).resolve().parents[2])


def frames(call: object) -> tuple[str, ...]:
    with pytest.raises(TrapError) as caught:
        call()
    return caught.value.frames


def test_each_store_has_its_own_name_for_code(engine: Engine) -> None:
    """Two stores may call the same code what they like; the last name that a store was given counts."""
    code = compiled(engine, TRAP)
    stores = [engine.new_store(engine.host_functions(NoBoundary())) for _ in range(2)]
    first = stores[0].instantiate(code, "first.so")
    second = stores[1].instantiate(code, "dir/second.so")

    assert frames(first.function("trap", NOTHING))[0] == "first.so!inner"
    assert frames(second.function("trap", NOTHING))[0] == "second.so!inner"
    stores[0].instantiate(code, "renamed.so")
    assert frames(first.function("trap", NOTHING))[0] == "renamed.so!inner"


def test_frames_lead_through_modules(engine: Engine) -> None:
    """Frames name each module on the way, innermost first."""
    store = engine.new_store(engine.host_functions(NoBoundary()))
    store.define_instance("inner", store.instantiate(compiled(engine, TRAP), "inner.so"))
    outer = store.instantiate(
        compiled(
            engine,
            '(module (import "inner" "trap" (func $trap)) (func $go (export "go") (call $trap) (unreachable)))',
        ),
        "outer.so",
    )

    found = frames(outer.function("go", NOTHING))
    assert [frame.split("!")[0] for frame in found] == ["inner.so", "inner.so", "outer.so"]


def test_code_says_how_large_it_is_and_is_freed(engine: Engine) -> None:
    """Code has a size in bytes, can be referred to weakly, and goes when nobody holds it, nor a store that instantiated it."""
    code = compiled(engine, TRAP)
    unused = compiled(engine, TRAP)
    assert code.code_bytes > 0
    gone, gone_unused = weakref.ref(code), weakref.ref(unused)
    store = engine.new_store(engine.host_functions(NoBoundary()))
    frames(store.instantiate(code, "m").function("trap", NOTHING))
    del code, unused
    assert gone_unused() is None

    store.close()
    del store
    gc.collect()
    assert gone() is None


def test_namespaces_are_replaced_by_later_definitions(engine: Engine) -> None:
    """A later instance under a namespace replaces exports of the same names, for instances made from then on."""
    store = engine.new_store(engine.host_functions(NoBoundary()))
    user = compiled(
        engine,
        '(module (import "a" "f" (func $f (result i32))) (func (export "g") (result i32) (call $f)))',
    )
    results = []
    instances = []
    for number in (1, 2):
        text = f'(module (func (export "f") (result i32) (i32.const {number})))'
        store.define_instance("a", store.instantiate(compiled(engine, text), f"a{number}"))
        instances.append(store.instantiate(user, "user"))
        results.append([one.function("g", NUMBER)() for one in instances])

    assert results == [[1], [1, 2]]


def test_missing_and_unfit_imports_are_refused_by_name(engine: Engine) -> None:
    """An import that is missing, or of another type, is an InstantiationError that names module and import."""
    store = engine.new_store(engine.host_functions(NoBoundary()))
    store.define_instance("a", store.instantiate(compiled(engine, '(module (func (export "f")))'), "a"))
    for text in (
        '(module (import "a" "missing" (func)))',
        '(module (import "a" "f" (func (param i64))))',
        '(module (import "a" "f" (memory 1)))',
    ):
        with pytest.raises(InstantiationError, match=r"^cannot link user\.so: .*a.*(missing|f)"):
            store.instantiate(compiled(engine, text), "user.so")


def test_globals_are_unsigned(engine: Engine) -> None:
    """Values of exported integer globals are unsigned; other globals are not there."""
    instance = instantiated(
        engine,
        """(module (global (export "i") i32 (i32.const -1)) (global (export "j") (mut i64) (i64.const -2))
          (global (export "f") f64 (f64.const 1)))""",
    )

    assert (instance.global_value("i"), instance.global_value("j")) == (2**32 - 1, 2**64 - 2)
    for name in ("f", "nothing"):
        with pytest.raises(KeyError):
            instance.global_value(name)


TABLE = """
(module (table (export "t") 3 funcref) (elem (i32.const 0) $f $g)
  (func $f (param i32 f64) (result i64) (i64.const 1)) (func $g (result v128) (v128.const i64x2 0 0)))
"""


def test_table_entries_are_comparable_and_described(engine: Engine) -> None:
    """Entries of one function are equal in all stores and differ between functions; each has its signature."""
    if not engine.capabilities.table_reflection:
        pytest.skip("the engine cannot look into tables")
    code = compiled(engine, TABLE)
    entries, kinds = [], []
    for _ in range(2):
        store = engine.new_store(engine.host_functions(NoBoundary()))
        instance = store.instantiate(code, "table")
        entries.append([store.table_entry(instance, "t", index) for index in range(4)])
        kinds.append([store.function_type(instance, "t", index) for index in range(4)])

    assert entries[0] == entries[1]
    assert entries[0][0] != entries[0][1]
    assert entries[0][2:] == [None, None]
    assert kinds == [[FuncType(("i32", "f64"), ("i64",)), FuncType((), ("v128",)), None, None]] * 2


def test_instances_share_tables(engine: Engine) -> None:
    """What one instance places in an imported table, another one calls, also after the table has grown."""
    store = engine.new_store(engine.host_functions(NoBoundary()))
    owner = store.instantiate(
        compiled(
            engine,
            """(module (table (export "t") 1 funcref)
              (func (export "grow") (param i32) (result i32) (table.grow (ref.null func) (local.get 0)))
              (func (export "call") (param i32) (result i32) (call_indirect (result i32) (local.get 0))))""",
        ),
        "owner",
    )
    store.define_instance("owner", owner)
    assert owner.function("grow", UNARY)(4) == 1
    store.instantiate(
        compiled(
            engine,
            """(module (import "owner" "t" (table 1 funcref)) (elem (i32.const 3) $f)
              (func $f (result i32) (i32.const 33)))""",
        ),
        "placer",
    )

    assert owner.function("call", UNARY)(3) == 33
    with pytest.raises(TrapError):
        owner.function("call", UNARY)(4)


def test_uncaught_exceptions_have_the_name_of_their_tag(engine: Engine) -> None:
    """A tag is known by the first name it was given; its first value is told if it is an i32."""
    if not engine.capabilities.exceptions:
        pytest.skip("the engine has no exceptions")
    store = engine.new_store(engine.host_functions(NoBoundary()))
    instance = store.instantiate(
        compiled(
            engine,
            """(module (tag (export "t") (param i32)) (tag (export "other") (param i64))
              (func (export "throw") (throw 0 (i32.const -16))) (func (export "throw other") (throw 1 (i64.const 1))))""",
        ),
        "thrower",
    )
    store.name_tag(instance, "t")
    with pytest.raises(KeyError):
        store.name_tag(instance, "nothing")

    with pytest.raises(UncaughtExceptionError) as caught:
        instance.function("throw", NOTHING)()
    assert (caught.value.tag, caught.value.value) == ("t", 0xFFFFFFF0)
    with pytest.raises(UncaughtExceptionError) as caught:
        instance.function("throw other", NOTHING)()
    assert (caught.value.tag, caught.value.value) == (None, None)


def test_raw_functions_share_slots(engine: Engine) -> None:
    """A raw host function reads and writes its slots, and passes them on to a guest function, without conversion."""
    kind = FuncType(("i32", "i64", "i32"), ("i64",))
    seen: list[tuple[int, ...]] = []
    store = engine.new_store(host := engine.host_functions(NoBoundary()))
    adder = instantiated(
        engine,
        """(module (func (export "add") (param i32 i64 i32) (result i64)
          (i64.add (local.get 1) (i64.extend_i32_s (local.get 2)))))""",
    ).raw_function("add")

    def passed_on(slots: object) -> None:
        seen.append((slots.u32(0), slots.s32(0), slots.u64(1), slots.s64(1)))  # type: ignore[attr-defined]
        slots.set_32(2, slots.u32(0))  # type: ignore[attr-defined]
        adder(slots)  # type: ignore[arg-type]

    host.define_raw("host", "f", kind, passed_on)
    call = store.instantiate(
        compiled(
            engine,
            """(module (import "host" "f" (func $f (param i32 i64 i32) (result i64)))
              (func (export "g") (param i32 i64 i32) (result i64)
                (call $f (local.get 0) (local.get 1) (local.get 2))))""",
        ),
        "m",
    ).function("g", kind)

    assert call(-5, -7, 1) == -12
    assert call(3, 1 << 40, 0) == (1 << 40) + 3
    assert seen == [(2**32 - 5, -5, 2**64 - 7, -7), (3, 3, 1 << 40, 1 << 40)]


def test_slots_of_the_hosts_own(engine: Engine) -> None:
    """The host calls a raw function with slots it made; they may be used again."""
    add = instantiated(
        engine,
        '(module (func (export "add") (param i32 i64) (result i64) (i64.add (local.get 1) (i64.extend_i32_u (local.get 0)))))',
    ).raw_function("add")
    slots = engine.slots(2)
    for first, second in ((1, 2), (2**32 - 1, 2**63)):
        slots.set_32(0, first)
        slots.set_64(1, second)
        add(slots)
        assert slots.u64(0) == first + second
    with pytest.raises(IndexError):
        slots.u32(2)
    with pytest.raises(KeyError):
        instantiated(engine, "(module)").raw_function("add")


# serialization

LOADING = """
import sys
sys.path.insert(0, {root!r})
from dl.engine import engine_named
from dl.wasm.types import FuncType

class NoBoundary:
    def enter_host(self): pass
    def exit_host(self, token): pass

engine = engine_named({engine!r})
assert engine.fingerprint == {fingerprint!r}, engine.fingerprint
code = engine.deserialize(sys.stdin.buffer.read())
store = engine.new_store(engine.host_functions(NoBoundary()))
try:
    store.instantiate(code, "loaded.so").function("trap", FuncType((), ()))()
except Exception as error:
    print(*error.frames)
"""


def test_code_crosses_processes(engine: Engine) -> None:
    """Code that one process serialized runs in another with an equal fingerprint, under the name given there."""
    if not engine.capabilities.serialization:
        pytest.skip("the engine cannot serialize code")
    script = LOADING.format(root=ROOT, engine=engine.name, fingerprint=engine.fingerprint)
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=engine.serialize(compiled(engine, TRAP)),
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert done.stdout.split() == [b"loaded.so!inner", b"loaded.so!function", b"1"], done.stderr


def test_deserialized_code_is_the_same_code(engine: Engine) -> None:
    """Code that was loaded has the content's name: a store calls it and the compiled one the same."""
    if not engine.capabilities.serialization:
        pytest.skip("the engine cannot serialize code")
    code = compiled(engine, TRAP)
    loaded = engine.deserialize(engine.serialize(code))
    store = engine.new_store(engine.host_functions(NoBoundary()))
    first = store.instantiate(code, "first.so")
    store.instantiate(loaded, "loaded.so")

    assert frames(first.function("trap", NOTHING))[0] == "loaded.so!inner"
    assert engine.serialize(loaded) == engine.serialize(code)


@pytest.mark.parametrize("garbage", [b"", b"x" * 15, b"x" * 16, b"x" * 1000, bytes(5000)])
def test_what_is_no_code_at_all_is_refused(engine: Engine, garbage: bytes) -> None:
    """Bytes that are nothing like serialized code are an EngineError, not a crash."""
    if not engine.capabilities.serialization:
        pytest.skip("the engine cannot serialize code")
    with pytest.raises(EngineError):
        engine.deserialize(garbage)


def test_fingerprints_tell_settings_apart(engine: Engine) -> None:
    """An engine's fingerprint is one line, stable, and another one with other settings."""
    from dl.engine import engine_named

    assert engine.fingerprint == engine_named(engine.name).fingerprint
    assert engine.name in engine.fingerprint
    assert engine.fingerprint.isprintable()
    if engine.capabilities.interrupts:
        assert engine.fingerprint != engine_named(engine.name, interrupts=False).fingerprint


def test_modules_are_given_as_bytes(engine: Engine) -> None:
    """The same bytes compile to code of the same name, whatever else was compiled between."""
    wasm = bytes(wasmtime.wat2wasm(TRAP))
    store = engine.new_store(engine.host_functions(NoBoundary()))
    first = store.instantiate(engine.compile(wasm), "first.so")
    engine.compile(wasm + b"\0\x05\x04more")
    store.instantiate(engine.compile(wasm), "second.so")

    assert frames(first.function("trap", NOTHING))[0] == "second.so!inner"


def test_numbers_are_imported_by_name(engine: Engine) -> None:
    """A number can be imported as a global; another under the same name counts for instances made from then on."""
    store = engine.new_store(engine.host_functions(NoBoundary()))
    code = compiled(
        engine, '(module (import "b" "n" (global $n i32)) (func (export "f") (result i32) global.get $n))'
    )
    store.define_number("b", "n", 7)
    first = store.instantiate(code, "first").function("f", NUMBER)
    store.define_number("b", "n", 0xFFFFFFFF)
    second = store.instantiate(code, "second").function("f", NUMBER)

    assert (first(), second()) == (7, -1)


def test_whose_code_runs_is_told(engine: Engine) -> None:
    """Code on the calling thread's stack is found, also below other code; what is not there is denied by who can tell."""
    functions = engine.host_functions(NoBoundary())
    code: dict[str, CompiledModule] = {}
    seen: dict[str, bool] = {}

    def look() -> None:
        seen.update({name: store.runs([module]) for name, module in code.items()})

    functions.define("env", "look", FuncType((), ()), look)
    texts = {
        "inner": '(module (import "env" "look" (func $look)) (func (export "inner") (call $look)))',
        "outer": '(module (import "inner" "inner" (func $inner)) (func (export "outer") (call $inner)))',
        "absent": '(module (func (export "absent")))',
    }
    store = engine.new_store(functions)
    for name, text in texts.items():
        code[name] = compiled(engine, text)
        instance = store.instantiate(code[name], name)
        store.define_instance(name, instance)
        if name == "outer":
            outer = instance.function("outer", FuncType((), ()))
    outer()

    cannot = not engine.capabilities.stack_inspection
    assert seen == {"inner": True, "outer": True, "absent": cannot}
    assert store.runs(list(code.values())) is cannot
