"""`dl.ProcessPool`: processes that each have one program, and what becomes of work when they die."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future, wait
from pathlib import Path
from typing import Any

import pytest

import dl
from dl.pool.worker import RemoteTraceback
from tests.support import named_functions as f
from tests.support.forks import in_child
from tests.support.groups import until as until_true
from tests.support.modules import module, returns
from tests.support.paths import ROOT
from tests.support.pools import SECONDS, SPEC, is_there, until, until_gone

pytestmark = pytest.mark.timeout(60)

FAST: dict[str, Any] = {"start_method": "forkserver"}
multiprocessing.set_forkserver_preload(["dl.pool.worker"])


@pytest.fixture(name="pool", scope="module")
def _pool() -> Iterator[dl.ProcessPool]:
    """A pool of two workers, which tests of this file may kill."""
    with dl.ProcessPool(SPEC, 2) as pool:
        pool.prepare()
        yield pool


class TestWork:
    def test_it_is_an_executor(self, pool: dl.ProcessPool) -> None:
        """Functions get the program's group and their arguments; `map` keeps the order, and `wait` works."""
        assert isinstance(pool, Executor)
        assert pool.submit(f.call, "ask").result(SECONDS) == 40
        assert [item for item, _, _ in pool.map(f.counted, range(20))] == list(range(20))
        futures = [pool.submit(f.call, "seven") for _ in range(4)]
        assert wait(futures, SECONDS).not_done == set()

    def test_a_worker_builds_its_program_once(self, pool: dl.ProcessPool) -> None:
        """A worker's calls go to the same program, which counts them; other processes have their own."""
        seen: dict[int, list[int]] = {}
        for _, process, count in pool.map(f.counted, range(50)):
            seen.setdefault(process, []).append(count)

        assert os.getpid() not in seen
        assert set(seen) <= set(pool.processes)
        assert len(pool.processes) == 2
        for counts in seen.values():
            # Of two items the later one may come to its worker first.
            assert sorted(counts) == list(range(min(counts), min(counts) + len(counts)))

    def test_what_cannot_be_sent_is_refused_at_once(self, pool: dl.ProcessPool) -> None:
        """A function without a name, or an argument that cannot be pickled, is an error of `submit`."""
        with pytest.raises((AttributeError, pickle.PicklingError)):
            pool.submit(lambda group: None)
        with pytest.raises(TypeError, match="pickle"):
            pool.submit(f.fail, threading.Lock())  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="pickle"):
            pool.submit(f.unpicklable).result(SECONDS)


class TestErrors:
    def test_a_trap_comes_back_with_its_frames(self, pool: dl.ProcessPool) -> None:
        """The trap is a `TrapError` here as it was there, and says where in the guest and in Python it was."""
        with pytest.raises(dl.TrapError, match="unreachable") as caught:
            pool.submit(f.call, "trap").result(SECONDS)

        assert len(caught.value.frames) == 2
        assert all(frame.startswith("counting!") for frame in caught.value.frames)
        assert isinstance(caught.value.__cause__, RemoteTraceback)
        assert "named_functions.py" in str(caught.value.__cause__)

    @pytest.mark.parametrize("error", [KeyError("k"), SystemExit(3), dl.LinkError("lib.so", "why")], ids=repr)
    def test_any_exception_comes_back(self, pool: dl.ProcessPool, error: BaseException) -> None:
        """Exceptions of any kind are those of the function, and end no worker."""
        before = pool.processes
        with pytest.raises(type(error)) as caught:
            pool.submit(f.fail, error).result(SECONDS)

        assert caught.value.args == error.args
        assert pool.processes == before

    def test_an_exception_that_cannot_be_pickled_is_told(self, pool: dl.ProcessPool) -> None:
        """It comes as a `RemoteError` that says what it was."""
        with pytest.raises(dl.RemoteError, match="Held: locked"):
            pool.submit(f.fail_unpicklably).result(SECONDS)

    def test_a_program_that_cannot_be_linked_is_an_error_of_each_call(self) -> None:
        """The error of linking is typed, and the worker stays."""
        spec = SPEC.replace(imports={"env": {"forty": "tests.support.named_functions:missing"}})
        with dl.ProcessPool(spec, 1, **FAST) as pool:
            for work in (pool.prepare, lambda: pool.submit(f.number).result(SECONDS)):
                with pytest.raises(dl.SpecError, match="missing"):
                    work()
            assert len(pool.processes) == 1

    def test_whatever_a_link_raises_is_an_error_of_each_call(self) -> None:
        """An exception of a function of Python's that a constructor calls comes as it is, and the worker stays."""
        main = module('(import "env" "fail" (func $fail))', "(start $fail)")
        spec = dl.Spec(main=main, imports={"env": {"fail": f.raise_value_error}})
        with dl.ProcessPool(spec, 1, **FAST) as pool:
            for work in (pool.prepare, lambda: pool.submit(f.number).result(SECONDS)):
                with pytest.raises(ValueError, match="raised here"):
                    work()
            assert len(pool.processes) == 1

    def test_a_program_that_ended_is_built_again(self) -> None:
        """A guest that exits ends its program and not its worker, and the next call finds a fresh program."""
        exits = module(
            '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))',
            '(memory (export "memory") 1)',
            '(func (export "leave") i32.const 3 call $exit)',
            returns("seven", 7),
        )
        with dl.ProcessPool(dl.Spec(main=exits), 1, **FAST) as pool:
            process = pool.submit(f.number).result(SECONDS)
            with pytest.raises(dl.ProgramExited) as caught:
                pool.submit(f.call, "leave").result(SECONDS)
            assert caught.value.code == 3
            assert pool.submit(f.call, "seven").result(SECONDS) == 7
            assert pool.submit(f.number).result(SECONDS) == process


