"""Threads that the guest starts."""

from __future__ import annotations

import contextlib
import threading

from dl.errors import (
    GuestThreadError,
    LinkerUsageError,
    ProgramDeadlockedError,
    ProgramExited,
    ResourceLimitError,
    ThreadExited,
)
from dl.groups.endings import await_end
from dl.groups.entry import Group
from dl.groups.libc_threads import THREAD_START, THREAD_START_TYPE, LibcThreads
from dl.groups.registry import Groups
from dl.logs import logger
from threads import Event, Waits, recording

log = logger("dl.threads")


class GuestThread:
    """A thread that the guest started.

    `_lock` guards `_group` and `_stop`, so that an order to stop reaches the thread whether its group exists yet or not; a leaf
    but for `Replica.interrupt_with`, which takes no lock.

    Attributes:
        id: its number, from 2; the main thread is 1.
        name: its name in messages.
        started: set when its group exists, or cannot.
        ended_in_program: set at its end, for threads of the program to wait on: a wait for it can be seen as a deadlock.
        thread_done: set at its end, for threads that are not of the program.
        failure: why its group could not be made.
    """

    def __init__(self, waits: Waits, number: int) -> None:
        self.id = number
        self.name = f"thread {number}"
        self.ended_in_program = Event(waits, f"{self.name} to end")
        self.started = Event(waits, f"{self.name} to start")
        self.thread_done = threading.Event()
        self.failure: BaseException | None = None
        self._lock = threading.Lock()
        self._group: Group | None = None
        self._stop: BaseException | None = None

    def runs_in(self, group: Group | None) -> None:
        """Note the group that the thread runs guest code in from now on, or that there is none."""
        with self._lock:
            former, self._group = self._group, group
            if self._stop is None:
                return
            if former is not None:
                former.replica.withdraw(self._stop)
            if group is not None:
                group.replica.interrupt_with(self._stop)

    def raise_if_cancelled(self) -> None:
        """Raise what the thread was ordered to stop with, if it was."""
        if self._stop is not None:
            raise self._stop

    def stop(self, exception: BaseException) -> None:
        """Make the thread raise an exception at its next safe point, wait or entry, the first one included; any thread.

        An order that was given before is repeated if a host function has swallowed it.
        """
        with self._lock:
            first, self._stop = self._stop is None, exception
            if self._group is None:
                return
            replica = self._group.replica
            if first or not replica.waiter.interrupted:
                replica.interrupt_with(exception)


