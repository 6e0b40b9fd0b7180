"""A pool of processes that each have the same program.

Each worker is a process with a pipe of its own, and a thread of the pool waits at the other end of it: the end of a process is
the end of its pipe, whatever it died of, and concerns one task. `concurrent.futures.ProcessPoolExecutor` and loky have one
queue for all workers, which a dying one may have left locked; so there every death ends the pool, with all that was waiting.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import pickle
import queue
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from threading import Lock, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from typing_extensions import ParamSpec

from dl.checks import at_least, instance, optional, seconds, taken
from dl.description.spec import Spec
from dl.errors import GuestTimeoutError, LinkerUsageError, ProgramForkedError, WorkerLostError
from dl.group import InstanceGroup
from dl.pool.worker import PREPARE, outcome, serve

if TYPE_CHECKING:
    from typing import Concatenate

P = ParamSpec("P")
R = TypeVar("R")

StartMethod = Literal["spawn", "forkserver"]

_END_SECONDS = 10.0
"""How long a worker that was told to end may take to close its program before it is killed."""


_LONGEST_POLL_SECONDS = 1_000_000.0
"""poll(2) takes milliseconds as an `int`."""


class _Worker:
    """One worker process, and the next ones in its place. Used by one thread at a time: by the one that has taken it.

    Attributes:
        process: the present process; None before the first task, and after a death.
        killed: whether no process may run any longer. Set before `process` is read, and read after that is set: so a process
            that starts meanwhile is ended by one side or the other.
    """

    def __init__(self, spec: Spec, context: Any, directory: str) -> None:
        self._spec = spec
        self._context = context
        self._directory = directory
        self._own = ""
        self._connection: Connection | None = None
        self.process: Any = None
        self.killed = False

    def _start(self) -> Connection:
        ours, theirs = self._context.Pipe()
        self._own = tempfile.mkdtemp(dir=self._directory)
        process = self._context.Process(
            target=serve, args=(theirs, self._spec, self._own), name="wasix-dl worker"
        )
        try:
            process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()  # so that the end of the process is the end of the pipe
        self.process = process
        self._connection = ours
        if self.killed:
            self._kill_process()
        return ours  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def _exchange(self, task: str) -> Iterator[None]:
        """Say something to the process and take its answer.

        If that fails half-way, the process is ended: what may still come would be taken for the answer to the next function.

        Raises:
            WorkerLostError: it died.
        """
        try:
            yield
        except (EOFError, OSError):
            pid, code = self.end()
            raise WorkerLostError(task, pid, code) from None
        except BaseException:
            self._kill_process()
            self.end()
            raise

    def prepare(self, task: str) -> Connection:
        """Start the process if there is none, and wait until it has tried to build its program.

        Raises:
            WorkerLostError: it died of that.
        """
        if self._connection is not None:
            return self._connection
        connection = self._start()
        with self._exchange(task):
            connection.recv_bytes()
        return connection

    def run(self, work: bytes, task: str, timeout: float | None) -> Any:
        """Have the process run a pickled function.

        Args:
            work: it.
            task: its name.
            timeout: seconds.

        Raises:
            BaseException: what it raises.
            WorkerLostError: the process died.
            GuestTimeoutError: it took too long; the process was killed.
        """
        connection = self.prepare(task)
        answer = None
        with self._exchange(task):
            connection.send_bytes(work)
            if timeout is None or _comes(connection, timeout):
                answer = connection.recv_bytes()
        if answer is None:
            assert timeout is not None
            self._kill_process()
            self.end()
            raise GuestTimeoutError(task, timeout, "seconds")
        return outcome(answer)

    def end(self) -> tuple[int, int | None]:
        """Let the process close its program and end, if it has not; return its number, and how it ended."""
        process, connection = self.process, self._connection
        if process is None or connection is None:
            return 0, None
        self._connection = None
        connection.close()
        process.join(_END_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
        self.process = None
        ended = process.pid, process.exitcode
        process.close()
        shutil.rmtree(self._own, ignore_errors=True)
        return ended

    def kill(self) -> None:
        """End the process now, whatever it does, and each that would take its place; from any thread."""
        self.killed = True
        self._kill_process()

    def _kill_process(self) -> None:
        process = self.process
        if process is not None:
            with contextlib.suppress(ValueError):  # it has ended, and was closed, in this moment
                process.kill()


class ProcessPool(Executor):
    """Runs `function(group, *args)` in processes, each of which has the same program; an executor of `concurrent.futures`.

    A worker builds the program when it starts, with the code that the cache has, and keeps it: what one call leaves in memory
    is there for the next one in that worker. A program that has ended is built again. Functions, arguments and results are
    pickled; functions are found by name, as `multiprocessing` finds them. Errors come back as they were raised, with a
    `RemoteTraceback` as their cause.

    A worker that dies is replaced, and concerns the function that it ran alone.

    In a `with`, the end of the block waits for what was submitted; an exception that is no `Exception`, such as Ctrl-C, ends it
    at once. A program that uses a pool needs the guard `if __name__ == "__main__":` that `multiprocessing` asks for.

    Args:
        spec: the program.
        workers: how many processes, at least 1; None for one for each processor that this one may use.
        retries: how often a function is given to another worker after one has died of it, or beside it.
        timeout: seconds that a function may take, once its worker has built the program; then the worker is killed and
            replaced. None for no bound. To stop guest code alone, bound its calls.
        start_method: how `multiprocessing` starts them. `"forkserver"` starts faster, and workers have the memory of what its
            server has imported in common: see docs/pool.md. A forked copy of this process is not offered: its program
            could not be used there.

    Raises:
        LinkerUsageError: there are to be no workers, or they are to be started otherwise.
    """

    def __init__(
        self,
        spec: Spec,
        workers: int | None = None,
        *,
        retries: int = 0,
        timeout: float | None = None,
        start_method: StartMethod = "spawn",
    ) -> None:
        count = _processors() if workers is None else workers
        taken(instance(Spec), spec, "spec")
        taken(at_least(1), count, "workers")
        taken(at_least(0), retries, "retries")
        taken(optional(seconds), timeout, "timeout")
        if start_method not in ("spawn", "forkserver"):
            raise LinkerUsageError(f"start_method must be 'spawn' or 'forkserver', not {start_method!r}")
        self._retries = retries
        self._timeout = timeout
        self._creator = os.getpid()
        self._killed = False
        self._ending = Lock()  # who comes second waits until the workers have ended
        self._directory = tempfile.mkdtemp(prefix="wasix-dl-pool-")
        context = multiprocessing.get_context(start_method)
        self._workers = [_Worker(spec, context, self._directory) for _ in range(count)]
        self._idle: queue.LifoQueue[_Worker] = (
            queue.LifoQueue()
        )  # the last one first: few tasks start few processes
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="wasix-dl pool")
        self._finalizer = weakref.finalize(self, _end_all, self._workers, self._directory, self._creator)
        self._finalizer.atexit = (
            False  # that would be too late: `multiprocessing` waits for its processes before
        )
        _pools[id(self)] = self

    def submit(  # type: ignore[override]  # the group comes first, where the base class has nothing
        self, function: Callable[Concatenate[InstanceGroup, P], R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[R]:
        """Have a worker run `function(group, *args, **kwargs)` with its program's main group.

        Returns:
            Its future. Cancelling it helps before a worker has begun. It ends with what the function raises; with
            `WorkerLostError` if the worker died and there were no retries left; with `GuestTimeoutError` if it took too long.

        Raises:
            RuntimeError: the pool was shut down.
            ProgramForkedError: this process was forked from the pool's.
            pickle.PicklingError: the function or an argument cannot be pickled; or `TypeError` or `AttributeError`, as `pickle`
                raises them.
        """
        if os.getpid() != self._creator:
            raise ProgramForkedError(
                f"the pool belongs to process {self._creator}: make another one in this one"
            )
        task = getattr(function, "__qualname__", repr(function))
        return self._threads.submit(self._run, pickle.dumps((function, args, kwargs)), task)

    def _run(self, work: bytes, task: str) -> Any:
        retries = self._retries
        while True:
            worker = self._idle.get()
            try:
                return self._run_with(worker, work, task)
            except WorkerLostError:
                if not retries or self._killed:
                    raise
                retries -= 1
            finally:
                self._idle.put(worker)

    def _run_with(self, worker: _Worker, work: bytes, task: str) -> Any:
        if self._killed:
            raise WorkerLostError(task, 0, None)
        return worker.run(work, task, self._timeout)

    def prepare(self) -> None:
        """Start all workers that do not run a function, and wait until each has built its program.

        Raises:
            DlError: the program could not be linked there.
            WorkerLostError: a worker died of it.
        """
        taken: list[_Worker] = []
        with contextlib.suppress(queue.Empty):
            while True:
                taken.append(self._idle.get_nowait())
        try:
            if taken:
                with ThreadPoolExecutor(len(taken)) as threads:
                    list(threads.map(lambda worker: self._run_with(worker, PREPARE, "linking"), taken))
        finally:
            for worker in taken:
                self._idle.put(worker)

    @property
    def processes(self) -> tuple[int, ...]:
        """Numbers of the processes that there are at the moment."""
        alive = [worker.process for worker in self._workers]
        return tuple(process.pid for process in alive if process is not None)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work; end the workers when what was given is done.

        Args:
            wait: whether to wait for that.
            cancel_futures: whether to cancel what no worker has begun with.
        """
        if os.getpid() != self._creator:
            return
        self._threads.shutdown(wait=wait, cancel_futures=cancel_futures)
        if wait:
            with self._ending:
                self._finalizer()
        elif self._finalizer.alive:
            Thread(target=self.shutdown, name="wasix-dl pool's end").start()

    def kill(self) -> None:
        """Take no more work and end the workers at once; what they run ends with `WorkerLostError`."""
        if os.getpid() != self._creator:
            return
        self._killed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.kill()
        self.shutdown()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, Exception):
            self.shutdown()
        else:
            self.kill()

    def __repr__(self) -> str:
        state = (
            f"{len(self.processes)} of {len(self._workers)} processes"
            if self._finalizer.alive
            else "shut down"
        )
        return f"<ProcessPool, {state}>"


def _comes(connection: Connection, seconds: float) -> bool:
    """Wait until something comes; return whether it does within so many seconds, of which there may be any number."""
    end = time.monotonic() + seconds
    while not connection.poll(max(0.0, min(end - time.monotonic(), _LONGEST_POLL_SECONDS))):
        if time.monotonic() >= end:
            return False
    return True


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _end_all(workers: list[_Worker], directory: str, creator: int) -> None:
    """End the processes of a pool whose threads have ended, and remove its files."""
    if os.getpid() != creator:
        return
    with ThreadPoolExecutor(len(workers)) as threads:
        list(threads.map(_Worker.end, workers))
    shutil.rmtree(directory, ignore_errors=True)


_pools: weakref.WeakValueDictionary[int, ProcessPool] = weakref.WeakValueDictionary()


def _at_exit() -> None:
    for reference in _pools.valuerefs():  # one step, where others still make pools
        pool = reference()
        if pool is not None:
            pool.kill()


atexit.register(_at_exit)  # after the import of `multiprocessing`, so that it comes before the end of that
