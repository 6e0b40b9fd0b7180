"""Which thread of the program has which group.

A group belongs to one thread at a time, or to none. The moves, and what each changes:

| move | the group's owner | the thread's entry | counts among the program's waiters |
| --- | --- | --- | --- |
| `enter` | the calling thread | set | from here on |
| `park` | no thread | removed | still: somebody will `take` it, so that a wait for it is no deadlock |
| `take` | the calling thread | set | as before |
| `lend`, for a block | the calling thread, then none | set, then removed | while the block runs |
| `leave` | closed | removed | no longer |
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from threading import get_ident

from dl.errors import LinkerUsageError
from dl.groups.allocating import AllocatingGroup, NotStoppable, Stoppable
from dl.groups.boundary import GuestBoundary
from dl.groups.entry import NO_THREAD, Group, GuestSignals, NoSignals
from dl.groups.errors import raises_dl_errors
from dl.limits import Limits
from dl.program.program import Program
from dl.program.reserve import ThreadLocalReserve
from threads import DETACHED, found_in, recording

MAIN_THREAD_ID = 1
_STACK_ALIGN_LOG2 = 10


class Places:
    """How many threads of the program there may be beside the one that made it. `_lock` guards `_taken`; a leaf."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._taken = 0

    def take(self, thread: str) -> None:
        """Count one thread more.

        Raises:
            ResourceLimitError: there are as many as there may be.
        """
        with self._lock:
            if self._taken >= self._limits.threads:
                raise self._limits.refusal("threads", thread, f"there are {self._taken} threads")
            self._taken += 1

    def give_back(self) -> None:
        """Count one thread less."""
        with self._lock:
            self._taken -= 1

    @contextlib.contextmanager
    def taken(self, thread: str) -> Iterator[None]:
        """Count one thread more while the block runs; see `take`."""
        self.take(thread)
        try:
            yield
        finally:
            self.give_back()


