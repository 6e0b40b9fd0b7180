"""Threads of the host that run the program: attached, or started by the linker."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from dl.errors import LinkerUsageError, ResourceLimitError
from dl.groups.allocating import NotStoppable
from dl.groups.endings import await_end
from dl.groups.entry import Group
from dl.groups.errors import check_process, raises_dl_errors
from dl.groups.libc_threads import LibcThreads
from dl.groups.registry import Groups
from memory import Uncopied
from threads import Event, recording


class StartedThread(Uncopied):
    """A thread that the linker started; users hold it as a `dl.HostThread`.

    `_lock` guards `_group` and `_cancelled`, so that an order to stop reaches the thread whichever group it has; a leaf but for
    `Replica.interrupt_with`, which takes no lock. Reentrant, so that signal handlers can cancel.

    Attributes:
        name: its name.
        ended_in_program: set at its end, for threads of the program to wait on: a wait for it can be seen as a deadlock.
        thread_done: set at its end, for threads that are not of the program.
        has_place: whether it counts among the threads that the program may have; guarded by the lock of `HostThreads`.
    """

    def __init__(self, threads: HostThreads, name: str) -> None:
        self.name = name
        self.has_place = True
        self._threads = threads
        waits = threads.groups.program.waits
        self.ended_in_program = Event(waits, f"thread {name!r} to end")
        self.thread_done = threading.Event()
        self._ident: int | None = None
        self._result: Any = None
        self._error: BaseException | None = None
        self._lock = threading.RLock()
        self._group: Group | None = None
        self._cancelled: BaseException | None = None
        # Until the thread counts as one of the program's, it counts as one that may still act: a thread that
        # waits for it is not deadlocked.
        self._coming = contextlib.ExitStack()
        self._coming.enter_context(waits.outsider())

    @raises_dl_errors
    def join(self, timeout: float | None = None) -> Any:
        """Wait for the thread's end and return what its function returned.

        Args:
            timeout: seconds; None for no limit.

        Raises:
            BaseException: what its function raised.
            TimeoutError: it still runs.
            ProgramDeadlockedError: it waits, and so does every other thread of the program.
        """
        self._threads.groups.program.rendezvous.process.check()
        caller = self._threads.groups.find()
        if caller is None:
            ended = self.thread_done.wait(timeout)
        else:
            limit = None if timeout is None else int(timeout * 1e9)
            ended = self.ended_in_program.wait(caller.replica.waiter, limit)
        if not ended:
            raise TimeoutError(f"thread {self.name!r} still runs")
        # What it still does is ending in the program's C library; the time-out holds for that as well.
        if not self.thread_done.wait(timeout):
            raise TimeoutError(f"thread {self.name!r} still runs")
        if self._error is not None:
            raise self._error
        return self._result

    def __repr__(self) -> str:
        state = "running" if self.is_alive() else "ended"
        return (
            f"<HostThread {self.name}, {state}{f' by {type(self._error).__name__}' if self._error else ''}>"
        )

    def is_alive(self) -> bool:
        """Whether it still runs."""
        return not self.thread_done.is_set()

    def is_this_one(self) -> bool:
        """Whether the calling thread is this one, which must not wait for its own end."""
        return self._ident == threading.get_ident() and self.is_alive()

    def cancel(self, exception: BaseException) -> None:
        """Make the thread raise an exception at its next safe point, wait, or entry into guest code; from any thread."""
        with self._lock:
            self._cancelled = exception
            if self._group is not None:
                self._group.replica.interrupt_with(exception)

    def runs_in(self, group: Group | None) -> None:
        """Note the group that the thread's guest code runs in from now on, or that there is none.

        An order to stop that did not reach the former one is not for those that have it later, but for the next.
        """
        with self._lock:
            former, self._group = self._group, group
            if self._cancelled is None:
                return
            if former is not None:
                former.replica.withdraw(self._cancelled)
            if group is not None:
                group.replica.interrupt_with(self._cancelled)

    def raise_if_cancelled(self) -> None:
        """Raise what the thread was cancelled with, if it was."""
        if self._cancelled is not None:
            raise self._cancelled

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """The thread's body; called once, in it.

        Args:
            function: gets the thread's group and the arguments.
            arguments: the rest.
        """
        self._ident = threading.get_ident()
        try:
            with self._threads.attached(self.name, started_here=self) as group:
                self._coming.close()
                try:
                    if self._cancelled is not None:
                        group.replica.withdraw(self._cancelled)
                    self.raise_if_cancelled()
                    with recording.span("guest", "host thread", self.name):
                        self._result = function(group, *arguments)
                finally:
                    self.runs_in(None)
                    # While this thread still counts: a thread that waits for it must not be taken for deadlocked.
                    self.ended_in_program.set()
        except BaseException as error:  # noqa: BLE001  given to the thread that joins
            self._error = error
        finally:
            # First: who has waited for the end may start another thread at once.
            self._threads.give_place_back(self)
            self.thread_done.set()
            self.ended_in_program.set()
            # Last: who closes the linker waits for the threads that are known.
            self._threads.forget(self)

    def not_started(self) -> None:
        """Stop counting the thread as one that may still act: it never comes, or has come and gone."""
        self._coming.close()


class HostThreads:
    """The threads of the host that have a group of one program.

    `_lock` guards `_running`, `_expects_threads` and each thread's `has_place`; a leaf.

    Attributes:
        groups: the program's groups.
    """

    def __init__(self, groups: Groups, libc: LibcThreads) -> None:
        self.groups = groups
        self._libc = libc
        self._lock = threading.Lock()
        self._running: set[StartedThread] = set()
        self._names = itertools.count(1)
        self._expects_threads = False
        self._promises = contextlib.ExitStack()

    @contextlib.contextmanager
    def attached(
        self, name: str | None = None, *, started_here: StartedThread | None = None
    ) -> Iterator[Group]:
        """Give the calling thread a group, for a `with`; if it has one, that one.

        Args:
            name: its name in messages.
            started_here: the thread, if the linker has started it. One that it has not shows that the host has threads of its
                own, any of which may come and wake the others: no deadlock is reported from then on.

        Raises:
            LinkerUsageError: the program's memory is not shared.
            ResourceLimitError: there is no memory for its stack.
            ResourceLimitError: the program has as many threads as it may.
        """
        groups = self.groups
        check_process(groups.program.rendezvous.process)
        present = groups.find()
        if present is not None:
            yield present
            return
        self._check_shared()
        if started_here is None:
            self._expect_threads()
        with contextlib.nullcontext() if started_here else groups.places.taken(name or "a host thread"):
            yield from self._attached_here(name, started_here or NotStoppable())

    def _attached_here(self, name: str | None, thread: StartedThread | NotStoppable) -> Iterator[Group]:
        """Give the calling thread, which has none, a group; what `attached` is around it."""
        groups = self.groups
        record = self._libc.create(thread)
        with groups.stack(thread) as stack:
            group = groups.new_group(
                name or f"host thread {next(self._names)}",
                stack_pointer=stack,
                main_tls=record.tls if record else None,
                number=record.number if record else None,
                thread=thread,
            )
            try:
                with self._libc.identity(group, record):
                    yield group
            finally:
                groups.leave(group)

    def spawn(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], name: str | None
    ) -> StartedThread:
        """Start a thread with its own group, which runs `function(group, *arguments)`.

        Raises:
            LinkerUsageError: the program's memory is not shared.
            ResourceLimitError: the program has as many threads as it may, or the host has no thread for it.
        """
        self._check_shared()
        thread = self.prepare(name)
        start = threading.Thread(target=thread.run, args=(function, arguments), name=thread.name, daemon=True)
        try:
            start.start()
        except (RuntimeError, MemoryError) as error:
            self.forget(thread)
            raise ResourceLimitError(thread.name, f"the host starts no thread: {error}") from error
        except BaseException:
            self.forget(thread)
            raise
        return thread

    def prepare(self, name: str | None) -> StartedThread:
        """Return a thread of the host that somebody else is about to `run`, or to `forget`.

        Raises:
            ResourceLimitError: the program has as many threads as it may.
        """
        check_process(self.groups.program.rendezvous.process)
        name = name or f"host thread {next(self._names)}"
        self.groups.places.take(name)
        thread = StartedThread(self, name)
        with self._lock:
            self._running.add(thread)
        return thread

    def forget(self, thread: StartedThread) -> None:
        """Forget a thread that has ended, or never started."""
        self.give_place_back(thread)
        thread.not_started()
        with self._lock:
            self._running.discard(thread)

    def give_place_back(self, thread: StartedThread) -> None:
        """Count a thread no longer, unless that has been done."""
        with self._lock:
            had_place, thread.has_place = thread.has_place, False
        if had_place:
            self.groups.places.give_back()

    def join_all(self) -> None:
        """Wait for the threads that the linker has started, but the calling one, as `endings` says; the program has ended."""
        with self._lock:
            running = [thread for thread in self._running if not thread.is_this_one()]

        def remind() -> None:
            with contextlib.suppress(RuntimeError):  # the host has no thread that repeats it
                self.groups.program.rendezvous.nudge()

        await_end([(thread.name, thread.thread_done) for thread in running], remind)

    def _check_shared(self) -> None:
        if not self.groups.program.shares_memory:
            raise LinkerUsageError(
                "a program whose memory is not shared has one instance group; build it with -pthread "
                "(wasm-ld --shared-memory), or without a program give memory=dl.MemoryType(shared=True)"
            )

    def _expect_threads(self) -> None:
        with self._lock:
            first, self._expects_threads = not self._expects_threads, True
        if first:
            self._promises.enter_context(self.groups.program.waits.outsider())
