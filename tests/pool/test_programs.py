"""`dl.ProgramPool`: a fresh program for each request, prepared before it comes, within bounds."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio

import dl
from dl.pool.programs import _given
from tests.support import named_functions
from tests.support.forks import in_child
from tests.support.modules import library, module
from tests.support.paths import FIXTURES
from tests.support.pools import SECONDS, SPEC

pytestmark = pytest.mark.timeout(60)

ECHO = dl.Spec(main=FIXTURES / "wasi/unshared/main.wasm")
"""A C program: `echo` numbers the lines of its input, `sleep` waits for milliseconds, `exit` ends with a code."""

ENVIRONMENT = dl.Spec(
    main=module(
        '(import "wasi_snapshot_preview1" "environ_sizes_get" (func $sizes (param i32 i32) (result i32)))',
        '(import "wasi_snapshot_preview1" "environ_get" (func $get (param i32 i32) (result i32)))',
        '(import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))',
        '(memory (export "memory") 1)',
        '(func (export "_start") (drop (call $sizes (i32.const 0) (i32.const 12)))'
        " (drop (call $get (i32.const 1024) (i32.const 2048)))"
        " (i32.store (i32.const 8) (i32.const 2048))"
        " (drop (call $write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 4))))",
    ),
    env={"A": "described"},
)
"""Writes its environment, as it is in memory."""


@pytest.fixture(name="pool", scope="module")
def _pool() -> Iterator[dl.ProgramPool]:
    with dl.ProgramPool(ECHO, at_once=2, timeout=SECONDS) as pool:
        yield pool


@pytest.mark.parametrize("prepared", [True, False])
def test_a_request_has_a_program_of_its_own(prepared: bool) -> None:
    """What one request changes in memory no other one sees, whether its program waited for it or not."""
    with dl.ProgramPool(SPEC, ready=int(prepared)) as pool:
        for _ in range(3):
            assert pool.wait_ready(SECONDS)
            with pool.program() as group:
                assert [group.library(None).count() for _ in range(3)] == [1, 2, 3]


def test_a_prepared_program_gets_what_its_request_says(pool: dl.ProgramPool) -> None:
    """Arguments, input and output of a request reach a program that was linked before it came."""
    for body in (b"one\n", b"two\nthree\n"):
        assert pool.wait_ready(SECONDS)
        outcome = pool.run(args=("program", "echo"), stdin=body)
        lines = b"".join(b"%d: %s" % item for item in enumerate(body.splitlines(True), 1))
        assert outcome == dl.ProgramOutcome(0, lines, b"")
    assert pool.run(args=("program", "exit", "3")).code == 3


@pytest.mark.parametrize("ready", [0, 1])
def test_the_environment_is_that_of_the_request(ready: int) -> None:
    """A request's environment takes the place of the description's."""
    with dl.ProgramPool(ENVIRONMENT, ready=ready) as pool:
        for env, text in ((None, b"A=described\0"), ({"B": "asked"}, b"B=asked\0")):
            assert pool.wait_ready(SECONDS)
            assert pool.run(env=env).stdout == text


def test_output_may_go_elsewhere(pool: dl.ProgramPool, tmp_path: Path) -> None:
    """A request's output goes to a file or a function of its choice."""
    chunks: list[bytes] = []
    for target in (chunks.append, tmp_path / "out"):
        with pool.program(args=("program", "echo"), stdin=b"x\n", stdout=target) as group:
            assert group.run() == 0
    assert b"".join(chunks) == (tmp_path / "out").read_bytes() == b"1: x\n"


def test_a_program_with_threads_is_prepared_too() -> None:
    """Shared memory makes no difference: its WASI is given to the request as well."""
    spec = dl.Spec(main=FIXTURES / "wasi/shared/main.wasm")
    with dl.ProgramPool(spec, ready=1) as pool:
        assert pool.wait_ready(SECONDS)
        assert pool.run(args=("program", "echo"), stdin=b"x\n").stdout == b"1: x\n"


