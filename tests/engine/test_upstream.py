"""What we rely on or work around in wasmtime and its binding; a failure says that an upgrade changed it.

Each test names what can go once it fails.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from dl.engine import engine_named
from dl.engine.wasmtime import c
from dl.engine.wasmtime.engine import WasmtimeEngine
from dl.errors import TrapError
from dl.wasm.types import FuncType

NOTHING = FuncType((), ())


class NoBoundary:
    def enter_host(self) -> None:
        return None

    def exit_host(self, token: None) -> None:
        pass


def instantiate(text: str, given: WasmtimeEngine | None = None) -> Any:
    engine: Any = given or engine_named("wasmtime")
    store = engine.new_store(engine.host_functions(NoBoundary()))
    return store.instantiate(engine.compile(bytes(wasmtime.wat2wasm(text))), "upstream")


def test_the_binding_keeps_exceptions_in_one_variable() -> None:
    """The binding's pending exception is process-wide; if not, threads might use its functions (`wasmtime_errors`)."""
    import wasmtime._func

    assert wasmtime._func.LAST_EXCEPTION is None


def test_the_binding_cannot_import_a_shared_memory() -> None:
    """The binding passes a pointer to a pointer; if it imports, `WasmtimeSharedMemory.extern` need not be ours."""
    config = wasmtime.Config()
    config.shared_memory = True
    engine = wasmtime.Engine(config)
    memory = wasmtime.SharedMemory(engine, wasmtime.MemoryType(wasmtime.Limits(1, 2), shared=True))
    module = wasmtime.Module(engine, '(module (import "env" "memory" (memory 1 2 shared)))')

    with pytest.raises((TypeError, ctypes.ArgumentError)):
        wasmtime.Instance(wasmtime.Store(engine), module, [memory])


def test_a_store_refuses_many_instances_unless_told() -> None:
    """The 10,001st instance is refused by default; if not, `WasmtimeStore` needs no limiter."""
    engine = wasmtime.Engine()
    store, module = wasmtime.Store(engine), wasmtime.Module(engine, "(module)")
    for _ in range(10_000):
        wasmtime.Instance(store, module, [])
    with pytest.raises(wasmtime.WasmtimeError, match="instance"):
        wasmtime.Instance(store, module, [])

    ours = engine_named("wasmtime")
    many = ours.new_store(ours.host_functions(NoBoundary()))
    code = ours.compile(bytes(wasmtime.wat2wasm("(module)")))
    for _ in range(10_010):
        many.instantiate(code, "empty")


@pytest.mark.timeout(60)
def test_a_start_function_in_an_epoch_callback_is_interrupted() -> None:
    """With the deadline still past, a handler's start functions trap; if not, `on_interrupt` need not push it out."""
    engine = WasmtimeEngine()
    instance = instantiate('(module (func (export "spin") (loop $again (br $again))))', engine)
    start = engine.compile(bytes(wasmtime.wat2wasm("(module (func $f) (start $f))")))
    seen: list[object] = []

    def reached(*_: int) -> int:
        try:
            instance.store.instantiate(start, "start")
        except Exception as error:  # noqa: BLE001
            seen.append(error)
        return c.error_new(b"done")

    callback = c.EPOCH_CALLBACK(reached)
    address = ctypes.cast(callback, ctypes.c_void_p).value
    c.store_epoch_callback(instance.store._store, address, None, None)
    engine.interrupt()
    with pytest.raises(TrapError):
        instance.function("spin", NOTHING)()

    assert [str(error) for error in seen] != []