class TestDeaths:
    @pytest.mark.parametrize(("code", "told"), [(3, "ended with code 3"), (-signal.SIGKILL, "SIGKILL")])
    def test_a_death_concerns_one_function(
        self, pool: dl.ProcessPool, code: int, told: str, tmp_path: Path
    ) -> None:
        """Its future says how the worker ended; what runs beside it and what waits is done, and a new worker is there."""
        beside = pool.submit(f.wait_for, str(tmp_path / "go"), "done")
        dying = pool.submit(f.die, code)
        waiting = [pool.submit(f.call, "seven") for _ in range(4)]
        with pytest.raises(dl.WorkerLostError, match=told) as caught:
            dying.result(SECONDS)
        assert (caught.value.task, caught.value.exit_code) == ("die", code)
        assert not is_there(caught.value.process)
        assert [future.result(SECONDS) for future in waiting] == [7] * 4
        (tmp_path / "go").touch()

        assert beside.result(SECONDS) == "done"
        pool.prepare()
        assert len(pool.processes) == 2

    def test_work_is_retried_as_asked(self, tmp_path: Path) -> None:
        """With retries, a function that lost its worker is run by another one; not more often than asked."""
        with dl.ProcessPool(SPEC, 1, retries=1, **FAST) as pool:
            assert pool.submit(f.die_once, str(tmp_path / "marker")).result(SECONDS) in pool.processes
            with pytest.raises(dl.WorkerLostError):
                pool.submit(f.die, 1).result(SECONDS)

    def test_a_worker_that_dies_idle_is_replaced(self) -> None:
        """The next function is not lost with a worker that died before it came, if it may be retried."""
        with dl.ProcessPool(SPEC, 1, retries=1, **FAST) as pool:
            pool.prepare()
            [process] = pool.processes
            os.kill(process, signal.SIGKILL)
            assert pool.submit(f.number).result(SECONDS) != process

    def test_a_function_that_takes_too_long_is_ended_with_its_worker(self, tmp_path: Path) -> None:
        """With a bound for the pool, even a function of Python that never returns is ended; the next one runs."""
        with dl.ProcessPool(SPEC, 1, timeout=1.0, **FAST) as pool:
            pool.prepare()
            [process] = pool.processes
            with pytest.raises(dl.GuestTimeoutError, match="wait_for"):
                pool.submit(f.wait_for, str(tmp_path / "never")).result(SECONDS)
            assert not is_there(process)

            def seven() -> bool:
                with contextlib.suppress(
                    dl.GuestTimeoutError
                ):  # its time is too short for a machine that is busy
                    return pool.submit(f.call, "seven").result(SECONDS) == 7
                return False

            until_true(seven)

    @pytest.mark.parametrize("timeout", [1e10, float("inf")])
    def test_a_function_may_take_any_time(self, timeout: float) -> None:
        """A bound that is longer than the system can wait is a bound, and each function gets its own answer."""
        with dl.ProcessPool(SPEC, 1, timeout=timeout, **FAST) as pool:
            assert [pool.submit(f.call, name).result(SECONDS) for name in ("seven", "ask")] == [7, 40]


