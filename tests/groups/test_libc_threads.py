"""Threads of the host are threads of the program's C library: its locks lock, its per-thread state is theirs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dl
from tests.support.groups import SECONDS, held, until
from tests.support.modules import SHARED_MEMORY, imports
from tests.support.modules import library as wat_library

PROGRAM = Path(__file__).resolve().parents[2] / "fixtures" / "plugins" / "shared" / "main.wasm"
RECURSIVE = 1
THREADS = 4

COUNTER = wat_library(
    SHARED_MEMORY,
    imports("pthread_mutex_lock", "(param i32) (result i32)"),
    imports("pthread_mutex_unlock", "(param i32) (result i32)"),
    """(func (export "count") (param $mutex i32) (param $word i32) (param $rounds i32)
        (loop $again
          (drop (call $pthread_mutex_lock (local.get $mutex)))
          (drop (call $pthread_mutex_lock (local.get $mutex)))
          (i32.store (local.get $word) (i32.add (i32.load (local.get $word)) (i32.const 1)))
          (drop (call $pthread_mutex_unlock (local.get $mutex)))
          (drop (call $pthread_mutex_unlock (local.get $mutex)))
          (br_if $again (local.tee $rounds (i32.sub (local.get $rounds) (i32.const 1))))))""",
)


@pytest.fixture(name="printed")
def _printed() -> list[Any]:
    return []


@pytest.fixture(name="linker")
def _linker(printed: list[bytes]) -> Iterator[dl.Linker]:
    with dl.Linker(PROGRAM, stdout=lambda chunk: printed.append(bytes(chunk)), args=["main", "!"]) as made:
        yield made


def libc(group: dl.InstanceGroup, name: str, *arguments: int) -> Any:
    """Call a function of the C library."""
    return group.dlsym(dl.MAIN_HANDLE, name)(*arguments)


def text(group: dl.InstanceGroup, content: str) -> int:
    """A string on the program's heap."""
    address = libc(group, "malloc", len(content) + 1) & 0xFFFFFFFF
    group.linker.memory.write(address, content.encode() + b"\0")
    return address


class TestIdentity:
    def test_each_thread_is_somebody(self, linker: dl.Linker) -> None:
        """`pthread_self` is not null, in no thread the same at one time, and stays the same in a thread."""
        together = threading.Barrier(THREADS)

        def body(group: dl.InstanceGroup) -> tuple[int, int]:
            first = libc(group, "pthread_self")
            together.wait(SECONDS)
            return first, libc(group, "pthread_self")

        seen = [t.join(SECONDS) for t in [linker.spawn(body) for _ in range(THREADS)]]
        selves = {first for first, _ in seen} | {libc(linker.main_group, "pthread_self")}

        assert all(first == again for first, again in seen)
        assert len(selves) == THREADS + 1
        assert 0 not in selves

    def test_attached_thread_is_somebody_only_while_it_is_attached(self, linker: dl.Linker) -> None:
        """A thread that attaches again is made anew; neither time leaves anything behind."""

        def body() -> None:
            for _ in range(20):
                with linker.attach() as group:
                    seen.append(libc(group, "pthread_self"))

        seen: list[Any] = []
        for _ in range(3):
            thread = threading.Thread(target=body)
            thread.start()
            thread.join(SECONDS)
            assert not thread.is_alive()
            now = held(linker), linker.statistics().memory_bytes
            if len(seen) == 20:
                before = now
        assert len(seen) == 60
        assert now == before

    def test_destructors_of_thread_specific_data_run(self, linker: dl.Linker) -> None:
        """When the host's thread leaves, the C library's destructors for it run, in it."""
        ended = []
        with linker.callback(
            "(i32) -> ()", lambda value: ended.append((value, threading.get_ident()))
        ) as destroy:
            key = libc(linker.main_group, "malloc", 4)
            assert libc(linker.main_group, "pthread_key_create", key, destroy.address) == 0
            number = linker.memory.read_u32(key)

            def body(group: dl.InstanceGroup, value: int) -> int:
                libc(group, "pthread_setspecific", number, value)
                return threading.get_ident()

            threads = [linker.spawn(body, value) for value in (5, 6)]
            idents = [thread.join(SECONDS) for thread in threads]
        assert sorted(ended) == sorted(zip((5, 6), idents, strict=True))


