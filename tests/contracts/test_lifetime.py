"""What belongs to whom: closed stores, stores under their own guest code, garbage, the interpreter's end, leaks."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest

from dl.engine.protocol import CompiledModule, Engine, EngineInstance, HostFunctions, Store
from dl.engine.values import WasiOptions
from dl.errors import EngineError, TrapError
from dl.wasm.types import FuncType, Limits, MemoryType
from tests.support.engines import NoBoundary, compiled

MODULE = """
(module
  (import "host" "f" (func $f (param i32) (result i32)))
  (memory (export "memory") 1 4)
  (table (export "table") 2 funcref) (elem (i32.const 1) $g)
  (global (export "global") i32 (i32.const 5))
  (func $g (export "g") (param i32) (result i32) (call $f (local.get 0)))
  (func (export "trap") unreachable)
  (tag $t (param i32))
  (func (export "throw") (throw $t (i32.const 1))))
"""
UNARY = FuncType(("i32",), ("i32",))
NOTHING = FuncType((), ())


class World:
    """An engine with the code of the test module."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.code: CompiledModule = compiled(engine, MODULE)

    def host(self, function: object = None) -> HostFunctions:
        host = self.engine.host_functions(NoBoundary())
        host.define("host", "f", UNARY, function or (lambda n: n + 1))  # type: ignore[arg-type]
        return host

    def instance(self, host: HostFunctions) -> EngineInstance:
        return self.engine.new_store(host).instantiate(self.code, "lifetime")


@pytest.fixture(name="world", scope="module")
def _world(engine: Engine) -> World:
    return World(engine)


def test_a_closed_store_answers_with_an_error(world: World) -> None:
    """Everything that was made in a store says that it is closed; closing again does nothing."""
    host = world.host()
    store = world.engine.new_store(host)
    instance = store.instantiate(world.code, "lifetime")
    call, raw, memory = instance.function("g", UNARY), instance.raw_function("g"), instance.memory("memory")
    assert call(1) == 2
    slots = world.engine.slots(1)
    store.close()
    store.close()

    for use in (
        lambda: call(1),
        lambda: raw(slots),
        lambda: instance.function("g", UNARY),
        lambda: instance.memory("memory"),
        lambda: instance.global_value("global"),
        memory.data_address,
        memory.data_size,
        lambda: memory.grow(1),
        lambda: store.instantiate(world.code, "lifetime"),
        lambda: store.define_instance("x", instance),
        lambda: store.offer_instance("x", instance),
        lambda: store.define_memory("x", "memory", memory),
        lambda: store.new_memory(MemoryType(Limits(1, 1, shared=False, is64=False))),
        lambda: store.table_entry(instance, "table", 1),
        lambda: store.function_type(instance, "table", 1),
        lambda: store.enable_wasi(WasiOptions()),
        lambda: store.renew_wasi(WasiOptions()),
        lambda: store.on_interrupt(lambda: None),
    ):
        with pytest.raises(EngineError, match="the store is closed"):
            use()


def test_a_store_cannot_be_closed_under_its_own_guest_code(world: World) -> None:
    """A host function that closes the store it is called from gets an error, and the program goes on."""
    stores: list[Store] = []

    def close(n: int) -> int:
        with pytest.raises(EngineError, match="the store runs guest code"):
            stores[0].close()
        return n * 2

    host = world.host(close)
    stores.append(world.engine.new_store(host))
    call = stores[0].instantiate(world.code, "lifetime").function("g", UNARY)

    assert call(21) == 42
    stores[0].close()


def test_a_store_serves_one_thread_at_a_time(world: World) -> None:
    """A second thread that calls into a store whose guest code runs gets an error; afterwards it may take over."""
    inside, go_on = threading.Event(), threading.Event()

    def wait(n: int) -> int:
        inside.set()
        assert go_on.wait(30)
        return n

    instance = world.instance(world.host(wait))
    call = instance.function("g", UNARY)
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(call(5)))
    thread.start()
    assert inside.wait(30)
    with pytest.raises(EngineError, match="runs guest code in another thread"):
        call(6)
    go_on.set()
    thread.join()

    assert results == [5]
    assert call(6) == 6


def test_functions_keep_their_store_alive(world: World) -> None:
    """A guest function is callable as long as somebody holds it, without holding the instance or the store."""
    call = world.instance(world.host()).function("g", UNARY)
    gc.collect()

    assert call(1) == 2


