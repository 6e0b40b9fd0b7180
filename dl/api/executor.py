"""A pool of threads that keep their instance groups, with the interface of `concurrent.futures`."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from dl.api.linker_base import LinkerBase
from dl.errors import ResourceLimitError
from dl.group import InstanceGroup
from dl.groups.errors import check_process
from dl.groups.host_threads import StartedThread
from memory import Uncopied

if TYPE_CHECKING:
    from typing import Concatenate

P = ParamSpec("P")
R = TypeVar("R")

_Work = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class GuestExecutor(Uncopied, Executor):
    """Runs `function(group, *args)` in threads of the host, each of which keeps an instance group; see `Hosts.executor`.

    A task costs what handing it to a thread costs, where attaching a thread for it makes a new set of instances each time.
    Threads are started when there is work for them.
    """

    # `_lock` guards the fields below it. `_idle` is how many threads wait for work, less the work that waits for threads.
    # `_alive` counts a thread from the decision to start it, and `_threads` has it once it is started: `_started_all` is
    # notified then, for `shutdown`, which waits for nothing else under the lock. Threads have names of their own, by which
    # `_replace` finds one.

    def __init__(self, linker: LinkerBase, workers: int, name: str) -> None:
        self._linker = linker
        self._workers = workers
        self._name = name
        self._lock = threading.Lock()
        self._started_all = threading.Condition(self._lock)
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._threads: list[StartedThread] = []
        self._idle = 0
        self._alive = 0
        self._started = 0
        self._closed = False

    def submit(  # type: ignore[override]  # the group comes first, where the base class has nothing
        self, function: Callable[Concatenate[InstanceGroup, P], R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[R]:
        """Have a thread run `function(group, *args, **kwargs)`.

        Returns:
            Its future. Cancelling it helps only before a thread has begun with it; bound what runs by `timeout=` of its calls.

        Raises:
            RuntimeError: the executor was shut down.
            ProgramForkedError: this process was forked from the program's, where the threads are.
            ResourceLimitError: no thread can be started, and there is none.
        """
        future: Future[R] = Future()
        check_process(self._linker.program.rendezvous.process)
        with self._lock:
            if self._closed:
                raise RuntimeError("the executor was shut down")
            start = self._idle <= 0 and self._alive < self._workers
            if start:
                self._alive += 1
            else:
                self._idle -= 1
            self._work.put((future, function, args, kwargs))
        if start:
            self._start(future)
        return future

    def _start(self, first: Future[Any] | None = None) -> None:
        with self._lock:
            self._started += 1
            name = f"{self._name} {self._started}"
        try:
            thread = self._linker.parts.host_threads.spawn(self._linker.own.viewing(self._run), (), name)
        except BaseException as error:
            with self._lock:
                self._alive -= 1
                self._idle -= 1
                alone = not self._alive
                self._started_all.notify_all()
            if not isinstance(error, ResourceLimitError) or (alone and (first is None or first.cancel())):
                raise
            return  # another thread does it, later
        with self._lock:
            self._threads.append(thread)
            self._started_all.notify_all()

    def _run(self, group: InstanceGroup) -> None:
        """The body of each thread."""
        while True:
            work = self._work.get()
            if work is None:
                self._work.put(None)  # for the next one
                return
            future, function, args, kwargs = work
            if future.set_running_or_notify_cancel():
                try:
                    result = function(group, *args, **kwargs)
                except BaseException as error:  # noqa: BLE001  belongs to whoever asks for the result
                    future.set_exception(error)
                else:
                    future.set_result(result)
                    del result
            del future, function, args, kwargs, work
            if group.own.replica.closed is not None and self._linker.program.ended is None:
                self._replace()
                return
            with self._lock:
                self._idle += 1

    def _replace(self) -> None:
        """Start a thread in place of this one, whose group has ended alone."""
        with self._lock:
            self._threads = [
                thread for thread in self._threads if thread.name != threading.current_thread().name
            ]
        self._start()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work; end the threads when what was given is done.

        Args:
            wait: whether to wait for them; a thread of the executor does not wait for itself.
            cancel_futures: whether to cancel what no thread has begun with.

        In a child made by `os.fork` this does nothing.
        """
        if not self._linker.program.rendezvous.process.is_this_one():
            return
        with self._lock:
            self._closed = True
        if cancel_futures:
            while True:
                try:
                    work = self._work.get_nowait()
                except queue.Empty:
                    break
                if work is not None:
                    work[0].cancel()
                    work[0].set_running_or_notify_cancel()
        self._work.put(None)
        if wait:
            with self._lock:
                self._started_all.wait_for(lambda: len(self._threads) >= self._alive)
                threads = [thread for thread in self._threads if not thread.is_this_one()]
            for thread in threads:
                thread.thread_done.wait()

    def __repr__(self) -> str:
        state = "shut down" if self._closed else f"{len(self._threads)} of {self._workers} threads"
        return f"<GuestExecutor of {self._linker!r}, {state}>"
