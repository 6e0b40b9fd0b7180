"""Linear memories of one store, and shared by all; their limits, and that threads see each other's writes."""

from __future__ import annotations

import ctypes
import threading

import pytest

from dl.engine.protocol import Engine
from dl.errors import EngineError, InstantiationError, TrapError
from dl.wasm.types import FuncType, Limits, MemoryType
from tests.support.engines import NoBoundary, compiled, instantiated

PAGE = 65536
LOAD, STORE = FuncType(("i32",), ("i32",)), FuncType(("i32", "i32"), ())
ACCESS = """
  (func (export "load") (param i32) (result i32) (i32.load (local.get 0)))
  (func (export "store") (param i32 i32) (i32.store (local.get 0) (local.get 1)))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
"""


def kind(minimum: int, maximum: int | None, *, shared: bool = False) -> MemoryType:
    return MemoryType(Limits(minimum, maximum, shared=shared, is64=False))


def test_the_host_sees_an_exported_memory(engine: Engine) -> None:
    """Host and guest read each other's bytes, and growth by either is seen by the other, within the maximum."""
    instance = instantiated(engine, f'(module (memory (export "m") 1 3) {ACCESS})')
    memory = instance.memory("m")
    instance.function("store", STORE)(16, 0x01020304)
    assert ctypes.string_at(memory.data_address() + 16, 4) == bytes([4, 3, 2, 1])
    ctypes.memmove(memory.data_address() + 20, b"\1\0\0\0", 4)
    assert instance.function("load", LOAD)(20) == 1

    assert (memory.data_size(), memory.grow(1), memory.data_size()) == (PAGE, 1, 2 * PAGE)
    assert instance.function("grow", LOAD)(1) == 2
    assert (memory.data_size(), memory.grow(1)) == (3 * PAGE, None)
    assert instance.function("grow", LOAD)(1) == -1
    with pytest.raises(KeyError):
        instance.memory("nothing")


def test_a_memory_of_the_host_is_imported(engine: Engine) -> None:
    """A memory that the host made is one memory to all instances of the store that import it."""
    store = engine.new_store(engine.host_functions(NoBoundary()))
    memory = store.new_memory(kind(2, 4))
    store.define_memory("env", "memory", memory)
    code = compiled(engine, f'(module (import "env" "memory" (memory 1 4)) {ACCESS})')
    first, second = (store.instantiate(code, name) for name in ("first", "second"))
    first.function("store", STORE)(100, 7)

    assert second.function("load", LOAD)(100) == 7
    assert ctypes.string_at(memory.data_address() + 100, 1) == b"\7"
    with pytest.raises(TrapError, match="out of bounds"):
        second.function("load", LOAD)(2 * PAGE)
    with pytest.raises(InstantiationError):
        store.instantiate(compiled(engine, '(module (import "env" "memory" (memory 3)))'), "greedy")


@pytest.fixture(name="sharing")
def _sharing(engine: Engine) -> Engine:
    if not engine.capabilities.shared_memory:
        pytest.skip("the engine cannot share memories")
    return engine


SHARED = f"""(module (import "env" "memory" (memory 1 4 shared)) {ACCESS}
  (func (export "add") (param i32) (result i32) (i32.atomic.rmw.add (local.get 0) (i32.const 1))))"""


def test_a_shared_memory_is_one_memory_in_all_stores(sharing: Engine) -> None:
    """Stores of several threads add to one word without losing any, and all see growth."""
    memory = sharing.shared_memory(kind(1, 4, shared=True))
    code = compiled(sharing, SHARED)
    host = sharing.host_functions(NoBoundary())
    address, rounds = memory.data_address(), 2000
    ready = threading.Barrier(4)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            store = sharing.new_store(host)
            store.define_memory("env", "memory", memory)
            add = store.instantiate(code, "adder").function("add", LOAD)
            ready.wait(30)
            for _ in range(rounds):
                add(64)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert failures == []
    assert int.from_bytes(ctypes.string_at(address + 64, 4), "little") == 4 * rounds
    assert (memory.grow(2), memory.data_size(), memory.data_address()) == (1, 3 * PAGE, address)
    store = sharing.new_store(host)
    store.define_memory("env", "memory", memory)
    late = store.instantiate(code, "late")
    assert late.function("load", LOAD)(2 * PAGE) == 0
    assert (memory.grow(2), late.function("grow", LOAD)(1), memory.data_size()) == (None, 3, 4 * PAGE)


def test_many_instances_import_a_shared_memory(sharing: Engine) -> None:
    """A bad address traps in each of several instances that import one shared memory; nothing ends the process."""
    memory = sharing.shared_memory(kind(1, 4, shared=True))
    store = sharing.new_store(sharing.host_functions(NoBoundary()))
    store.define_memory("env", "memory", memory)
    code = compiled(sharing, SHARED)
    for number in range(4):
        with pytest.raises(TrapError, match="out of bounds"):
            store.instantiate(code, f"m{number}").function("load", LOAD)(0x7FFFFFF0)


def test_a_shared_memory_outlives_its_stores(sharing: Engine) -> None:
    """Bytes of a shared memory stay while the host holds it, with every store closed."""
    memory = sharing.shared_memory(kind(1, 1, shared=True))
    store = sharing.new_store(sharing.host_functions(NoBoundary()))
    store.define_memory("env", "memory", memory)
    store.instantiate(
        compiled(sharing, f'(module (import "env" "memory" (memory 1 1 shared)) {ACCESS})'), "m"
    ).function("store", STORE)(8, 9)
    store.close()

    assert ctypes.string_at(memory.data_address() + 8, 1) == b"\x09"


def test_memories_that_cannot_be_are_refused(engine: Engine) -> None:
    """A type that is none is an EngineError."""
    store = engine.new_store(engine.host_functions(NoBoundary()))
    with pytest.raises(EngineError):
        store.new_memory(kind(2, 1))
    with pytest.raises(EngineError):
        engine.shared_memory(kind(1, None, shared=True))


def test_a_store_bounds_what_its_instances_define(engine: Engine) -> None:
    """Memories and tables grow to the store's limit and no further, and what begins beyond it is refused with its instance."""
    store = engine.new_store(engine.host_functions(NoBoundary()))
    store.limit(memory_bytes=3 * PAGE, table_elements=5)
    text = f"""(module (memory (export "m") 1) {ACCESS} (table 2 funcref)
      (func (export "grow_table") (param i32) (result i32) (table.grow (ref.null func) (local.get 0))))"""
    instance = store.instantiate(compiled(engine, text), "bounded")
    grow, grow_table = (instance.function(name, LOAD) for name in ("grow", "grow_table"))

    assert [grow(3), grow(2), grow(1)] == [-1, 1, -1]
    assert instance.memory("m").grow(1) is None
    assert [grow_table(4), grow_table(3), grow_table(1)] == [-1, 2, -1]
    for wanted in ("(memory 4)", "(table 6 funcref)"):
        with pytest.raises(InstantiationError):
            store.instantiate(compiled(engine, f"(module {wanted})"), "greedy")
