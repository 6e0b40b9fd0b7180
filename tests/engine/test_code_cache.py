"""Compiled code by content: who compiles, who waits, what is kept, and what modules are called in stack traces."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import wasmtime

import dl
from dl.engine.code_cache import CodeCache, Compiler, content_digest
from dl.engine.protocol import CompiledModule
from dl.engine.wasmtime.engine import WasmtimeEngine, WasmtimeModule
from dl.glue.generated import generated
from dl.wasm.rewrite import numbered_copy
from dl.wasm.types import FuncType
from tests.support.engines import NoBoundary
from tests.support.modules import MEMORY, TABLE, library, returns


class CountingEngine(WasmtimeEngine):
    """Counts what it compiles, and can be told to wait while it does."""

    def __init__(self) -> None:
        super().__init__()
        self.compiled: list[bytes] = []
        self.entered = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def compile(self, wasm: bytes) -> WasmtimeModule:
        self.compiled.append(wasm)
        self.entered.set()
        assert self.may_go_on.wait(30)
        return super().compile(wasm)


def module(number: int) -> bytes:
    return bytes(wasmtime.wat2wasm(f'(module (func (export "f") (result i32) i32.const {number}))'))


BROKEN = bytes.fromhex("0061736d01000000 01050160 00017f 0302 0100 0a04 0102 000b".replace(" ", ""))


@pytest.fixture(name="engine")
def _engine() -> CountingEngine:
    return CountingEngine()


def test_equal_content_is_compiled_once(engine: CountingEngine) -> None:
    """The same bytes are one code, whatever they are called; other bytes are another."""
    compiler = Compiler(engine, memory=CodeCache())

    assert compiler.compile(module(1), "a") is compiler.compile(module(1), "b")
    assert compiler.compile(module(2), "a") is not compiler.compile(module(1), "a")
    assert len(engine.compiled) == 2


def test_each_engine_has_its_own_code(engine: CountingEngine) -> None:
    """Code of one engine is not given to another, and goes with its engine."""
    memory, other = CodeCache(), CountingEngine()
    code = Compiler(engine, memory=memory).compile(module(1), "a")

    assert Compiler(other, memory=memory).compile(module(1), "a") is not code
    gone = weakref.ref(other)
    del other
    gc.collect()
    assert gone() is None


def test_many_small_modules_do_not_displace_each_other(engine: CountingEngine) -> None:
    """A program with more modules than fit any fixed number of entries is compiled once, not at every run."""
    compiler = Compiler(engine, memory=CodeCache())
    for _ in range(2):
        for number in range(1500):
            compiler.compile(module(number), "m")

    assert len(engine.compiled) == 1500


def test_code_in_use_is_found_and_unused_code_is_freed(engine: CountingEngine) -> None:
    """Beyond its bytes the cache frees what nobody uses, the least recently used first; what is used stays known."""
    memory = CodeCache(most_bytes=1)
    compiler = Compiler(engine, memory=memory)
    used, unused = compiler.compile(module(1), "used"), weakref.ref(compiler.compile(module(2), "unused"))
    compiler.compile(module(3), "last")
    gc.collect()

    assert unused() is None
    assert compiler.compile(module(1), "used") is used
    compiler.compile(module(2), "unused")
    assert len(engine.compiled) == 4


def test_clearing_keeps_what_is_in_use(engine: CountingEngine) -> None:
    """After `clear` the code that somebody holds is still known."""
    memory = CodeCache()
    compiler = Compiler(engine, memory=memory)
    used = compiler.compile(module(1), "used")
    compiler.compile(module(2), "unused")
    memory.of(engine).clear()
    gc.collect()

    assert compiler.find(content_digest(module(1))) is used
    assert compiler.find(content_digest(module(2))) is None


@pytest.mark.timeout(60)
def test_threads_that_want_the_same_code_compile_it_once(engine: CountingEngine) -> None:
    """Eight threads ask while one compiles: it compiles alone, all get its code, and other code is not held up."""
    memory = CodeCache()
    compiler = Compiler(engine, memory=memory)
    ready = Compiler(engine, memory=memory).compile(module(0), "ready")
    engine.entered.clear()
    engine.may_go_on.clear()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(compiler.compile, module(1), f"m{number}") for number in range(8)]
        assert engine.entered.wait(30)
        assert compiler.compile(module(0), "ready") is ready
        engine.may_go_on.set()
        codes = {id(one.result(30)) for one in asked}

    assert len(codes) == 1
    assert engine.compiled.count(module(1)) == 1


@pytest.mark.timeout(60)
def test_a_refusal_reaches_all_who_wait_each_with_its_own_name(engine: CountingEngine) -> None:
    """Threads that wait for code that the engine refuses get an error that names the module as they call it."""
    compiler = Compiler(engine, memory=CodeCache())
    engine.may_go_on.clear()

    def refused(name: str) -> str:
        with pytest.raises(dl.InvalidModuleError) as caught:
            compiler.compile(BROKEN, name)
        return caught.value.module

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(refused, f"m{number}.so") for number in range(4)]
        assert engine.entered.wait(30)
        engine.may_go_on.set()

        assert [one.result(30) for one in asked] == [f"m{number}.so" for number in range(4)]


@pytest.mark.timeout(60)
def test_a_thread_that_is_interrupted_leaves_the_work_to_the_next() -> None:
    """An exception that is not the engine's, such as Ctrl-C while compiling, is raised in its thread alone."""
    memory, engine = CodeCache(), CountingEngine()
    digest, compiling, waiting = content_digest(module(1)), threading.Event(), threading.Event()

    def interrupted() -> CompiledModule:
        compiling.set()
        assert waiting.wait(30)
        raise KeyboardInterrupt

    def second() -> CompiledModule:
        assert compiling.wait(30)
        waiting.set()
        return memory.of(engine).get(digest, lambda: engine.compile(module(1)))

    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(second)
        with pytest.raises(KeyboardInterrupt):
            memory.of(engine).get(digest, interrupted)

        assert other.result(30).code_bytes > 0
    assert memory.of(engine).get(digest, interrupted) is other.result()