class GuestThreads:
    """The guest's threads of one program.

    `_lock` guards `_running` and `_closed`; a leaf but for that of the threads' places.
    """

    def __init__(self, groups: Groups, libc: LibcThreads) -> None:
        self._groups = groups
        self._program = groups.program
        self._libc = libc
        self._lock = threading.Lock()
        self._running: dict[int, GuestThread] = {}
        self._closed: BaseException | None = None

    def spawn(self, start: int, *, stack_pointer: int, main_tls: int | None) -> int:
        """Start a thread for the guest; return when its group exists, before it runs any of the program.

        Args:
            start: what the thread's start function gets, an address.
            stack_pointer: upper end of its shadow stack, bytes.
            main_tls: its block of the main module's thread-local storage, bytes.

        Returns:
            Its number.

        Raises:
            DlError: the group could not be made.
            LinkerUsageError: the program's memory is not shared, or the main module exports no `wasi_thread_start`.
            ResourceLimitError: the program has as many as it may.
        """
        if not self._program.shares_memory:
            raise LinkerUsageError("a program whose memory is not shared has one thread")
        main = self._program.main_module
        export = main.wasm.exports.get(THREAD_START) if main else None
        if main is None or export is None or export.type != THREAD_START_TYPE:
            raise LinkerUsageError(f"the main module exports no {THREAD_START} {THREAD_START_TYPE}")
        number = self._groups.next_number()
        if self._libc.record(number, start, stack_pointer, main_tls):
            return number
        thread = GuestThread(self._program.waits, number)
        with self._lock:
            if self._closed is not None:
                raise self._closed.with_traceback(None)
            self._groups.places.take(thread.name)
            self._running[number] = thread
        target = threading.Thread(
            target=self._run, args=(thread, start, stack_pointer, main_tls), name=thread.name, daemon=True
        )
        with self._program.waits.outsider():
            try:
                target.start()
            except (RuntimeError, MemoryError) as error:
                self._forget(thread)
                raise ResourceLimitError(thread.name, f"the host starts no thread: {error}") from error
            except BaseException:
                self._groups.places.give_back()
                self._forget(thread)
                raise
            try:
                thread.started.wait(self._groups.current().replica.waiter)
            except BaseException:
                thread.stop(ThreadExited())  # nobody learns its number
                raise
        if thread.failure is not None:
            raise thread.failure
        return number

    def _run(self, thread: GuestThread, start: int, stack_pointer: int, main_tls: int | None) -> None:
        try:
            group = self._groups.new_group(
                thread.name,
                stack_pointer=stack_pointer,
                main_tls=main_tls,
                number=thread.id,
                thread=thread,
            )
        except BaseException as error:  # noqa: BLE001  given to the thread that asked for this one
            thread.runs_in(None)
            thread.failure = error
            self._groups.places.give_back()
            self._forget(thread)
            thread.started.set()
            thread.thread_done.set()
            thread.ended_in_program.set()
            return
        thread.started.set()
        try:
            main = self._program.main_module
            assert main is not None
            log.debug("%s starts", thread.name)
            with recording.span("guest", "thread", thread.name):
                group.call_export(main, THREAD_START, THREAD_START_TYPE, thread.id, start)
        except ThreadExited:
            log.debug("%s exits", thread.name)
        except BaseException as error:  # noqa: BLE001  it ends the program, which reports it to the thread that runs it
            self._failed(thread, error)
        finally:
            thread.runs_in(None)
            # Before anybody can know of the end: who has waited for it may start another thread at once.
            self._groups.places.give_back()
            # While this thread still counts: a thread that waits for it must not be taken for deadlocked.
            thread.ended_in_program.set()
            self._groups.leave(group)
            self._forget(thread)
            thread.thread_done.set()

    def _failed(self, thread: GuestThread, error: BaseException) -> None:
        """End the program with a thread of the guest that ends by itself and abnormally, as a process would."""
        if isinstance(error, ProgramExited) or self._program.ended is not None:
            return
        if isinstance(error, ProgramDeadlockedError):
            # Every thread gets its own copy; whichever acts first, they all say the same.
            self._program.end(error)
        else:
            self._program.end(GuestThreadError(thread.name, error))

    def _forget(self, thread: GuestThread) -> None:
        with self._lock:
            self._running.pop(thread.id, None)

    def find(self, number: int) -> GuestThread | None:
        """Return a running thread of the guest."""
        with self._lock:
            return self._running.get(number)

    # the end

    def stop_all(self, exception: BaseException) -> None:
        """End all threads of the guest, and wait for them as `endings` says; they can start no others meanwhile."""
        with self._lock:
            self._closed = exception
        try:
            self._await_end(exception)
        finally:
            with self._lock:
                self._closed = None

    def wait_for_all(self) -> None:
        """Wait until the guest has no thread left but the calling one."""
        caller = self._groups.find()
        while True:
            with self._lock:
                threads = list(self._running.values())
            if not threads:
                return
            for thread in threads:
                if caller is not None and self._program.ended is None:
                    thread.ended_in_program.wait(caller.replica.waiter)
                thread.thread_done.wait()  # what it still does is giving back what it had

    def join_all(self) -> None:
        """Wait for all threads, as `endings` says; the program has ended."""
        self._await_end(None)

    def _await_end(self, stop: BaseException | None) -> None:
        with self._lock:
            threads = list(self._running.values())

        def remind() -> None:
            if stop is not None:
                for thread in threads:
                    thread.stop(stop)
            with contextlib.suppress(RuntimeError):  # the host has no thread that repeats it
                self._program.rendezvous.nudge()

        remind()
        await_end([(thread.name, thread.thread_done) for thread in threads], remind)
