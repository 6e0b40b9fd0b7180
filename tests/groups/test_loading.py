"""Loads on many threads: one load for all who ask, constructors that load and start threads, look-ups meanwhile."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import dl
from tests.support.groups import SECONDS, Program, held, library, program, state_of, until


class Stop(Exception):
    """What the tests cancel threads with."""


class Constructor:
    """A host function for constructors that says when it was reached and waits until it may return."""

    def __init__(self, p: Program) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.calls: list[int] = []
        p.on_construct = self

    def __call__(self, addend: int) -> None:
        self.calls.append(addend)
        self.reached.set()
        assert self.go_on.wait(SECONDS)


class TestOneLoad:
    def test_threads_that_open_at_once_get_one_module(self) -> None:
        """Eight threads that open a library at the same time get one handle, and its constructor runs once."""
        with program() as p:
            calls: list[Any] = []
            p.on_construct = calls.append
            for number in range(10):
                wasm, together = library(number, constructor=True), threading.Barrier(8)

                def body(
                    group: dl.InstanceGroup,
                    wasm: bytes = wasm,
                    name: str = f"l{number}.so",
                    together: threading.Barrier = together,
                ) -> tuple[dl.ModuleHandle, int]:
                    together.wait(SECONDS)
                    handle = group.dlopen(wasm, name=name)
                    return handle, group.dlsym(handle, "value")(0)

                results = {t.join(SECONDS) for t in [p.linker.spawn(body) for _ in range(8)]}
                assert results == {(dl.ModuleHandle(2 + number), number)}
            assert calls == list(range(10))

    def test_second_opener_waits_for_constructors(self) -> None:
        """A second opener gets the handle when the constructors have run, not before."""
        with program() as p:
            gate = Constructor(p)
            wasm = library(1, constructor=True)
            first = p.linker.spawn(lambda g: g.dlopen(wasm, name="lib.so"))
            assert gate.reached.wait(SECONDS)
            second = p.linker.spawn(lambda g: (g.dlopen(wasm, name="lib.so"), gate.go_on.is_set()))
            until(lambda: p.linker.statistics().protocol.detached + p.linker.statistics().protocol.host >= 3)
            assert second.is_alive()
            gate.go_on.set()

            assert second.join(SECONDS) == (first.join(SECONDS), True)
            assert gate.calls == [1]

    def test_dependency_under_construction_is_waited_for(self) -> None:
        """A library runs its constructors when those of what it needs have run, also in another thread."""
        with program() as p:
            gate = Constructor(p)
            low, high = library(1, constructor=True), library(2, constructor=True, needed=("low.so",))
            first = p.linker.spawn(lambda g: g.dlopen(low, name="low.so"))
            assert gate.reached.wait(SECONDS)
            second = p.linker.spawn(lambda g: g.dlopen(high, name="high.so"))
            until(lambda: 3 in p.linker.program.state.modules)
            assert gate.calls == [1]
            gate.go_on.set()

            assert (first.join(SECONDS), second.join(SECONDS)) == (2, 3)
            assert gate.calls == [1, 2]

    def test_failed_constructor_fails_all_who_wait(self) -> None:
        """A constructor that traps fails the load for every thread that waits for it, and what depends on it."""
        wasm = library(1, constructor=True, traps=True)
        high = library(2, needed=("low.so",))
        with program() as p:
            before = held(p.linker)
            gate = Constructor(p)
            threads = [p.linker.spawn(lambda g: g.dlopen(wasm, name="low.so"))]
            assert gate.reached.wait(SECONDS)
            threads += [p.linker.spawn(lambda g: g.dlopen(wasm, name="low.so")) for _ in range(2)]
            threads += [p.linker.spawn(lambda g: g.dlopen(high, name="high.so"))]
            until(lambda: 3 in p.linker.program.state.modules)
            until(lambda: p.linker.statistics().protocol.guest == 0)
            gate.go_on.set()
            for thread in threads:
                with pytest.raises(dl.InitializationError):
                    thread.join(SECONDS)
            until(p.is_alone)
            assert held(p.linker) == before

    def test_cancelled_load_is_made_by_who_waits(self) -> None:
        """When the thread that loads a library is cancelled in its constructor, who waits for it loads it instead."""
        with program() as p:
            gate = Constructor(p)
            wasm = library(1, constructor=True)
            first = p.linker.spawn(lambda g: g.dlopen(wasm, name="lib.so"))
            assert gate.reached.wait(SECONDS)
            others = [
                p.linker.spawn(lambda g: (g.dlopen(wasm, name="lib.so"), state_of(g))) for _ in range(3)
            ]
            first.cancel(Stop())
            gate.go_on.set()
            with pytest.raises(Stop):
                first.join(SECONDS)
            results = [thread.join(SECONDS) for thread in others]

            assert {handle for handle, _ in results} == {3}
            assert gate.calls == [1, 1]
            assert all(state == state_of(p.main) for _, state in results)


class TestConstructors:
    def test_open_look_up_and_start_threads(self) -> None:
        """A constructor may open other libraries, look up symbols, and start and join threads."""
        with program() as p:
            seen = []

            def on_construct(addend: int) -> None:
                group = p.here()
                inner = group.dlopen(library(10 * addend), name="inner.so")
                seen.append(group.dlsym(inner, "value")(1))
                own = group.dlopen(library(addend, constructor=True), name="lib.so")
                seen.append(group.dlsym(own, "value")(1))
                seen.append(p.linker.spawn(lambda g: g.dlsym(own, "value")(2)).join(SECONDS))
                seen.append(p.start(group) > 1)

            p.on_construct = on_construct
            p.main.dlopen(library(5, constructor=True), name="lib.so")
            assert seen == [51, 6, 7, True]

    def test_that_open_each_others_libraries_do_not_wait_for_ever(self) -> None:
        """Two threads whose constructors open each other's library both get through."""
        with program() as p:
            together = threading.Barrier(2)
            wasm = {1: library(1, constructor=True), 2: library(2, constructor=True)}

            def on_construct(addend: int) -> None:
                together.wait(SECONDS)
                p.here().dlopen(wasm[3 - addend], name=f"l{3 - addend}.so")

            p.on_construct = on_construct
            threads = [p.linker.spawn(lambda g, n=n: g.dlopen(wasm[n], name=f"l{n}.so")) for n in (1, 2)]
            assert {thread.join(SECONDS) for thread in threads} == {2, 3}

    def test_no_lock_is_held(self) -> None:
        """While a constructor runs, other threads look up and load."""
        with program() as p:
            gate = Constructor(p)
            loading = p.linker.spawn(lambda g: g.dlopen(library(1, constructor=True), name="slow.so"))
            assert gate.reached.wait(SECONDS)

            handle = p.main.dlopen(library(2), name="quick.so")
            assert p.main.dlsym(handle, "value")(1) == 3
            assert p.linker.spawn(lambda g: g.dlsym(handle, "value")(2)).join(SECONDS) == 4
            gate.go_on.set()
            loading.join(SECONDS)


