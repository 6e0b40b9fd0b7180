"""Side memory from the program's own `malloc`, with threads: no replay calls it, and every kind of thread can be made."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import dl
from tests.support.groups import SECONDS, until
from tests.support.modules import MEMORY_BASE, SHARED_MEMORY, data, imports, pie
from tests.support.modules import library as wat_library

LOCK, SPINS, STOP, NEXT, LIVE, STACK = 0, 4, 8, 12, 16, 2048
HEAP = 1 << 20

# Its allocator holds a lock, of the kind that C libraries have, for most of the time.
MAIN = pie(
    imports("spawn", "(param i32) (result i32)").replace('"env" "spawn"', '"wasi" "thread-spawn"'),
    data("words", 0),
    '(func (export "wasi_thread_start") (param i32 i32) (global.set $sp (local.get 1)) (call $work))',
    '(func (export "start") (result i32) (call $spawn (i32.add (global.get $memory_base) (i32.const 2048))))',
    f"""(func $malloc (export "malloc") (param i32) (result i32) (local $n i32)
        (block $locked (loop $again
          (br_if $locked (i32.eqz (i32.atomic.rmw.cmpxchg offset={LOCK} (global.get $memory_base) (i32.const 0) (i32.const 1))))
          (drop (memory.atomic.wait32 offset={LOCK} (global.get $memory_base) (i32.const 1) (i64.const -1)))
          (br $again)))
        (loop $slow (br_if $slow (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 20000))))
        (local.set $n (i32.load offset={NEXT} (global.get $memory_base)))
        (i32.store offset={NEXT} (global.get $memory_base)
          (i32.add (local.get $n) (i32.and (i32.add (local.get 0) (i32.const 31)) (i32.const -16))))
        (i32.store offset={LIVE} (global.get $memory_base)
          (i32.add (i32.load offset={LIVE} (global.get $memory_base)) (i32.const 1)))
        (i32.atomic.store offset={LOCK} (global.get $memory_base) (i32.const 0))
        (drop (memory.atomic.notify offset={LOCK} (global.get $memory_base) (i32.const 1)))
        (i32.add (i32.const {HEAP}) (local.get $n)))""",
    f"""(func (export "free") (param i32)
        (drop (i32.atomic.rmw.sub offset={LIVE} (global.get $memory_base) (i32.const 1))))""",
    f"""(func $work (export "work") (loop $again
        (drop (call $malloc (i32.const 0)))
        (drop (i32.atomic.rmw.sub offset={LIVE} (global.get $memory_base) (i32.const 1)))
        (i32.store offset={SPINS} (global.get $memory_base)
          (i32.add (i32.load offset={SPINS} (global.get $memory_base)) (i32.const 1)))
        (br_if $again (i32.eqz (i32.load offset={STOP} (global.get $memory_base))))))""",
    shared=True,
    memory_size=STACK + 64,
    memory_align=4,
)  # fmt: skip

OWNER = wat_library(
    SHARED_MEMORY,
    MEMORY_BASE,
    '(global $tls (export "__tls_base") (mut i32) (i32.const 0))',
    '(global (export "__tls_size") i32 (i32.const 8))',
    '(global (export "__tls_align") i32 (i32.const 4))',
    """(func (export "__wasm_init_tls") (param i32)
        (global.set $tls (local.get 0))
        (i32.store offset=4 (local.get 0) (i32.add (i32.load offset=4 (local.get 0)) (i32.const 77))))""",
    '(func (export "own") (result i32) (i32.load offset=4 (global.get $tls)))',
    """(func (export "add") (result i32)
        (i32.store offset=4 (global.get $tls) (i32.add (i32.load offset=4 (global.get $tls)) (i32.const 1)))
        (i32.load offset=4 (global.get $tls)))""",
)
FAILS = wat_library(
    SHARED_MEMORY,
    '(global $tls (export "__tls_base") (mut i32) (i32.const 0))',
    '(global (export "__tls_size") i32 (i32.const 8))',
    '(global (export "__tls_align") i32 (i32.const 4))',
    '(func (export "__wasm_init_tls") (param i32) (global.set $tls (local.get 0)))',
    '(func (export "__wasm_call_ctors") unreachable)',
)


@pytest.fixture(name="linker")
def _linker() -> Iterator[dl.Linker]:
    memory = dl.MemoryType(minimum=2048, maximum=65536, shared=True)
    with dl.Linker(
        MAIN, name="main.wasm", memory=memory, side_memory="allocator", thread_stack_size=4096
    ) as linker:
        yield linker


def word(linker: dl.Linker, offset: int) -> int:
    return linker.memory.read_u32(linker.main_group.dlsym(dl.MAIN_HANDLE, "words").address + offset)


def call(group: dl.InstanceGroup, handle: int, name: str) -> Any:
    return group.dlsym(handle, name)()


def spun_since(linker: dl.Linker, spins: int) -> Callable[[], bool]:
    """Whether the thread that allocates has gone on since its counter was so."""
    return lambda: word(linker, SPINS) > spins


class TestReplay:
    @pytest.mark.parametrize("kind", ["guest", "host"])
    def test_thread_interrupted_inside_malloc_follows_a_load(self, linker: dl.Linker, kind: str) -> None:
        """A thread that is mostly inside `malloc`, under its lock, follows loads with thread-locals and computes on."""
        group = linker.main_group
        if kind == "guest":
            assert call(group, dl.MAIN_HANDLE, "start") > 0
        else:
            linker.spawn(call, dl.MAIN_HANDLE, "work")
        for number in range(20):
            handle = group.dlopen(OWNER, name=f"owner{number}.so")
            assert call(group, handle, "own") == 77
            until(spun_since(linker, word(linker, SPINS)))
        linker.memory.write_u32(group.dlsym(dl.MAIN_HANDLE, "words").address + STOP, 1)

    def test_failed_load_leaves_nothing(self, linker: dl.Linker) -> None:
        """A load with thread-locals whose constructor traps gives back all blocks, those of other threads included."""
        group, ready, leave = linker.main_group, threading.Event(), threading.Event()

        def follow(own: dl.InstanceGroup) -> None:
            own.synchronize()
            ready.set()
            assert leave.wait(SECONDS)
            own.synchronize()

        thread = linker.spawn(follow)
        assert ready.wait(SECONDS)
        counts = []
        for _ in range(5):
            with pytest.raises(dl.InitializationError):
                group.dlopen(FAILS, name="fails.so")
            group.dlopen(OWNER, name="owner.so")  # an allocation gives back what was to be freed
            counts.append(word(linker, LIVE))
        leave.set()
        thread.join(SECONDS)
        assert counts[1:] == [counts[1]] * 4


class TestThreads:
    def test_spawned_and_attached(self, linker: dl.Linker) -> None:
        """Threads that are spawned or attached have zeroed thread-locals of their own, before and after a load."""
        before = linker.spawn(lambda own: own.name, name="early").join(SECONDS)
        handle = linker.main_group.dlopen(OWNER, name="owner.so")

        def attach() -> list[Any]:
            with linker.attach() as own:
                return [call(own, handle, "add"), call(own, handle, "add")]

        with ThreadPoolExecutor(4) as pool:
            attached = [pool.submit(attach) for _ in range(16)]
            spawned = [linker.spawn(lambda own: call(own, handle, "add")) for _ in range(16)]
            assert [each.result(SECONDS) for each in attached] == [[78, 79]] * 16
            assert [each.join(SECONDS) for each in spawned] == [78] * 16
        assert before == "early"

    def test_come_and_go_without_growth(self, linker: dl.Linker) -> None:
        """Threads that end give their blocks back: the program's allocator has as many of them after 50 as after 2."""
        handle = linker.main_group.dlopen(OWNER, name="owner.so")
        counts = []
        for _ in range(50):
            assert linker.spawn(lambda own: call(own, handle, "own")).join(SECONDS) == 77
            counts.append(word(linker, LIVE))
        assert max(counts[2:]) == counts[2]

    def test_loads_while_threads_come(self, linker: dl.Linker) -> None:
        """Loads with thread-locals, and threads that come at the same time, find each other's blocks."""

        def load(own: dl.InstanceGroup, first: int) -> list[Any]:
            handles = [own.dlopen(OWNER, name=f"owner{first + n}.so") for n in range(10)]
            return [call(own, handle, "own") for handle in handles]

        loading = [linker.spawn(load, 100 * n) for n in range(3)]
        coming = [linker.spawn(lambda own: own.synchronize()) for _ in range(20)]
        assert [each.join(SECONDS) for each in loading] == [[77] * 10] * 3
        assert [each.join(SECONDS) for each in coming] == [None] * 20
