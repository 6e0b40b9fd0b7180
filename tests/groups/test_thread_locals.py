"""Thread-local variables: each thread its own, across modules, however and whenever the thread came to be."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dl
from tests.support.groups import SECONDS, Program, library, program, until
from tests.support.modules import MEMORY_BASE, SHARED_MEMORY, got
from tests.support.modules import library as wat_library

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"

OWNER = wat_library(
    SHARED_MEMORY,
    MEMORY_BASE,
    '(global $tls (export "__tls_base") (mut i32) (i32.const 0))',
    '(global (export "__tls_size") i32 (i32.const 8))',
    '(global (export "__tls_align") i32 (i32.const 4))',
    '(global (export "variable") i32 (i32.const 4))',
    """(func (export "__wasm_init_tls") (param i32)
        (global.set $tls (local.get 0)) (i32.store offset=4 (local.get 0) (i32.const 77)))""",
    '(func (export "own") (result i32) (i32.load offset=4 (global.get $tls)))',
    '(func (export "own_address") (result i32) (i32.add (global.get $tls) (i32.const 4)))',
    tls=["variable"],
)

USER = wat_library(
    SHARED_MEMORY,
    got("variable", "mem"),
    '(func (export "address") (result i32) (global.get $got_mem_variable))',
    '(func (export "set") (param i32) (i32.store (global.get $got_mem_variable) (local.get 0)))',
    '(func (export "get") (result i32) (i32.load (global.get $got_mem_variable)))',
    needed=["owner.so"],
)

WAYS = ["spawned", "attached", "guest"]


def started(p: Program, way: str, body: Callable[..., Any]) -> Callable[..., Any]:
    """Start a thread of the program in one of the ways; return what waits for it and gives what `body(group)` returns."""
    results, done = [], threading.Event()

    def run(group: dl.InstanceGroup) -> None:
        try:
            results.append(body(group))
        finally:
            done.set()

    if way == "spawned":
        p.linker.spawn(run)
    elif way == "attached":

        def attach() -> None:
            with p.linker.attach() as group:
                run(group)

        threading.Thread(target=attach, daemon=True).start()
    else:
        p.on_thread = lambda _number, _record: run(p.here())
        p.start()

    def join() -> list[int] | tuple[int, ...]:
        assert done.wait(SECONDS)
        until(p.is_alone)
        return results[0]

    return join


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("early", [True, False], ids=["before the load", "after the load"])
class TestEveryWay:
    def test_own_values_in_a_side_module(self, way: str, early: bool) -> None:
        """A thread's variable starts with its initial value and is no other thread's, whichever came first."""
        with program() as p:
            go = threading.Event()
            wasm = library(500, thread_local=True)

            def body(group: dl.InstanceGroup) -> list[int]:
                if early:
                    assert go.wait(SECONDS)
                local = group.dlsym(group.dlopen(wasm, name="tls.so"), "local")
                return [local(n) for n in (1, 10, 100)]

            join = started(p, way, body) if early else None
            handle = p.main.dlopen(wasm, name="tls.so")
            assert p.main.dlsym(handle, "local")(5) == 505
            go.set()
            join = join or started(p, way, body)

            assert join() == [501, 511, 611]
            assert p.main.dlsym(handle, "local")(1) == 506

    def test_variables_imported_across_modules(self, way: str, early: bool) -> None:
        """A module that imports another's thread-local variable reaches the calling thread's, at the owner's address."""
        with program(libraries={"owner.so": OWNER, "user.so": USER}) as p:
            go = threading.Event()

            def body(group: dl.InstanceGroup) -> tuple[int, ...]:
                if early:
                    assert go.wait(SECONDS)
                user, owner = group.dlopen("user.so"), group.dlopen("owner.so")
                fresh = group.dlsym(user, "get")()
                group.dlsym(user, "set")(1000)
                return (
                    fresh,
                    group.dlsym(owner, "own")(),
                    group.dlsym(user, "address")(),
                    group.dlsym(owner, "own_address")(),
                    group.dlsym(owner, "variable").address,
                )

            join = started(p, way, body) if early else None
            user = p.main.dlopen("user.so")
            p.main.dlsym(user, "set")(5)
            go.set()
            join = join or started(p, way, body)
            fresh, own, imported, exported, looked_up = join()

            assert (fresh, own) == (77, 1000)
            assert imported == exported == looked_up
            assert imported != p.main.dlsym(user, "address")()
            assert p.main.dlsym(user, "get")() == 5


class TestCompiled:
    """The same with what a C compiler makes of it, for the threads of a host; `fixtures/tls` runs it with pthreads."""

    @pytest.mark.parametrize("main", ["main.wasm", "threads.wasm", "got.wasm"])
    @pytest.mark.parametrize("way", ["spawned", "attached"])
    def test_main_and_library(self, way: str, main: str) -> None:
        """Program and library read and write each other's variables, each thread its own."""
        folder = FIXTURES / "tls" / "shared"
        with dl.Linker(folder / main, library_path=[folder]) as linker:

            def body(group: dl.InstanceGroup, number: int) -> tuple[tuple[int, int], int, bool, int]:
                call = lambda name, *arguments: group.dlsym(dl.RTLD_DEFAULT, name)(*arguments)  # noqa: E731
                fresh = call("lib_reads_main"), call("lib_sum")
                call("lib_writes_main", number)
                together.wait(SECONDS)
                first = group.dlsym(dl.RTLD_DEFAULT, "lib_first").address
                return fresh, call("lib_reads_main"), first == call("lib_address", 0), first

            def attached(number: int) -> None:
                with linker.attach() as group:
                    results.append(body(group, number))

            together = threading.Barrier(4)
            results = []
            for _ in range(2):
                if way == "spawned":
                    threads = [linker.spawn(body, number) for number in range(1, 5)]
                    results = [thread.join(SECONDS) for thread in threads]
                else:
                    results.clear()
                    plain = [threading.Thread(target=attached, args=(n,)) for n in range(1, 5)]
                    for thread in plain:
                        thread.start()
                    for thread in plain:
                        thread.join(SECONDS)

                assert {fresh for fresh, *_ in results} == {(5006, 66)}
                assert sorted(now for _, now, _, _ in results) == [5001, 5002, 5003, 5004]
                assert all(same for _, _, same, _ in results)
                assert len({address for *_, address in results}) == 4
