"""Threads and their instance groups: how they come to be, that all are equal, how they end, what they leave behind."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import dl
from tests.support.groups import SECONDS, held, library, program, state_of, until
from tests.support.modules import library as wat_library


class Stop(Exception):
    """What the tests cancel threads with."""


class TestComing:
    def test_spawned_thread_has_a_group_of_its_own(self) -> None:
        """A spawned function gets a group that is the thread's own, and its result comes back."""
        with program() as p:
            thread = p.linker.spawn(lambda group, x: (group, group.owner, threading.get_ident(), x), 7)
            group, owner, ident, x = thread.join(SECONDS)

            assert group is not p.main
            assert (owner == ident, x) == (True, 7)
            assert not thread.is_alive()

    def test_spawned_thread_raises_where_it_is_joined(self) -> None:
        """What the function raises, the join raises."""
        with program() as p:
            with pytest.raises(Stop):
                p.linker.spawn(lambda _group: (_ for _ in ()).throw(Stop())).join(SECONDS)

    def test_attach_gives_one_group_for_the_block(self) -> None:
        """Inside an attached block, attaching again gives the same group; after it the group is closed."""
        with program() as p:

            def body() -> tuple[bool, int, str]:
                with p.linker.attach("mine") as group:
                    with p.linker.attach() as again:
                        same = again is group
                    result = p.call(group, "count", p.word(0))
                with pytest.raises(dl.LinkerClosedError):
                    group.dlsym(dl.MAIN_HANDLE, "count")
                return same, result, group.name

            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(body).result(SECONDS) == (True, 0, "mine")

    def test_pool_workers_attach(self) -> None:
        """Workers of a thread pool attach for each task, and all tasks see one memory."""
        with program() as p, ThreadPoolExecutor(4) as pool:
            handle = p.main.dlopen(library(5), name="lib.so")

            def task(x: int) -> int:
                with p.linker.attach() as group:
                    p.call(group, "count", p.word(0))
                    return group.dlsym(handle, "value")(x)

            assert list(pool.map(task, range(100), timeout=SECONDS)) == [x + 5 for x in range(100)]
            assert p.memory.read_u32(p.word(0)) == 100
            assert p.is_alone()

    def test_group_of_another_thread_is_refused(self) -> None:
        """A group serves its own thread only, and says so."""
        with program() as p:
            value = p.main.dlsym(dl.MAIN_HANDLE, "count")
            with pytest.raises(dl.LinkerUsageError, match="belongs to another thread"):
                p.linker.spawn(lambda _group: value(p.word(0))).join(SECONDS)

    def test_unshared_program_has_one_group(self) -> None:
        """A program whose memory is not shared refuses threads and says what to do."""
        with dl.Linker(None) as linker:
            for make in (lambda: linker.spawn(print), lambda: linker.attach().__enter__()):
                with pytest.raises(dl.LinkerUsageError, match="not shared"):
                    ThreadPoolExecutor(1).submit(make).result(SECONDS)


class TestEquality:
    def test_groups_made_before_and_after_loads_are_equal(self) -> None:
        """Groups that were there before a load, came between two, or came after, have the same tables, bases and GOT."""
        with program() as p:
            go = [threading.Event() for _ in range(4)]
            opened = []

            def body(group: dl.InstanceGroup) -> dict[str, Any]:
                for event in go:
                    assert event.wait(SECONDS)
                return state_of(group)

            threads = []
            for number, event in enumerate(go):
                threads += [p.linker.spawn(body) for _ in range(2)]
                opened.append(
                    p.main.dlopen(library(number, thread_local=number % 2 == 1), name=f"l{number}.so")
                )
                event.set()
            expected = state_of(p.main)
            table = p.main.table()
            late = p.linker.spawn(state_of).join(SECONDS)

            assert len(table) > 20
            assert late == expected
            assert all(thread.join(SECONDS) == expected for thread in threads)

    def test_function_has_one_address_everywhere(self) -> None:
        """A pointer written by one thread is the same function in each other, in both directions."""
        with program() as p:
            handle = p.main.dlopen(library(30), name="lib.so")
            address = p.main.dlsym(handle, "value").address

            def body(group: dl.InstanceGroup) -> tuple[int, int]:
                own = group.dlopen(library(40), name="other.so")
                return p.call(group, "call", address, 1), group.dlsym(own, "value").address

            result, other = p.linker.spawn(body).join(SECONDS)
            assert result == 31
            assert p.call(p.main, "call", other, 2) == 42

    def test_thread_that_only_computes_follows(self) -> None:
        """A thread that spins without calling the host holds up no load, and calls what it then finds in memory."""
        with program() as p:
            threads = [p.linker.spawn(lambda g, n=n: p.call(g, "spin", p.word(n))) for n in range(4)]
            p.until(4, "guest")
            for number, thread in enumerate(threads):
                handle = p.main.dlopen(library(100 * number), name=f"l{number}.so")
                p.publish(p.word(number), p.main.dlsym(handle, "value").address)
                assert thread.join(SECONDS) == 100 * number + 1