def test_a_program_whose_constructor_opened_a_file_is_linked_again(tmp_path: Path) -> None:
    """Its descriptors would be lost when its request is given to it, so it gets another program."""
    opens = library(
        '(import "env" "memory" (memory 1))',
        '(import "wasi_snapshot_preview1" "path_open"'
        " (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))",
        '(import "env" "__memory_base" (global $base i32))',
        '(func (export "__wasm_call_ctors") (if (call $open (i32.const 3) (i32.const 0) (global.get $base) (i32.const 1)'
        " (i32.const 0) (i64.const 2) (i64.const 2) (i32.const 0) (i32.add (global.get $base) (i32.const 8)))"
        " (then unreachable)))",
        '(data (global.get $base) "f")',
        memory_size=16,
    )
    (tmp_path / "f").touch()
    spec = ECHO.replace(libraries={"libopens.so": opens}, preload=["libopens.so"], preopens={"/": tmp_path})
    with spec.linker(stdin=b"") as linker:
        assert not _given(linker, {"args": (), "env": {}, "stdin": b"", "stdout": print, "stderr": print})
    with dl.ProgramPool(spec, ready=1) as pool:
        assert pool.wait_ready(SECONDS)
        assert pool.run(args=("program", "echo"), stdin=b"x\n").stdout == b"1: x\n"


class TestBounds:
    def test_time(self) -> None:
        """A program that computes for ever, or waits, is stopped, and the next request is served."""
        with dl.ProgramPool(SPEC, timeout=0.05) as pool:
            with pytest.raises(dl.GuestTimeoutError), pool.program() as group:
                group.library(None).spin()
        with dl.ProgramPool(ECHO, timeout=0.05, at_once=1) as pool:
            with pytest.raises(dl.GuestTimeoutError):
                pool.run(args=("program", "sleep", "60000"))
        with dl.ProgramPool(SPEC, cpu_time=0.05) as pool:
            with pytest.raises(dl.GuestTimeoutError, match="processor"), pool.program() as group:
                group.library(None).spin()

    def test_memory(self) -> None:
        """A program gets as much memory as the description's limits allow."""
        grows = module(
            '(memory (export "memory") 1)', '(func (export "grow") (result i32) (memory.grow (i32.const 9)))'
        )
        with dl.ProgramPool(dl.Spec(main=grows, limits=dl.Limits(memory_pages=9))) as pool:
            with pool.program() as group:
                assert group.library(None).grow() == -1

    def test_output(self, pool: dl.ProgramPool) -> None:
        """What a program writes beyond the bound is refused to it, and not kept."""
        outcome = pool.run(args=("program", "echo"), stdin=b"x\n" * 1000, most_output=100)
        assert 0 < len(outcome.stdout) <= 100

    def test_how_many_run_and_wait(self) -> None:
        """Two run at a time and one waits; another one is refused, and served when there is room."""
        inside, leave = threading.Semaphore(0), threading.Event()
        running: list[int] = []

        def hold(pool: dl.ProgramPool) -> int:
            with pool.program() as group:
                running.append(1)
                inside.release()
                assert leave.wait(SECONDS)
                assert len(running) <= 2
                running.pop()
                seven: int = group.library(None).seven()
                return seven

        with ThreadPoolExecutor(3) as threads, dl.ProgramPool(SPEC, at_once=2, waiting=1) as pool:
            held = [threads.submit(hold, pool) for _ in range(2)]
            assert inside.acquire(timeout=SECONDS)
            assert inside.acquire(timeout=SECONDS)
            held.append(threads.submit(hold, pool))
            end = time.monotonic() + SECONDS
            while not pool._waiters:
                assert time.monotonic() < end
            with pytest.raises(dl.PoolFullError, match="2 run, and 1 wait"):
                pool.run()
            assert repr(pool).endswith("2 running>")
            leave.set()
            assert [future.result(SECONDS) for future in held] == [7, 7, 7]
            with pool.program() as group:
                assert group.library(None).seven() == 7

    @pytest.mark.parametrize("bad", [{"at_once": 0}, {"ready": -1}, {"waiting": -1}])
    def test_what_cannot_be_is_refused(self, bad: dict[str, int]) -> None:
        """Numbers that are too small are an error when the pool is made."""
        with pytest.raises(dl.LinkerUsageError):
            dl.ProgramPool(SPEC, **bad)