class Groups:
    """The groups of one program, by thread.

    `_lock` guards `_by_thread`, `_ids` and the boundary's `replicas`, for changes; a leaf. A thread reads its own entries
    without it: only `park`, `take` and `leave` change another thread's, and only while that thread is outside guest code and
    does not use the group.

    Attributes:
        program: what all groups share.
        places: bounds its threads.
        allocating: lets threads without a group call the program's allocator.
        signals: those of the guest; set once, when the system interface is made.
    """

    def __init__(self, program: Program, boundary: GuestBoundary) -> None:
        self.program = program
        self.places = Places(program.options.limits)
        self.signals: GuestSignals = NoSignals()
        self.allocating = AllocatingGroup(self)
        self._boundary = boundary
        self._lock = threading.Lock()
        self._by_thread: dict[int, Group] = {}
        self._ids: dict[int, int] = {}
        self._numbers = itertools.count(MAIN_THREAD_ID + 1)
        program.rendezvous.nudger.add(self._main_thread_is_unaware)

    # who has which

    def find(self) -> Group | None:
        """Return the calling thread's group, if it has one."""
        return found_in(self._by_thread, get_ident())

    def current(self) -> Group:
        """Return the calling thread's group.

        Raises:
            LinkerUsageError: it has none.
        """
        group = self._by_thread.get(get_ident())
        if group is None:
            raise LinkerUsageError("this thread has no instance group; use Linker.attach()")
        return group

    def all(self) -> list[Group]:
        """Return the groups that threads have now."""
        with self._lock:
            return list(self._by_thread.values())

    def thread_id(self) -> int:
        """Return the number by which the guest knows the calling thread."""
        return self._ids.get(get_ident(), MAIN_THREAD_ID)

    def group(self, number: int) -> Group | None:
        """Return the group of the thread that the guest knows by a number."""
        with self._lock:
            for thread, group in self._by_thread.items():
                if self._ids.get(thread, MAIN_THREAD_ID) == number:
                    return group
        return None

    def next_number(self) -> int:
        """Return a number for a new thread of the guest."""
        return next(self._numbers)

    # signals of the host

    def signal_came(self) -> None:
        """Have the process's main thread run Python code, so that its signal handlers run; from any thread.

        Guest code is interrupted. A wait is woken: the kernel may give the signal to another thread, or to the main thread
        just before it waits for its lock; in both cases nothing else would end the wait. It goes on when no handler raises.
        """
        group = self._by_thread.get(threading.main_thread().ident or 0)
        if group is not None:
            group.must_notice = True
            group.replica.fence.heavy()  # before its state is read; see `Nudger.nudge`
            group.replica.waiter.unpark()
        self.program.rendezvous.nudger.nudge()

    def _main_thread_is_unaware(self) -> bool:
        group = self._by_thread.get(threading.main_thread().ident or 0)
        return group is not None and group.is_unaware()

    # moves

    def enter(self, group: Group, number: int | None = None) -> None:
        """Make a group the calling thread's.

        Args:
            group: the group.
            number: by which the guest knows the thread; None for the first thread.
        """
        self._attach(group, number)
        self.program.waits.add(group.replica.waiter)

    def leave(self, group: Group) -> None:
        """Take a group from its thread, and close it; in a forked child it is left as it is."""
        if not self.program.rendezvous.process.is_this_one():
            return
        self._detach(group)
        group.close()
        self.program.waits.remove(group.replica.waiter)
        self.program.limbo.drain()

    def park(self, group: Group) -> None:
        """Take a group from its thread, until `take` gives it to another."""
        self._detach(group)

    def take(self, group: Group) -> None:
        """Make the calling thread the owner of a group that no thread is using.

        Raises:
            LinkerUsageError: its thread is inside it, or the calling thread has another.
        """
        present = self.find()
        if present is group:
            return
        if present is not None or group.replica.state != DETACHED:
            raise LinkerUsageError(f"instance group {group.name!r} is in use, or this thread has its own")
        self._detach(group)
        self._attach(group, None)

    @contextlib.contextmanager
    def lend(self, group: Group) -> Iterator[None]:
        """Give the calling thread, which has none, a group that no thread has, while the block runs."""
        self.enter(group)
        try:
            yield
        finally:
            self.take_off(group)

    def take_off(self, group: Group) -> None:
        """Take a group from the calling thread; it is kept for `lend` and no longer counts among the program's waiters."""
        self._detach(group)
        self.program.waits.remove(group.replica.waiter)

    def _attach(self, group: Group, number: int | None) -> None:
        me = get_ident()
        with self._lock:
            if group.owner:
                group.owner = me
            self._by_thread[me] = group
            self._boundary.replicas[me] = group.replica
            if number is not None:
                self._ids[me] = number
        recording.named(group.name)

    def _detach(self, group: Group) -> None:
        with self._lock:
            owner = group.owner
            if self._by_thread.get(owner) is group:
                del self._by_thread[owner], self._boundary.replicas[owner]
                self._ids.pop(owner, None)
            if owner:
                group.owner = NO_THREAD

    # new groups

    def new_main_group(self) -> Group:
        """Make the group of the thread that makes the program."""
        group = Group(self.program, "main", self.signals)
        try:
            self.enter(group)
            self.program.rendezvous.join(group.replica)
        except BaseException:
            self.leave(group)
            raise
        return group

    @raises_dl_errors
    def new_group(
        self,
        name: str,
        *,
        stack_pointer: int,
        main_tls: int | None = None,
        number: int | None = None,
        thread: Stoppable | None = None,
    ) -> Group:
        """Make a group for the calling thread, which has none, up to date and in the barrier.

        Args:
            name: the thread's name in messages.
            stack_pointer: upper end of its shadow stack, bytes.
            main_tls: its block of the main module's thread-local storage, bytes; None to allocate one.
            number: by which the guest knows it; None for a new one.
            thread: the calling thread, which learns its group before it replays anything: what it replays may never end.

        Raises:
            DlError: it cannot be made.
        """
        thread = thread or NotStoppable()
        group = Group(self.program, name, self.signals, stack_pointer=stack_pointer, main_tls=main_tls)
        try:
            self._stock_up(group, thread)
            self.enter(group, self.next_number() if number is None else number)
            thread.runs_in(group)
            self.program.rendezvous.join(group.replica)
            group.synchronize()
        except BaseException:
            self.leave(group)
            raise
        return group

    def _stock_up(self, group: Group, thread: Stoppable) -> None:
        """See that the group finds its thread-local blocks when it replays."""
        reserve = self.program.reserve
        if reserve is None:
            return
        with self.program.rendezvous.instigate(None):
            group.instances.count_for_reserve()
        with self.allocating.lent(thread):
            reserve.fill()

    @contextlib.contextmanager
    def stack(self, thread: Stoppable | None = None) -> Iterator[int]:
        """Allocate a shadow stack of the size for attached threads; give its upper end, bytes.

        Raises:
            ResourceLimitError: there is no memory for it.
        """
        side_memory = self.program.side_memory
        assert side_memory is not None
        size = self.program.options.thread_stack_size
        with self.allocating.lent(thread or NotStoppable()):
            # Not zeroed: no code reads of a stack what it has not written.
            stack = side_memory.allocate(size, _STACK_ALIGN_LOG2, "a thread's stack", zeroed=False)
        try:
            yield stack.address + stack.size
        finally:
            if self.program.rendezvous.process.is_this_one():
                side_memory.free_later(stack)

    def allocator_works(self) -> None:
        """The main module's allocator works from now on: prepare what threads need to call it."""
        program = self.program
        side_memory = program.side_memory
        if side_memory is None or not side_memory.calls_guest or not program.shares_memory:
            return
        reserve = ThreadLocalReserve(side_memory)
        for module in program.state.modules.copy().values():
            if module.thread_local is not None:
                reserve.open(module.thread_local)
        with program.rendezvous.instigate(self.current().replica):
            reserve.add_group()  # the allocating one
            program.reserve = reserve
        reserve.fill()
        size = program.options.thread_stack_size
        self.allocating.prepare(side_memory.allocate(size, _STACK_ALIGN_LOG2, "a thread's stack"))