TWO_OWNERS = """
import sys
sys.path.insert(0, {root!r})
import wasmtime
from dl.engine import engine_named
from dl.wasm.types import FuncType, Limits, MemoryType

class NoBoundary:
    def enter_host(self): pass
    def exit_host(self, token): pass

engine = engine_named("wasmtime")
store = engine.new_store(engine.host_functions(NoBoundary()))
memory = engine.shared_memory(MemoryType(Limits(1, 2, shared=True, is64=False)))
store._define("env", "memory", memory.extern())
code = engine.compile(bytes(wasmtime.wat2wasm('''(module (import "env" "memory" (memory 1 2 shared))
  (func (export "load") (result i32) (i32.load (i32.const 0x7fffffff))))''')))
instances = [store.instantiate(code, "two owners") for _ in range(2)]
try:
    instances[0].function("load", FuncType((), ("i32",)))()
except Exception as error:
    print(error)
"""


def test_a_shared_memory_imported_twice_ends_the_process() -> None:
    """A bad address in a memory with two importers aborts; if it traps, `owned_memory` and its probe can go."""
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", TWO_OWNERS.format(root=root)], capture_output=True, timeout=60, check=False
    )

    assert done.returncode < 0


def test_functions_of_a_table_are_comparable_between_stores() -> None:
    """Two stores' entries for one function are equal, for two functions different: the layout that `table_entry` reads."""
    text = """(module (table (export "t") 3 funcref) (elem (i32.const 0) $f $g)
      (func $f (result i32) (i32.const 1)) (func $g (result i32) (i32.const 2)))"""
    engine = engine_named("wasmtime")
    code = engine.compile(bytes(wasmtime.wat2wasm(text)))
    entries = []
    for _ in range(2):
        store = engine.new_store(engine.host_functions(NoBoundary()))
        instance = store.instantiate(code, "table")
        entries.append([store.table_entry(instance, "t", index) for index in range(4)])

    assert entries[0] == entries[1]
    assert entries[0][0] != entries[0][1]
    assert entries[0][2:] == [None, None]


def test_a_function_is_its_stores_number_and_the_pointer_of_calls() -> None:
    """What the engine makes of each reference in a call's slots is what lists of imports put together: store, and pointer."""
    engine = engine_named("wasmtime")
    store: Any = engine.new_store(engine.host_functions(NoBoundary()))
    text = """(module (func $f (export "f")) (func $g (param i64)) (elem declare func $f $g)
      (func (export "get") (result funcref funcref) (ref.func $f) (ref.func $g)))"""
    instance = store.instantiate(engine.compile(bytes(wasmtime.wat2wasm(text))), "functions")
    slots: Any = engine.slots(2)
    instance.raw_function("get")(slots)
    raws = [ctypes.c_uint64.from_address(slots.address + 16 * number).value for number in range(2)]
    found = []
    for raw in raws:
        func = c.Func()
        c.func_from_raw(store.context(), raw, ctypes.addressof(func))
        found.append((func.store_id, func.private))

    exported = instance.export("f", c.EXTERN_FUNC).of.func
    assert found == [(exported.store_id, raw) for raw in raws]
    assert (exported.store_id, exported.private) == found[0]


def test_an_uncaught_exception_has_no_trap_code() -> None:
    """The engine gives an uncaught exception no code of its own; if it does, `wasmtime_errors` need not invent one."""
    instance = instantiate('(module (tag $t) (func (export "throw") (throw $t)))')
    store = instance.store
    func = instance.export("throw", c.EXTERN_FUNC).of.func
    error = c.function_call(store.context(), ctypes.addressof(func), None, 0, store.trap_address)
    code = ctypes.c_uint8()

    assert error is None
    assert not c.trap_code(store.trap.value, ctypes.addressof(code))
    with pytest.raises(TrapError, match="uncaught exception"):
        store.raise_ending(None)


def test_a_raising_native_callback_is_only_reported() -> None:
    """ctypes prints a callback's exception and returns whatever; if there is a way to say what, `entry` can go."""
    script = (
        "import ctypes\n"
        "@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)\n"
        "def callback(_): raise KeyError('lost')\n"
        "callback(5)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )

    assert "Exception ignored on calling ctypes callback function" in done.stderr
    assert done.returncode == 0