class TestEnd:
    def test_nothing_is_left(self) -> None:
        """After the end there are no processes, not even as zombies, and no temporary files; work is refused."""
        with dl.ProcessPool(SPEC, 2, **FAST) as pool:
            pool.prepare()
            directory = Path(pool.submit(f.temporary_directory).result(SECONDS))
            processes = pool.processes
            assert directory.exists()
        assert not any(map(is_there, processes))
        assert not directory.parent.exists()
        assert repr(pool) == "<ProcessPool, shut down>"
        with pytest.raises(RuntimeError):
            pool.submit(f.number)
        pool.shutdown()
        pool.kill()

    def test_an_end_without_waiting_lets_work_finish(self, tmp_path: Path) -> None:
        """`shutdown(wait=False)` returns at once; what was given is done, what is cancelled is not, and the workers end."""
        pool = dl.ProcessPool(SPEC, 1, **FAST)
        running = pool.submit(f.wait_for, str(tmp_path / "go"), "done")
        waiting = pool.submit(f.number)
        until(tmp_path / "go.runs")
        [process] = pool.processes
        pool.shutdown(wait=False, cancel_futures=True)
        assert not running.done()
        assert waiting.cancelled()
        (tmp_path / "go").touch()

        assert running.result(SECONDS) == "done"
        pool.shutdown()
        assert not is_there(process)

    def test_killing_ends_what_runs(self, tmp_path: Path) -> None:
        """A guest that computes for ever and a function that waits are ended at once, with an error for each."""
        pool = dl.ProcessPool(SPEC, 2, retries=3, **FAST)
        running: list[Future[object]] = [
            pool.submit(f.wait_for, str(tmp_path / f"never{n}")) for n in range(2)
        ]
        waiting = pool.submit(f.number)
        for n in range(2):
            until(tmp_path / f"never{n}.runs")
        processes = pool.processes
        pool.kill()

        for future in running:
            with pytest.raises(dl.WorkerLostError):
                future.result(SECONDS)
        assert waiting.cancelled()
        assert not any(map(is_there, processes))

    def test_killing_ends_a_worker_that_is_being_started(self) -> None:
        """A process that begins while the pool is killed is ended too: nobody waits for what it would run."""
        for _ in range(3):
            pool = dl.ProcessPool(SPEC, 1)
            running = pool.submit(f.call, "spin")
            while pool._idle.qsize():
                pass
            pool.kill()
            with pytest.raises(dl.WorkerLostError):
                running.result(SECONDS)

    def test_a_forgotten_pool_ends_its_workers(self) -> None:
        """A pool that is no longer referred to leaves no process behind."""
        pool = dl.ProcessPool(SPEC, 1, **FAST)
        process = pool.submit(f.number).result(SECONDS)
        del pool

        until_gone([process])  # a thread of the pool may still refer to it for a moment

    @pytest.mark.parametrize(
        "bad", [{"workers": 0}, {"retries": -1}, {"timeout": 0}, {"start_method": "fork"}]
    )
    def test_what_cannot_be_is_refused(self, bad: dict[str, object]) -> None:
        """A pool has a worker, and starts none by forking a process that has threads."""
        with pytest.raises(dl.LinkerUsageError):
            dl.ProcessPool(SPEC, **bad)  # type: ignore[arg-type]

    def test_a_forked_child_is_refused(self, pool: dl.ProcessPool) -> None:
        """In a child made by `os.fork` nothing hangs: work is refused, and the end does nothing to the parent's workers."""

        def check() -> None:
            with pytest.raises(dl.ProgramForkedError, match="make another one"):
                pool.submit(f.number)
            pool.shutdown()
            pool.kill()

        in_child(check)
        assert pool.submit(f.call, "seven").result(SECONDS) == 7


# Ctrl-C is as on a terminal, also where SIGINT is ignored, as for jobs in the background. The program waits for a while at a
# time: CPython notices a signal that comes in the instant before a wait without an end only when that ends.
PROGRAM = """
import concurrent.futures, signal, sys, dl
from tests.support import named_functions as f
from tests.support.pools import SPEC

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with dl.ProcessPool(SPEC, 2{options}) as pool:
        pool.prepare()
        print(*pool.processes, flush=True)
        futures = [pool.submit(f.wait_for, sys.argv[1]), pool.submit(f.call, "spin"), pool.submit(f.number)]
        while not concurrent.futures.wait(futures[:1], 0.1).done:
            pass
"""


@contextlib.contextmanager
def program(tmp_path: Path, options: str = "") -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A program with a pool, in a process group of its own as a terminal would make it; its workers' numbers."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.format(options=options))
    running = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "never")],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert running.stdout is not None
    try:
        workers = [int(word) for word in running.stdout.readline().split()]
        assert len(workers) == 2, running.communicate(timeout=SECONDS)[1]
        until(tmp_path / "never.runs")
        yield running, workers
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.communicate(timeout=SECONDS)


class TestProcessGroup:
    def test_ctrl_c_ends_the_program_at_once(self, tmp_path: Path) -> None:
        """Ctrl-C reaches all processes of a terminal; the program ends by KeyboardInterrupt alone, and its workers silently."""
        with program(tmp_path) as (running, workers):
            os.killpg(running.pid, signal.SIGINT)
            _, errors = running.communicate(timeout=SECONDS)

            assert running.returncode in (-signal.SIGINT, 130)
            assert errors.count("Traceback") == 1, errors
            assert errors.rstrip().endswith("KeyboardInterrupt")
            until_gone(workers)
            assert not list(tmp_path.glob("wasix-dl-pool-*"))

    def test_workers_do_not_outlive_the_program(self, tmp_path: Path) -> None:
        """A program that is killed takes its workers with it, also those in the midst of a function."""
        with program(tmp_path, ', start_method="forkserver"') as (running, workers):
            running.kill()
            running.wait(SECONDS)
            until_gone(workers)