class TestErrors:
    def test_a_program_that_cannot_be_linked_is_an_error_of_the_request(self) -> None:
        """Each request gets the error, and the pool does not try again and again in between."""
        spec = SPEC.replace(imports={"env": {"forty": "tests.support.named_functions:missing"}})
        with dl.ProgramPool(spec) as pool:
            for _ in range(2):
                assert not pool.wait_ready(SECONDS)
                with pytest.raises(dl.SpecError), pool.program():
                    pass

    def test_whatever_a_link_raises_is_an_error_of_the_request(self) -> None:
        """An exception of a function of Python's that a constructor calls does not end what prepares programs."""
        main = module('(import "env" "fail" (func $fail))', '(func (export "seven"))', "(start $fail)")
        with dl.ProgramPool(
            dl.Spec(main=main, imports={"env": {"fail": named_functions.raise_value_error}})
        ) as pool:
            for _ in range(2):
                assert not pool.wait_ready(SECONDS)
                with pytest.raises(ValueError, match="raised here"), pool.program():
                    pass

    def test_a_program_that_cannot_be_given_its_request_is_closed(self) -> None:
        """Input that cannot be opened is an error of the request, and the program that waited for it is gone."""
        with dl.ProgramPool(ECHO, ready=1) as pool:
            assert pool.wait_ready(SECONDS)
            [waiting] = pool._ready
            with pytest.raises(dl.DlError, match="no/such/file"):
                pool.run(stdin="no/such/file")
            assert isinstance(waiting.program.ended, dl.LinkerClosedError)

    def test_a_trap_ends_one_request(self) -> None:
        """A program that traps is gone with its request."""
        with dl.ProgramPool(SPEC, at_once=1) as pool:
            with pytest.raises(dl.TrapError), pool.program() as group:
                group.library(None).trap()
            with pool.program() as group:
                assert group.library(None).count() == 1

    def test_a_closed_pool_is_refused(self) -> None:
        """After its end a pool takes no request; closing it again is no error."""
        with dl.ProgramPool(SPEC) as pool:
            pass
        pool.close()
        with pytest.raises(dl.LinkerClosedError):
            pool.run()
        assert repr(pool) == "<ProgramPool, closed>"

    def test_a_forked_child_is_refused(self) -> None:
        """In a child made by `os.fork` a request is an error, and the end does nothing."""
        with dl.ProgramPool(SPEC) as pool:

            def check() -> None:
                with pytest.raises(dl.ProgramForkedError):
                    pool.run()
                pool.close()

            in_child(check)
            with pool.program() as group:
                assert group.library(None).seven() == 7


RUN: list[Any] = [
    pytest.param(asyncio.run, id="asyncio"),
    pytest.param(lambda main: trio.run(lambda: main), id="trio"),
]


class TestTasks:
    @pytest.mark.parametrize("run", RUN)
    def test_tasks_run_programs(self, run: Callable[[Any], None], pool: dl.ProgramPool) -> None:
        """Tasks run at the same time, each with a program of its own."""
        answers: dict[int, bytes] = {}

        async def one(number: int) -> None:
            outcome = await pool.run_async(args=("program", "echo"), stdin=b"%d\n" % number)
            answers[number] = outcome.stdout

        async def main() -> None:
            async with anyio.create_task_group() as tasks:
                for number in range(6):
                    tasks.start_soon(one, number)

        run(main())
        assert answers == {number: b"1: %d\n" % number for number in range(6)}

    @pytest.mark.parametrize("run", RUN)
    def test_a_cancelled_task_stops_its_program(self, run: Callable[[Any], None]) -> None:
        """What runs is stopped, what waits for its turn leaves, and the pool has its places back."""

        async def main() -> None:
            with dl.ProgramPool(ECHO, at_once=1) as pool:
                with anyio.move_on_after(0.2) as scope:
                    async with anyio.create_task_group() as tasks:
                        for _ in range(3):
                            tasks.start_soon(lambda: pool.run_async(args=("program", "sleep", "60000")))
                assert scope.cancelled_caught
                outcome = await pool.run_async(args=("program", "echo"), stdin=b"x\n")
                assert outcome.stdout == b"1: x\n"

        run(main())


def test_many_requests_leave_nothing() -> None:
    """After many requests there are as many threads and programs as before."""
    with dl.ProgramPool(SPEC, at_once=2, ready=2) as pool:
        with pool.program():
            pass
        before = threading.active_count()
        for _ in range(60):
            with pool.program() as group:
                group.library(None).count()
        deadline = time.monotonic() + 20
        while threading.active_count() > before and time.monotonic() < deadline:
            time.sleep(0.01)  # a thread that links the next program may be about to end
        assert threading.active_count() <= before
        assert len(pool._ready) <= 2