class TestLocks:
    def test_lines_are_not_torn(self, linker: dl.Linker, printed: list[Any]) -> None:
        """Lines that several threads print come out whole, each as often as it was printed."""

        def body(group: dl.InstanceGroup, number: int) -> None:
            line = text(group, f"{number}" * (50 + number))
            for _ in range(300):
                libc(group, "puts", line)
            libc(group, "fflush", 0)

        for thread in [linker.spawn(body, number) for number in range(THREADS)]:
            thread.join(SECONDS)
        lines = b"".join(printed).decode().splitlines()

        assert sorted(lines) == sorted(f"{n}" * (50 + n) for n in range(THREADS) for _ in range(300))

    def test_recursive_mutex_excludes_others(self, linker: dl.Linker) -> None:
        """A recursive mutex that a thread takes twice keeps the others out."""
        group = linker.main_group
        count = group.dlopen(COUNTER, name="counter.so")
        block = libc(group, "calloc", 1, 256) & 0xFFFFFFFF
        attributes, mutex, word = block, block + 64, block + 128
        libc(group, "pthread_mutexattr_init", attributes)
        libc(group, "pthread_mutexattr_settype", attributes, RECURSIVE)
        libc(group, "pthread_mutex_init", mutex, attributes)
        threads = [
            linker.spawn(lambda g: g.dlsym(count, "count")(mutex, word, 20_000)) for _ in range(THREADS)
        ]
        for thread in threads:
            thread.join(SECONDS)

        assert linker.memory.read_u32(word) == THREADS * 20_000

    def test_heap_serves_all_threads(self, linker: dl.Linker) -> None:
        """Blocks that threads allocate at the same time do not overlap, and are freed by others."""

        def body(group: dl.InstanceGroup, number: int) -> list[tuple[int, int, int]]:
            blocks = []
            for round_ in range(400):
                size = 1 + (round_ * 37 + number) % 500
                address = libc(group, "malloc", size) & 0xFFFFFFFF
                libc(group, "memset", address, number + 1, size)
                blocks.append((address, size, number + 1))
            return blocks

        blocks = [b for t in [linker.spawn(body, n) for n in range(THREADS)] for b in t.join(SECONDS)]
        assert all(
            linker.memory.read(address, size) == bytes([value]) * size for address, size, value in blocks
        )
        for address, _, _ in blocks:
            libc(linker.main_group, "free", address)


class TestProgram:
    def test_runs_beside_attached_threads(self, linker: dl.Linker, printed: list[Any]) -> None:
        """The program can be run while threads of the host use its library; both print whole lines."""
        started, go_on = threading.Event(), threading.Event()

        def body(group: dl.InstanceGroup) -> None:
            libc(group, "puts", text(group, "before"))
            started.set()
            go_on.wait(SECONDS)
            libc(group, "puts", text(group, "after"))
            libc(group, "fflush", 0)

        thread = linker.spawn(body)
        assert started.wait(SECONDS)
        runner = linker.main_group
        assert libc(runner, "malloc", 8)
        go_on.set()
        thread.join(SECONDS)
        assert runner.run() == 0
        lines = b"".join(printed).decode().splitlines()

        assert sorted(line for line in lines if line in ("before", "after")) == ["after", "before"]
        assert any(line.startswith("shared") for line in lines)

    def test_thread_that_is_cancelled_leaves_the_library(self, linker: dl.Linker) -> None:
        """A thread that is cancelled while it waits ends for the C library too, and its locks go on working."""

        class Stop(Exception):
            pass

        before = held(linker)
        sem = libc(linker.main_group, "calloc", 1, 64) & 0xFFFFFFFF
        libc(linker.main_group, "sem_init", sem, 0, 0)
        for _ in range(5):
            thread = linker.spawn(lambda g: libc(g, "sem_wait", sem))
            until(lambda: any("futex" in what for _, what in linker.program.waits.waiting()))
            thread.cancel(Stop())
            with pytest.raises(Stop):
                thread.join(SECONDS)
        until(lambda: len(linker.parts.groups.all()) == 1)
        after = held(linker)

        assert libc(linker.main_group, "pthread_self") != 0
        assert after[0] == before[0]
        assert linker.spawn(lambda g: libc(g, "puts", text(g, "still"))).join(SECONDS) >= 0
