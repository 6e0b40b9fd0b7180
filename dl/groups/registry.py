"""The threads of a program: each has one instance group, made from the log when the thread comes to the program.

Three ways to be one: the host attaches a thread of its own, the host has the linker start one, or the guest starts one.
All end alike: the group leaves the rendezvous, so that no barrier waits for it, and what the linker allocated for the
thread (stack, thread-local blocks) is given back.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from threading import get_ident
from typing import TYPE_CHECKING, Any

from dl.errors import (
    GuestThreadError,
    LinkerUsageError,
    ProgramDeadlockedError,
    ProgramExited,
    ThreadExited,
)
from dl.group import InstanceGroup
from dl.groups.errors import raises_dl_errors
from dl.groups.libc_threads import THREAD_START, THREAD_START_TYPE, LibcThreads
from dl.groups.threads import NO_THREAD, GuestThread, HostThread
from dl.options import GUEST_THREAD_LIMIT
from threads import DETACHED, GUEST, HOST, DeadlockError, FutexTable, Replica, Waits

if TYPE_CHECKING:
    from dl.linker import Linker

log = logging.getLogger("dl.threads")

MAIN_THREAD_ID = 1
_STACK_ALIGN_LOG2 = 10


class ThreadGroups:
    """The groups of one program, by thread.

    `_lock` guards `_guests`, `_hosts`, `_expects_threads` and the last number; a leaf. `_by_thread` is written by each thread
    for itself only, one step under the GIL.

    Attributes:
        waits: every wait of the program.
        futexes: waits at addresses of the shared memory.
        checkpoint: called by a group, with the name of each step, as it makes a link operation, its own or another's; what it
            raises fails the step. For fault injection.
    """

    def __init__(self, linker: Linker) -> None:
        self._linker = linker
        self._lock = threading.Lock()
        self.checkpoint: Callable[[InstanceGroup, str], None] = lambda _group, _step: None
        self._by_thread: dict[int, Replica[Any]] = {}
        self._groups: dict[int, InstanceGroup] = {}
        self._guests: dict[int, GuestThread] = {}
        self._hosts: set[HostThread] = set()
        self._numbers = itertools.count(MAIN_THREAD_ID + 1)
        self._names = itertools.count(1)
        self._ids: dict[int, int] = {}
        self.waits = Waits(self._deadlocked)
        self.futexes = FutexTable(self.waits)
        self._expects_threads = False
        self._promises = contextlib.ExitStack()
        self._libc = LibcThreads(linker)

    # the border between guest and host code; on every host call

    def enter_host(self) -> Replica[Any]:
        """Come from guest code into a host function."""
        replica = self._by_thread[get_ident()]
        replica.state = HOST
        if self._linker.rendezvous.version < 0:
            replica.arrive()
        return replica

    def exit_host(self, replica: Replica[Any]) -> None:
        """Go back to guest code, up to date."""
        replica.state = GUEST
        if replica.applied != self._linker.rendezvous.version:
            replica.catch_up()

    # groups

    def find(self) -> InstanceGroup | None:
        """Return the calling thread's group, if it has one."""
        return self._groups.get(get_ident())

    def current(self) -> InstanceGroup:
        """Return the calling thread's group.

        Raises:
            LinkerUsageError: it has none.
        """
        group = self._groups.get(get_ident())
        if group is None:
            raise LinkerUsageError("this thread has no instance group; use Linker.attach()")
        return group

    def thread_id(self) -> int:
        """Return the number by which the guest knows the calling thread."""
        return self._ids.get(get_ident(), MAIN_THREAD_ID)

    def group(self, number: int) -> InstanceGroup | None:
        """Return the group of the thread that the guest knows by a number."""
        for thread, group in tuple(self._groups.items()):
            if self._ids.get(thread, MAIN_THREAD_ID) == number:
                return group
        return None

    def enter(self, group: InstanceGroup) -> None:
        """Make a group the calling thread's."""
        me = get_ident()
        self._groups[me] = group
        self._by_thread[me] = group.replica
        self.waits.add(group.replica.waiter)

    def leave(self, group: InstanceGroup) -> None:
        """Let a group's thread have none, and close the group."""
        self.put_down(group)
        group.close()
        self.waits.remove(group.replica.waiter)

    def put_down(self, group: InstanceGroup) -> None:
        """Let a group have no thread, until `move_here` gives it one."""
        owner = group.owner
        if self._groups.get(owner) is group:
            del self._groups[owner], self._by_thread[owner]
            self._ids.pop(owner, None)
        if owner:
            group.owner = NO_THREAD

    def move_here(self, group: InstanceGroup) -> None:
        """Make the calling thread the owner of a group that no thread is using.

        Raises:
            LinkerUsageError: its thread is inside it, or the calling thread has another.
        """
        me = get_ident()
        if self._groups.get(me) is group:
            return
        if me in self._groups or group.replica.state != DETACHED:
            raise LinkerUsageError(f"instance group {group.name!r} is in use, or this thread has its own")
        self.put_down(group)
        group.owner = me
        self._groups[me] = group
        self._by_thread[me] = group.replica

    def all(self) -> list[InstanceGroup]:
        """Return the groups there are now."""
        return list(self._groups.values())

    @contextlib.contextmanager
    def attach(self, name: str | None = None, *, known: bool = False) -> Iterator[InstanceGroup]:
        """Give the calling thread a group, for a `with`; if it has one, that one.

        Args:
            name: its name in messages.
            known: whether the linker has started the thread. One that it has not shows that the host has threads of its own,
                any of which may come and wake the others: no deadlock is told from then on.
        """
        present = self.find()
        if present is not None:
            yield present
            return
        program = self._linker.program
        if not program.shares_memory:
            raise LinkerUsageError(
                "a program whose memory is not shared has one instance group; build it with -pthread "
                "(wasm-ld --shared-memory)"
            )
        if not known:
            self._expect_threads()
        record = self._libc.create()
        with self.stack() as stack:
            group = self.new_group(
                name or f"host thread {next(self._names)}",
                stack_pointer=stack,
                main_tls=record.tls if record else None,
                number=record.number if record else None,
            )
            with self.belonging(group), self._libc.identity(group, record):
                yield group

    @contextlib.contextmanager
    def stack(self) -> Iterator[int]:
        """Allocate a shadow stack of the size for attached threads; give its upper end, bytes."""
        program = self._linker.program
        assert program.side_memory is not None
        stack = program.side_memory.allocate(program.thread_stack_size, _STACK_ALIGN_LOG2, "a thread's stack")
        try:
            yield stack.address + stack.size
        finally:
            program.side_memory.free(stack)

    @contextlib.contextmanager
    def belonging(self, group: InstanceGroup) -> Iterator[None]:
        """Let a new group be the calling thread's while the block runs, and close it then."""
        try:
            yield
        finally:
            self.leave(group)

    @contextlib.contextmanager
    def lent(self, group: InstanceGroup) -> Iterator[None]:
        """Let a group that was laid down be the calling thread's while the block runs."""
        group.owner = get_ident()
        self.enter(group)
        try:
            yield
        finally:
            self.lay_down(group)

    def lay_down(self, group: InstanceGroup) -> None:
        """Let the calling thread have no group, and keep the group for whoever it is lent to."""
        me = get_ident()
        self._groups.pop(me, None)
        self._by_thread.pop(me, None)
        self._ids.pop(me, None)
        self.waits.remove(group.replica.waiter)
        group.owner = NO_THREAD

    @raises_dl_errors
    def new_group(
        self, name: str, *, stack_pointer: int, main_tls: int | None = None, number: int | None = None
    ) -> InstanceGroup:
        """Make a group for the calling thread, which has none, up to date and in the barrier.

        Args:
            name: the thread's name in messages.
            stack_pointer: upper end of its shadow stack, bytes.
            main_tls: its block of the main module's thread-local storage, bytes; None to allocate one.
            number: by which the guest knows it; None for a new one.

        Raises:
            DlError: it cannot be made.
        """
        group = InstanceGroup(self._linker, name, stack_pointer=stack_pointer, main_tls=main_tls)
        try:
            self.enter(group)
            self._ids[get_ident()] = next(self._numbers) if number is None else number
            self._linker.rendezvous.join(group.replica)
            group.synchronize()
        except BaseException:
            self.leave(group)
            raise
        return group

    def _expect_threads(self) -> None:
        with self._lock:
            first, self._expects_threads = not self._expects_threads, True
        if first:
            self._promises.enter_context(self.waits.outsider())

    # threads of the host

    def spawn(self, function: Callable[..., Any], arguments: tuple[Any, ...], name: str | None) -> HostThread:
        """Start a thread with its own group."""
        if not self._linker.program.shares_memory:
            raise LinkerUsageError("a program whose memory is not shared has one instance group")
        thread = self.prepare(name)
        start = threading.Thread(target=thread.run, args=(function, arguments), name=thread.name, daemon=True)
        try:
            start.start()
        except BaseException:
            self.ended(thread)
            raise
        return thread

    def prepare(self, name: str | None) -> HostThread:
        """Return a thread of the host that somebody else is about to `run`."""
        thread = HostThread(self, name or f"host thread {next(self._names)}")
        with self._lock:
            self._hosts.add(thread)
        return thread

    def ended(self, thread: HostThread) -> None:
        """Forget a thread of the host."""
        with self._lock:
            self._hosts.discard(thread)
        thread.not_started()

    # threads of the guest

    def spawn_guest(self, start: int, *, stack_pointer: int, main_tls: int | None) -> GuestThread:
        """Start a thread for the guest; return when its group exists, before it runs any of the program.

        Args:
            start: what the thread's start function gets, an address.
            stack_pointer: upper end of its shadow stack, bytes.
            main_tls: its block of the main module's thread-local storage, bytes.

        Raises:
            DlError: the group could not be made.
            LinkerUsageError: the main module exports no `wasi_thread_start`, or there are too many threads.
        """
        main = self._linker.main_module
        export = main.wasm.exports.get(THREAD_START) if main else None
        if main is None or export is None or export.type != THREAD_START_TYPE:
            raise LinkerUsageError(f"the main module exports no {THREAD_START} {THREAD_START_TYPE}")
        number = next(self._numbers)
        if self._libc.record(number, start, stack_pointer, main_tls):
            return GuestThread(self, number)
        with self._lock:
            if len(self._guests) >= GUEST_THREAD_LIMIT:
                raise LinkerUsageError(f"there are {GUEST_THREAD_LIMIT} threads already")
            thread = GuestThread(self, number)
            self._guests[thread.id] = thread
        target = threading.Thread(
            target=self._run_guest,
            args=(thread, start, stack_pointer, main_tls),
            name=thread.name,
            daemon=True,
        )
        with self.waits.outsider():
            try:
                target.start()
            except BaseException:
                self._forget(thread)
                raise
            thread.started.wait(self.current().replica.waiter)
        if thread.failure is not None:
            raise thread.failure
        return thread

    def _run_guest(self, thread: GuestThread, start: int, stack_pointer: int, main_tls: int | None) -> None:
        try:
            group = self.new_group(
                thread.name, stack_pointer=stack_pointer, main_tls=main_tls, number=thread.id
            )
        except BaseException as error:  # noqa: BLE001  given to the thread that asked for this one
            thread.failure = error
            self._forget(thread)
            thread.started.set()
            thread.gone.set()
            thread.ended.set()
            return
        thread.group = group
        thread.started.set()
        try:
            main = self._linker.main_module
            assert main is not None
            log.debug("%s starts", thread.name)
            group.call_export(main, THREAD_START, THREAD_START_TYPE, thread.id, start)
        except ThreadExited:
            log.debug("%s exits", thread.name)
        except BaseException as error:  # noqa: BLE001  it ends the program, which tells whoever runs it
            self._guest_failed(thread, error)
        finally:
            thread.group = None
            thread.ended.set()  # while this thread still counts: who waits for it must not be taken for deadlocked
            self.leave(group)
            self._forget(thread)
            thread.gone.set()

    def _guest_failed(self, thread: GuestThread, error: BaseException) -> None:
        """A thread of the guest that ends by itself and abnormally takes the program with it, as a process's does."""
        if isinstance(error, ProgramExited) or self._linker.ended is not None:
            return
        if isinstance(error, ProgramDeadlockedError):
            # Every thread has its own copy coming; whichever acts first, they all say the same.
            self._linker.end(error)
        else:
            self._linker.end(GuestThreadError(thread.name, error))

    def _forget(self, thread: GuestThread) -> None:
        with self._lock:
            self._guests.pop(thread.id, None)

    def guest(self, number: int) -> GuestThread | None:
        """Return a running thread of the guest."""
        with self._lock:
            return self._guests.get(number)

    # the end

    def stop_guests(self, exception: BaseException) -> None:
        """End all threads of the guest, and wait for them."""
        while True:
            with self._lock:
                guests = list(self._guests.values())
            if not guests:
                return
            for thread in guests:
                group = thread.group
                if group is not None:
                    group.replica.interrupt_with(exception)
            caller = self.find()
            for thread in guests:
                if caller is not None and self._linker.ended is None:
                    thread.ended.wait(caller.replica.waiter)
                thread.gone.wait()

    def wait_for_guests(self) -> None:
        """Wait until the guest has no thread left but the calling one."""
        waiter = self.current().replica.waiter
        while True:
            with self._lock:
                guests = list(self._guests.values())
            if not guests:
                return
            for thread in guests:
                thread.ended.wait(waiter)
                thread.gone.wait()

    def join_all(self) -> None:
        """Wait for the threads that the linker has started; the program has ended."""
        with self._lock:
            hosts, guests = list(self._hosts), list(self._guests.values())
        for host in hosts:
            host.gone.wait()
        for guest in guests:
            guest.gone.wait()
        self._libc.close()

    def _deadlocked(self, error: DeadlockError) -> None:
        log.info("%s", error)  # every thread raises it