class TestMeanwhile:
    def test_look_ups_during_loads(self) -> None:
        """Threads look up and call all the while others load; none sees half a library."""
        with program() as p:
            stop = threading.Event()
            names: list[tuple[dl.ModuleHandle, int]] = []

            def look_up(group: dl.InstanceGroup) -> int:
                done = 0
                while not stop.is_set() or not done:
                    for handle, addend in names[-10:]:
                        assert group.dlsym(handle, "value")(1) == addend + 1
                        assert group.dlsym(handle, "where")()[0] % 16 == 0
                        done += 1
                    stop.wait(0.001)  # the loading threads have their turn
                return done

            def load(group: dl.InstanceGroup, first: int) -> None:
                for number in range(first, first + 40):
                    handle = group.dlopen(library(number % 8), name=f"l{number}.so")
                    names.append((handle, number % 8))

            lookers = [p.linker.spawn(look_up) for _ in range(4)]
            loaders = [p.linker.spawn(load, 1000 * n) for n in range(3)]
            for thread in loaders:
                thread.join(SECONDS)
            stop.set()
            assert all(thread.join(SECONDS) for thread in lookers)
            assert len(p.linker.modules) == 121

    def test_host_functions_link_from_several_threads(self) -> None:
        """Host functions that the guest calls open libraries and look up, from several threads of the guest at once."""
        with program() as p:
            done = []

            def on_thread(number: int, _record: int) -> None:
                group = p.here()
                for step in range(5):
                    handle = group.dlopen(library(step), name=f"l{step}.so")
                    own = group.dlopen(library(step), name=f"l{number}-{step}.so")
                    done.append(group.dlsym(handle, "value")(0) == group.dlsym(own, "value")(0) == step)

            p.on_thread = on_thread
            for _ in range(6):
                p.start()
            until(p.is_alone)
            assert done == [True] * 30
            assert len(p.linker.modules) == 36

    def test_spawning_during_loads(self) -> None:
        """Threads that are made while others load are equal to them."""
        with program() as p, ThreadPoolExecutor(4) as pool:

            def load(number: int) -> None:
                with p.linker.attach() as group:
                    for step in range(15):
                        group.dlopen(
                            library(step % 4, thread_local=step % 2 == 1), name=f"l{number}-{step}.so"
                        )
                        p.linker.spawn(lambda g: g.table()).join(SECONDS)

            for future in [pool.submit(load, n) for n in range(4)]:
                future.result(SECONDS)
            assert p.linker.spawn(state_of).join(SECONDS) == state_of(p.main)