class TestEnding:
    def test_guest_thread_returns(self) -> None:
        """A thread of the guest gets its number and record, and is gone when it has returned."""
        with program() as p:
            seen = []
            p.on_thread = lambda number, record: seen.append((number, threading.get_ident()))
            number = p.start()
            until(p.is_alone)

            assert seen[0][0] == number >= 2
            assert seen[0][1] != threading.get_ident()

    def test_trap_ends_a_host_thread_alone(self) -> None:
        """A trap goes to the thread's caller; the program goes on."""
        with program() as p:
            with pytest.raises(dl.TrapError, match="unreachable"):
                p.linker.spawn(lambda g: p.call(g, "trap")).join(SECONDS)
            assert p.call(p.main, "count", p.word(0)) == 0
            assert p.linker.spawn(lambda g: p.call(g, "count", p.word(0))).join(SECONDS) == 1

    def test_trap_in_a_guest_thread_ends_the_program(self) -> None:
        """A guest thread that traps takes the program with it, named in the error that every other thread gets."""
        with program() as p:
            spinning = p.linker.spawn(lambda g: p.call(g, "spin", p.word(0)))
            p.until(1, "guest")
            go = threading.Event()
            p.on_thread = lambda _n, _r: (go.wait(SECONDS), p.call(p.here(), "trap"))
            number = p.start()
            go.set()
            with pytest.raises(dl.GuestThreadError, match=f"thread {number}: guest trapped"):
                spinning.join(SECONDS)
            with pytest.raises(dl.GuestThreadError):
                p.call(p.main, "count", p.word(0))

    @pytest.mark.parametrize("busy", ["spin", "wait"])
    def test_proc_exit_ends_all_threads(self, busy: str) -> None:
        """`proc_exit` in one thread ends all others, computing or waiting, with its code."""
        exits = wat_library(
            '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))',
            '(func (export "leave") (param i32) local.get 0 call $exit)',
        )
        with program() as p:
            leave = p.main.dlopen(exits, name="exits.so")
            arguments = (p.word(0),) if busy == "spin" else (p.word(0), 0, -1)
            others = [p.linker.spawn(lambda g: p.call(g, busy, *arguments)) for _ in range(3)]
            if busy == "spin":
                p.until(3, "guest")
            else:
                p.until_waiting("futex", 3)
            leaving = p.linker.spawn(lambda g: g.dlsym(leave, "leave")(5))
            for thread in (leaving, *others):
                with pytest.raises(dl.ProgramExited) as raised:
                    thread.join(SECONDS)
                assert raised.value.code == 5
            with pytest.raises(dl.ProgramExited):
                p.main.dlopen(library(1), name="late.so")

    def test_proc_exit_during_a_load_in_another_thread(self) -> None:
        """The program can end while a thread loads a library: the load ends too, and nothing hangs."""
        with program() as p:
            inside, go_on = threading.Event(), threading.Event()
            p.on_construct = lambda _addend: (inside.set(), go_on.wait(SECONDS))
            loading = p.linker.spawn(lambda g: g.dlopen(library(1, constructor=True), name="lib.so"))
            assert inside.wait(SECONDS)
            p.linker.program.end(dl.ProgramExited(3))
            go_on.set()
            with pytest.raises(dl.ProgramExited):
                loading.join(SECONDS)

    @pytest.mark.parametrize("way", ["spin", "wait", "load"])
    def test_cancelled_thread_ends_alone(self, way: str) -> None:
        """A cancelled thread raises what it was cancelled with, wherever it is; the others go on."""
        with program() as p:
            p.on_construct = lambda _addend: p.call(p.here(), "spin", p.word(1))
            calls = {
                "spin": lambda g: p.call(g, "spin", p.word(0)),
                "wait": lambda g: p.call(g, "wait", p.word(0), 0, -1),
                "load": lambda g: g.dlopen(library(1, constructor=True), name="lib.so"),
            }
            before = held(p.linker)
            thread = p.linker.spawn(calls[way])
            if way == "wait":
                p.until_waiting("futex")
            else:
                p.until(1, "guest")
            thread.cancel(Stop())
            with pytest.raises(Stop):
                thread.join(SECONDS)

            p.until_given_back(before)
            assert p.call(p.main, "count", p.word(5)) == 0
            assert p.main.dlopen(library(2), name="next.so")

    def test_death_at_a_barrier_is_forgotten(self) -> None:
        """A thread that dies while a load waits for it lets the load go on."""
        with program() as p:
            spinning = [p.linker.spawn(lambda g, n=n: p.call(g, "spin", p.word(n))) for n in range(8)]
            p.until(8, "guest")
            for thread in spinning:
                loading = p.linker.spawn(lambda g, t=thread: g.dlopen(library(7), name=t.name))
                thread.cancel(Stop())
                with pytest.raises(Stop):
                    thread.join(SECONDS)
                assert loading.join(SECONDS)

    def test_all_is_given_back(self) -> None:
        """Threads of every kind, ended in every way, give back their stacks and thread-local blocks."""
        with program() as p:
            p.main.dlopen(library(1, thread_local=True), name="tls.so")
            before = held(p.linker)
            for _ in range(3):
                threads = [
                    p.linker.spawn(lambda g: p.call(g, "count", p.word(0))),
                    p.linker.spawn(lambda g: p.call(g, "trap")),
                    p.linker.spawn(lambda _g: (_ for _ in ()).throw(Stop())),
                    p.linker.spawn(lambda g: p.call(g, "spin", p.word(1))),
                ]
                p.start()
                assert p.linker.statistics().side_bytes > before[3]
                threads[-1].cancel(Stop())
                for thread in threads:
                    with contextlib.suppress(Stop, dl.TrapError):
                        thread.join(SECONDS)
                p.until_given_back(before)

    def test_closing_ends_everything(self) -> None:
        """Closing the linker ends threads that compute or wait, and returns when they are gone."""
        with program() as p:
            threads = [p.linker.spawn(lambda g: p.call(g, "spin", p.word(0)))]
            threads += [p.linker.spawn(lambda g: p.call(g, "wait", p.word(0), 0, -1))]
            p.on_thread = lambda _n, _r: p.call(p.here(), "wait", p.word(0), 0, -1)
            p.start()
            p.until(1, "guest")
            p.until_waiting("futex", 2)
        assert not any(thread.is_alive() for thread in threads)
        for thread in threads:
            with pytest.raises(dl.LinkerClosedError):
                thread.join(SECONDS)

    def test_closing_waits_for_a_thread_that_is_about_to_end(self) -> None:
        """A thread that only has to give back its place when the linker is closed has ended when `close` returns."""
        with program() as p:
            go = threading.Event()
            thread = p.linker.spawn(lambda _group: go.wait(SECONDS))
            seen: list[bool] = []
            closing = threading.Thread(target=lambda: (p.linker.close(), seen.append(thread.is_alive())))
            with p.linker.parts.groups.places._lock:
                go.set()
                until(lambda: not thread.own.has_place)
                closing.start()
                closing.join(0.1)  # it would return here
                assert seen == []
            closing.join(SECONDS)
            assert seen == [False]