def test_a_store_in_a_cycle_is_collected(world: World) -> None:
    """A host function that refers to its own program's store makes no leak."""

    class Program:
        def __init__(self) -> None:
            self.host = world.host(self.f)
            self.store = world.engine.new_store(self.host)
            self.store.on_interrupt(self.interrupted)
            self.call = self.store.instantiate(world.code, "lifetime").function("g", UNARY)

        def f(self, n: int) -> int:
            return n

        def interrupted(self) -> None:
            pass

    program = Program()
    assert program.call(3) == 3
    gone = weakref.ref(program.store)
    del program
    gc.collect()

    assert gone() is None


def test_memory_of_another_kind_is_no_function(world: World) -> None:
    """Asking for an export under a wrong kind or name is a KeyError, and frees what the engine handed out."""
    instance = world.instance(world.host())
    for ask in (
        lambda: instance.function("memory", UNARY),
        lambda: instance.function("missing", UNARY),
        lambda: instance.memory("g"),
        lambda: instance.global_value("table"),
    ):
        with pytest.raises(KeyError):
            ask()


def test_refused_memories_raise(world: World) -> None:
    """A memory that the engine cannot make is an EngineError with its reason; growth that is refused is None."""
    engine = world.engine
    store = engine.new_store(world.host())
    with pytest.raises(EngineError, match="maximum"):
        engine.shared_memory(MemoryType(Limits(1, None, shared=True, is64=False)))
    with pytest.raises(EngineError):
        store.new_memory(MemoryType(Limits(2, 1, shared=False, is64=False)))
    memory = store.new_memory(MemoryType(Limits(1, 2, shared=False, is64=False)))

    assert (memory.grow(1), memory.grow(1), memory.data_size()) == (1, None, 2 << 16)


def _resident_bytes() -> int:
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads the resident size from /proc")
@pytest.mark.timeout(120)
def test_programs_that_end_give_their_memory_back(world: World) -> None:
    """Opening and closing programs, with every kind of ending and error in between, does not grow the process."""
    engine = world.engine
    shared = MemoryType(Limits(2, 4, shared=True, is64=False))

    def fail(n: int) -> int:
        if n:
            raise KeyError(n)
        return n

    def one_program() -> None:
        host = world.host(fail)
        store = engine.new_store(host)
        memory = engine.shared_memory(shared)
        store.define_memory("env", "memory", memory)
        assert memory.grow(10) is None
        instance = store.instantiate(world.code, "lifetime")
        call = instance.function("g", UNARY)
        call(0)
        for _ in range(20):
            with pytest.raises(KeyError):
                call(1)
            for function in ("trap", "throw"):
                with pytest.raises(TrapError):
                    instance.function(function, NOTHING)()
            with pytest.raises(KeyError):
                instance.memory("nothing")
            with pytest.raises(EngineError):
                store.enable_wasi(WasiOptions(args=("a" * 1000,), preopens=(("/x", "/does/not/exist"),)))
        store.close()

    def many(count: int) -> None:
        for _ in range(count):
            one_program()
        gc.collect()

    many(60)
    grown: list[int] = []
    while not grown or (
        grown[-1] >= 3 << 20 and len(grown) < 4
    ):  # without a GIL the allocator takes longer to have enough
        before = _resident_bytes()
        many(240)
        grown.append(_resident_bytes() - before)

    assert grown[-1] < 3 << 20, grown


AT_EXIT = """
import sys
sys.path.insert(0, {root!r})
import wasmtime
from dl.engine import engine_named
from dl.engine.values import WasiOptions
from dl.wasm.types import FuncType, Limits, MemoryType

class NoBoundary:
    def enter_host(self): pass
    def exit_host(self, token): pass

engine, unary = engine_named({engine!r}), FuncType(("i32",), ("i32",))
host = engine.host_functions(NoBoundary())
host.define("host", "f", unary, lambda n: n + len(kept))
store = engine.new_store(host)
store.enable_wasi(WasiOptions(stdout=lambda chunk: None))
memory = engine.shared_memory(MemoryType(Limits(1, 2, shared=True, is64=False)))
store.define_memory("env", "memory", memory)
code = engine.compile(bytes(wasmtime.wat2wasm({text!r})))
instance = store.instantiate(code, "m")
call = instance.function("g", unary)
kept = [engine, host, store, memory, code, instance, call, store.new_memory(MemoryType(Limits(1, 2, shared=False, is64=False)))]
kept.append(kept)
sys.kept = kept
assert call(1) == 1 + len(kept)
print("end")
"""


def test_the_interpreter_ends_quietly_with_programs_open(world: World) -> None:
    """A process that ends with everything still open, in cycles, neither crashes nor complains."""
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [
            sys.executable,
            "-X",
            "dev",
            "-W",
            "error",
            "-c",
            AT_EXIT.format(root=root, text=MODULE, engine=world.engine.name),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.stdout, done.stderr, done.returncode) == ("end\n", "", 0)