def test_a_thread_does_not_wait_for_itself() -> None:
    """Who compiles and, from a signal handler, wants the same code again compiles it there."""
    memory, engine = CodeCache(), CountingEngine()
    digest = content_digest(module(1))

    def make() -> CompiledModule:
        if not engine.compiled:
            return memory.of(engine).get(digest, lambda: engine.compile(module(1)))
        return engine.compile(module(1))

    assert memory.of(engine).get(digest, make).code_bytes > 0


def test_generated_modules_are_found_by_their_inputs(engine: CountingEngine) -> None:
    """What was generated before is not generated again, as long as its code is there; if it is not, it is."""
    memory, runs = CodeCache(), []
    compiler = Compiler(engine, memory=memory)

    def make() -> bytes:
        runs.append(1)
        return module(77)

    inputs = (test_generated_modules_are_found_by_their_inputs.__name__, 1)
    first = generated(compiler, inputs, "g", make)
    assert generated(compiler, inputs, "g", make) is first
    assert len(runs) == 1
    del first
    memory.of(engine).clear()
    gc.collect()
    generated(compiler, inputs, "g", make)
    assert len(runs) == 2


# Its function section says that it returns a number, and its body does not.
_REFUSED = library(MEMORY, TABLE, '(func (export "f") (result i32) i32.const 1)')

TRAPS = library(TABLE, returns("f", 1), '(func (export "trap") unreachable)')


def trap_in(group: dl.InstanceGroup, handle: dl.ModuleHandle) -> str:
    with pytest.raises(dl.TrapError) as caught:
        group.dlsym(handle, "trap")()
    return caught.value.frames[0].partition("!")[0]


def test_libraries_of_equal_content_keep_their_names() -> None:
    """Traps name the right one of several libraries of equal content: in one program, in two, and after one is closed."""
    names = ["first.so", "second.so", "third.so"]
    memory = dl.MemoryType(32, 256)
    with dl.Linker(None, memory=memory, libraries=dict.fromkeys(names, TRAPS)) as linker:
        group = linker.main_group
        handles = {name: group.dlopen(name) for name in names}
        assert [trap_in(group, handles[name]) for name in names] == names

        with dl.Linker(None, memory=memory, libraries={"other.so": TRAPS}) as other:
            assert trap_in(other.main_group, other.main_group.dlopen("other.so")) == "other.so"
            assert [trap_in(group, handles[name]) for name in names] == names
    with dl.Linker(None, memory=memory, libraries={"later.so": TRAPS}) as linker:
        assert trap_in(linker.main_group, linker.main_group.dlopen("later.so")) == "later.so"


def test_libraries_of_equal_content_keep_their_names_in_threads() -> None:
    """A thread that instantiates all libraries at once names them as the thread that loaded them."""
    names = ["first.so", "second.so"]
    memory = dl.MemoryType(32, 256, shared=True)
    with dl.Linker(None, memory=memory, libraries=dict.fromkeys(names, TRAPS)) as linker:
        handles = {name: linker.main_group.dlopen(name) for name in names}
        thread = linker.spawn(lambda group: [trap_in(group, handles[name]) for name in names])

        assert thread.join() == names


def test_errors_of_compilation_name_the_module() -> None:
    """A library that the engine refuses is named as it was asked for, though equal bytes were refused under another name."""
    broken = _REFUSED.replace(b"\x41\x01\x0b", b"\x01\x01\x0b")  # two nops in place of the constant
    with dl.Linker(None, memory=dl.MemoryType(32, 256), libraries={"a.so": broken, "b.so": broken}) as linker:
        for name in ("a.so", "b.so"):
            with pytest.raises(dl.InvalidModuleError, match=rf"^cannot link {name}: .*type mismatch"):
                linker.main_group.dlopen(name)


def test_numbered_copies_differ_in_content_alone(engine: CountingEngine) -> None:
    """Copies 1, 2, … of a module behave as the module does and are code of their own; copy 0 is the module."""
    plain = module(5)
    copies = [numbered_copy(plain, number) for number in (0, 1, 2, 300)]
    compiler = Compiler(engine, memory=CodeCache())
    store = engine.new_store(engine.host_functions(NoBoundary()))
    kind = FuncType((), ("i32",))

    assert copies[0] is plain
    assert len(set(copies)) == 4
    for number, copy in enumerate(copies):
        code = compiler.compile(copy, f"c{number}")
        assert store.instantiate(code, f"c{number}").function("f", kind)() == 5
    assert len(engine.compiled) == 4
