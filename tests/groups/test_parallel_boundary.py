"""Without a GIL each store's host functions have callbacks and a boundary of their own; forced here on any interpreter."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

import dl
import dl.groups.boundary
import threads.parallel
from dl.groups.boundary import ParallelBoundary, StoreBoundary
from dl.stress.modules import LibraryKind, library_module, program_module
from dl.wasm.encode import ModuleBuilder, local_get, name_bytes, section, unsigned
from dl.wasm.types import FuncType
from threads import CLOSED, GUEST, HOST, ParallelRendezvous, Replica

UNARY = FuncType(("i32",), ("i32",))
SECONDS = 30


@pytest.fixture(autouse=True)
def _parallel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dl.groups.boundary, "FREE_THREADED", True)
    monkeypatch.setattr(threads.parallel, "FREE_THREADED", True)


def calling() -> bytes:
    build = ModuleBuilder()
    host = build.import_("env", "host", UNARY)
    build.export("call", "func", build.function(UNARY, local_get(0) + b"\x10" + unsigned(host)))
    wasm = build.build()
    return wasm[:8] + section(0, name_bytes("dylink.0") + bytes([1, 4, 0, 0, 0, 0])) + wasm[8:]


def program(host: Callable[[int], int]) -> dl.Linker:
    env: dict[str, Callable[..., object]] = {
        "host": host,
        "on_thread": lambda _number, _record: None,
        "on_construct": lambda _addend: None,
    }
    return dl.Linker(program_module(), imports={"env": env})


def test_threads_call_host_functions_and_follow_loads() -> None:
    """Threads that call the host all the while follow what others load, and errors of a host function reach their callers."""

    def host(value: int) -> int:
        if value == 13:
            raise ZeroDivisionError("unlucky")
        return value + 1

    with program(host) as linker:
        handle = linker.main_group.dlopen(calling(), name="calls.so")
        stop = threading.Event()

        def work(group: dl.InstanceGroup) -> int:
            call, done = group.dlsym(handle, "call"), 0
            while not stop.is_set() or not done:
                assert call(done) == done + 1 if done != 13 else True
                done = (done + 1) % 13
            with pytest.raises(ZeroDivisionError, match="unlucky"):
                call(13)
            return group.dlsym(len(linker.modules), "value")(1)  # of a library that was loaded meanwhile

        workers = [linker.spawn(work) for _ in range(3)]
        for number in range(8):
            linker.main_group.dlopen(library_module(LibraryKind(number)), name=f"l{number}.so")
        stop.set()
        assert [worker.join(SECONDS) for worker in workers] == [8, 8, 8]


def test_kept_answers_stand_for_as_long_as_nothing_changes() -> None:
    """Threads that look one name up all the while find what another one loads and closes, never what was there before."""
    with program(lambda value: value) as linker:
        assert isinstance(linker.program.state.changes, threads.parallel.ParallelCount)
        handles = [
            linker.main_group.dlopen(library_module(LibraryKind(number)), name=f"l{number}.so")
            for number in range(6)
        ]
        seen = [threading.Barrier(4, timeout=SECONDS) for _ in handles]

        def work(group: dl.InstanceGroup) -> list[int]:
            found = []
            for handle, barrier in zip(handles, seen, strict=True):
                function = group.dlsym(handle, "value")
                assert all(group.dlsym(handle, "value") is function for _ in range(50))
                found.append(function(1))
                barrier.wait()  # all have looked it up
                barrier.wait()  # it is closed
                with pytest.raises(dl.InvalidHandleError):
                    group.dlsym(handle, "value")
            return found

        workers = [linker.spawn(work) for _ in range(3)]
        for handle, barrier in zip(handles, seen, strict=True):
            barrier.wait()
            linker.main_group.dlclose(handle)
            barrier.wait()
        assert [worker.join(SECONDS) for worker in workers] == [list(range(1, 7))] * 3


def test_store_boundary_finds_its_replica_once_and_reads_its_own_view() -> None:
    """After the first call nothing is looked up by thread; a closed gate sends the thread the slow way."""
    rendezvous: ParallelRendezvous[object] = ParallelRendezvous(lambda: None)
    replica: Replica[object] = Replica("one", lambda _number, _operation: None)
    rendezvous.join(replica)
    boundary = ParallelBoundary(rendezvous)  # type: ignore[arg-type]
    boundary.replicas[threading.get_ident()] = replica  # type: ignore[assignment]
    own = boundary.own()
    assert isinstance(own, StoreBoundary)

    replica.enter_guest()
    assert own.enter_host() is replica
    boundary.replicas.clear()
    own.exit_host(replica)  # type: ignore[arg-type]
    assert replica.state == GUEST
    assert own.enter_host() is replica
    assert replica.state == HOST
    replica.leave_guest()

    view = rendezvous.reader()
    with rendezvous.instigate(None):
        rendezvous.commit(None, "a")
    assert view.version == rendezvous.version == rendezvous.committed == 1
    rendezvous.version = CLOSED
    assert view.version == CLOSED
