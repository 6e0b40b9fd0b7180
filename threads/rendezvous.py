"""The rendezvous: one program's instance groups make the same link operations, in the same order, none too late."""

# The problem
# ===========
# Every thread of a linked program has a store of its own: own table, own globals, own instance of every module.
# They share memory only. When one thread links a library, it places functions at table indices, and writes such an
# index into shared memory as a function pointer. Another thread that reads the pointer and calls through its
# own table must find the same function there. A store belongs to its thread, so nobody can place it
# there for that thread; and nothing in Wasm says when a thread reads memory. Hence the one thing to guarantee:
#
#   Invariant: no guest instruction runs in a group whose applied number is behind the committed one, nor between
#   the moment all groups have come to a barrier and the commit.
#
# Then it does not matter when a pointer is read: if it was written after the commit (and the linker gives it to
# nobody before), whoever executes the load has made the operation already. (Guest instructions that an operation
# itself runs while a group replays it do not count: they are the operation, not the program.)
#
# What we do
# ==========
# A group's replica is GUEST while its thread may execute guest instructions, HOST in a host call, DETACHED outside.
# `commit` closes the gate (version = CLOSED), interrupts the engine if anybody is GUEST, waits until nobody is,
# appends the operation to the log, and opens the gate (version = the new number). A thread becomes GUEST only if its
# own number equals `version`; otherwise it waits for the gate, replays what it misses, and tries again. So:
#
#  * the barrier waits for threads inside guest code only, and only until their next safe point. Threads that wait in
#    a host call, or do something else in Python, delay nobody and catch up when they come back;
#  * followers replay in their own threads, side by side, after the commit; the instigator waits for none of them.
#    A replay that fails ends that group, alone; nobody waits for what a replay needs;
#  * everything that can fail in an operation has happened before, privately, in the instigator. While it waits at
#    the barrier it may still give up (interrupt, Ctrl-C, time-out): the gate opens as it was, nothing was committed.
#    The append is the point of no return: whatever is raised in the instigator after it is delivered later;
#  * who dies is forgotten (`leave`): it is taken off the list that the barrier waits for, like one that arrived.
#
# Why the common way needs no lock, and why it would not be sound without a GIL: see `Replica`.
#
# What we do not do, and why
# ==========================
#  * Apply an operation to all groups from the instigator's thread: stores are bound to their threads.
#  * Wait until all have applied it (as Wasmer does): the slowest thread, one that sleeps say, would hold up the link,
#    and one that dies in its replay would hang everybody. No guest can tell the difference.
#  * A reader-writer lock held in guest code: two lock operations on every host call, and a writer cannot interrupt
#    its readers.
#  * A flag per replica set by the instigator: to be lock-free on both sides it needs the same argument as one
#    version number, and 64 writes instead of one.
#  * Periodic epoch ticks: all threads would pay all the time for something that happens seldom. The engine is
#    interrupted when a barrier needs it, and again at growing intervals while somebody has not come, because one
#    interrupt can get lost (see `nudger.py`).
#
# What still fails
# ================
#  * A guest thread that blocks inside the engine (raw `memory.atomic.wait`), or an engine without interrupts: it
#    reaches no safe point, and a barrier waits for it, until `timeout` if one is given. The linker rewrites such waits.
#  * An exception that a signal handler raises in the middle of a slow way: it is handled where the thread waits, in
#    `commit` and in `instigate`, but Python gives no means to exclude it between two bytecodes. Handlers should call
#    `Replica.interrupt_with`, which takes no lock, instead of raising.
#  * The log keeps every operation, because a new group may be built from any number on; it grows with the number
#    of operations in a program's life.

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final, Generic, TypeVar

from threads.errors import BarrierTimeoutError, ProtocolError, ReplicaClosedError
from threads.log import OperationLog
from threads.nudger import FIRST_REPEAT_NS, LAST_REPEAT_NS, Nudger
from threads.platform import SYSTEM, LockLike, Platform
from threads.replica import DETACHED, GUEST, HOST, STALE, Replica
from threads.statistics import LATENCY_SAMPLES, RendezvousStatistics
from threads.turn import Turn
from threads.waiter import Waiter

Op = TypeVar("Op")

__all__ = [
    "CLOSED",
    "DETACHED",
    "ENDED",
    "GUEST",
    "HOST",
    "STALE",
    "Rendezvous",
    "RendezvousStatistics",
    "Replica",
]

# What `Rendezvous.version` holds instead of a number. Both negative, so that leaving guest code is one comparison,
# and both unlike any replica's `applied`, so that entering it is one too.
CLOSED: Final = -1  # a barrier is under way
ENDED: Final = -2  # the program has ended


class Rendezvous(Generic[Op]):
    """Where all replicas of one program meet.

    Args:
      interrupt: makes every thread in guest code call `Replica.safe_point` soon (bumps the engine's epoch). Called
        with no lock held, from any thread, also when nobody needs it. May get lost: it is repeated until heard.
      platform: where locks, threads and time come from; for tests.

    Attributes:
      version: number of committed operations, or CLOSED, or ENDED. Written under the lock; read without.
      log: the operations.

    Raises:
      ProtocolError: this interpreter runs without a GIL.
    """

    __slots__ = (
        "_awaited", "_barriers", "_catch_ups", "_ended", "_gate", "_instigator", "_interrupt", "_interrupts", "_latency",
        "_lock", "_nudger", "_platform", "_replay_failures", "_replicas", "_turn", "log", "version",
    )  # fmt: skip

    def __init__(self, interrupt: Callable[[], None], *, platform: Platform = SYSTEM) -> None:
        if not getattr(sys, "_is_gil_enabled", lambda: True)():
            message = (
                "the rendezvous relies on the GIL for the order of memory accesses; run with PYTHON_GIL=1"
            )
            raise ProtocolError(message)
        self.log: OperationLog[Op] = OperationLog()
        self.version: int = 0
        self._interrupt = interrupt
        self._platform = platform
        # Guards the fields below. Innermost: held for a few steps, nothing is waited for and nothing foreign is
        # called under it.
        self._lock: LockLike = platform.lock()
        self._replicas: dict[Replica[Op], None] = {}  # members, in the order they joined
        # Members that the barrier under way still waits for. Invariant: empty unless version is CLOSED.
        self._awaited: dict[Replica[Op], None] = {}
        self._instigator: Waiter | None = None  # who waits for _awaited to become empty
        self._gate: dict[Waiter, None] = {}  # waits for version to be CLOSED no more; each takes itself out
        self._ended: BaseException | None = None
        self._barriers = self._catch_ups = self._replay_failures = 0
        self._latency: deque[float] = deque(maxlen=LATENCY_SAMPLES)
        self._interrupts = 0  # not guarded: a count for reading, written by whoever interrupts
        # The link lock, outermost: held by one instigator at a time over all of its operation, guest code and
        # all; who waits for it is HOST or DETACHED, so that no barrier waits for who waits for it.
        self._turn = Turn(platform)
        self._nudger = Nudger(platform, self._call_interrupt, self._unheard)

    @property
    def committed(self) -> int:
        """Number of committed operations; unlike `version` also while a barrier is under way."""
        return self.log.committed

    # Members.

    def join(self, replica: Replica[Op], applied: int = 0) -> None:
        """Make a replica a member. It catches up before it enters guest code. From any thread.

        Args:
          replica: a new one; it is DETACHED.
          applied: operations its group contains already, 0 to `committed`.

        Raises:
          ProtocolError: it has joined before, or `applied` is out of range.
          BaseException: what the program ended with.
        """
        with self._lock:
            if self._ended is not None:
                raise self._ended.with_traceback(None)
            if replica.joined_before:
                message = f"{replica.name!r} joins a second time"
                raise ProtocolError(message)
            if not 0 <= applied <= self.log.committed:
                message = f"{replica.name!r} joins with {applied} of {self.log.committed} operations"
                raise ProtocolError(message)
            self._replicas[replica] = None
            replica.joined(self, applied)

    def leave(self, replica: Replica[Op], reason: str = "it has left") -> None:
        """Forget a replica, in whatever state it is; a barrier that waits for it goes on. Idempotent; any thread.

        Its thread must run no more guest code. If it does live, its next safe point, wait for the gate or entry raises
        ReplicaClosedError.

        Args:
          replica: the one to forget.
          reason: what that error says.
        """
        with self._lock:
            if replica not in self._replicas:
                return
            del self._replicas[replica]
            replica.left(reason)
            instigator = self._arrived_locked(replica)
        if instigator is not None:
            instigator.unpark()
        replica.waiter.unpark()

    # Operations.

    def instigate(self, replica: Replica[Op] | None) -> Instigation[Op]:
        """Take the link lock, for a `with`; inside, the linker's state is the caller's to change.

        The caller waits for its turn in arrival order, in state HOST or DETACHED, and has applied every committed
        operation when the body starts. A body that raises has committed what it committed, and nothing else.

        Args:
          replica: the calling thread's; None for a thread without an instance group.

        Raises:
          ProtocolError: on entry: the thread holds the link lock already, or is in guest code.
          ReplayError, ReplicaClosedError: on entry, as `Replica.synchronize`.
          BaseException: on entry: what the thread was interrupted with, or the program ended with.
        """
        return Instigation(self, replica)

    def commit(self, replica: Replica[Op] | None, operation: Op, *, timeout: float | None = None) -> int:
        """Append an operation while no group executes guest code. Only inside `instigate`.

        The caller's own group has made the operation already. The others make it before their next guest
        instruction; this does not wait for them.

        Args:
          replica: as given to `instigate`. If a start function left it in state GUEST it is HOST from here on.
          operation: what `apply` of every other replica will be given.
          timeout: seconds to wait for threads in guest code; None is no limit.

        Returns:
          The operation's number, from 1. An exception that comes after the commit (Ctrl-C) is not lost: the
          thread is interrupted with it.

        Raises:
          BarrierTimeoutError: some replicas did not come; or, as below, nothing was committed: roll back.
          ProtocolError: called outside `instigate`.
          BaseException: what the thread was interrupted with while it waited, what the program ended with, or what
            `interrupt` raised.
        """
        waiter = self._turn.holder
        if (
            waiter is None
            or not self._turn.held_by_caller()
            or (replica is not None and replica.waiter is not waiter)
        ):
            message = "commit is called by a thread that does not hold the link lock for this replica"
            raise ProtocolError(message)
        if replica is not None and replica.closed is not None:
            raise ReplicaClosedError(replica.name, replica.closed)
        before = self.log.committed
        started = self._platform.monotonic_ns()
        try:
            if replica is not None and replica.state == GUEST:
                replica.state = HOST
            self._close_gate(waiter)
            self._gather(waiter, timeout)
            with self._lock:
                if self._ended is not None:
                    raise self._ended.with_traceback(None)
                self.log.append(operation)  # the point of no return
            self._open_gate(replica)
            # One step under the GIL, as is the copy that `statistics` takes; only instigators append.
            self._latency.append((self._platform.monotonic_ns() - started) / 1e9)
            return before + 1
        except BaseException as error:
            self._open_gate(replica)
            if self.log.committed == before:
                raise
            waiter.interrupt(error)
        return before + 1

    def shutdown(self, exception: BaseException) -> bool:
        """End the program: every thread gets `exception` at its next safe point, entry or wait.

        For any thread, in any state, but not for a signal handler: it takes the lock.

        Nobody blocks here any more: who waits for the gate, the link lock, a barrier or a futex wakes and raises. A
        barrier under way commits nothing. The one instance is raised in all threads, so it should be plain data.

        Returns:
          Whether this call ended it; the first one counts.
        """
        with self._lock:
            if self._ended is not None:
                return False
            self._ended = exception
            self.version = ENDED
            replicas = list(self._replicas)
        self._turn.end(exception)
        for replica in replicas:
            replica.waiter.end(exception)
        self.nudge()
        return True

    def statistics(self) -> RendezvousStatistics:
        """Return a snapshot. From any thread."""
        with self._lock:
            states = [replica.state for replica in self._replicas]
            return RendezvousStatistics(
                detached=states.count(DETACHED),
                host=states.count(HOST),
                guest=states.count(GUEST),
                committed=self.log.committed,
                barriers=self._barriers,
                catch_ups=self._catch_ups,
                replay_failures=self._replay_failures,
                interrupts=self._interrupts,
                barrier_seconds=tuple(self._latency),
            )

    # The barrier, from the instigator's side.

    def _close_gate(self, waiter: Waiter) -> None:
        with self._lock:
            if self._ended is not None:
                raise self._ended.with_traceback(None)
            self._barriers += 1
            self._instigator = waiter
            # First the gate, then the states: see `Replica`. A thread seen as GUEST either will come to a safe
            # point, or is just finding the gate closed; both end in `_arrived_locked`.
            self.version = CLOSED
            # A call, not a comprehension: CPython 3.12 and 3.13 compile the loop of an inlined one so that a signal
            # handler's exception at its jump back skips the handlers around it, and would leave the lock held.
            self._awaited = dict.fromkeys(filter(_in_guest, self._replicas))

    def _gather(self, waiter: Waiter, timeout: float | None) -> None:
        clock = self._platform.monotonic_ns
        started = repeat_at = clock()
        deadline = None if timeout is None else started + int(timeout * 1e9)
        pause = FIRST_REPEAT_NS
        while True:
            with self._lock:
                missing = tuple(replica.name for replica in self._awaited)
            if not missing:
                return
            waiter.raise_if_interrupted()
            now = clock()
            if deadline is not None and now >= deadline:
                raise BarrierTimeoutError(missing, (now - started) / 1e9)
            if now >= repeat_at:
                self._call_interrupt()
                repeat_at = now + pause
                pause = min(2 * pause, LAST_REPEAT_NS)
            until = repeat_at if deadline is None else min(repeat_at, deadline)
            waiter.park(until - now)

    def _open_gate(self, replica: Replica[Op] | None) -> None:
        # Safe to run twice, and to be cut off and run again: a wake too many harms nobody.
        if replica is not None:
            replica.sequence = self.log.committed  # what is in the log now, the instigator has made itself
            replica.settle()
        with self._lock:
            self._awaited.clear()
            self._instigator = None
            self.version = self.log.committed if self._ended is None else ENDED
            waiting = list(self._gate)
        for waiter in waiting:
            waiter.unpark()

    # The barrier, from a follower's side; called by Replica.

    def arrived(self, replica: Replica[Op]) -> None:
        """Take a replica that is not in guest code off the list the barrier waits for."""
        with self._lock:
            instigator = self._arrived_locked(replica)
        if instigator is not None:
            instigator.unpark()

    def _arrived_locked(self, replica: Replica[Op]) -> Waiter | None:
        # Returns who to wake, outside the lock. Late calls, for a barrier that is over, find nothing to do: it is
        # true at any time that this replica is not in guest code, because only its own thread could go there.
        if replica in self._awaited:
            del self._awaited[replica]
            if not self._awaited:
                return self._instigator
        return None

    def pass_gate(self, replica: Replica[Op]) -> None:
        """Wait, in state HOST, until no barrier is under way.

        Raises:
          BaseException: as `Replica.enter_guest`.
        """
        waiter = replica.waiter
        while True:
            with self._lock:
                instigator = self._arrived_locked(replica)
                closed = replica.closed
                ended = self._ended
                interrupted = waiter.interrupted
                if self.version == CLOSED and closed is None and ended is None and not interrupted:
                    self._gate[waiter] = None
                    passed = False
                else:
                    self._gate.pop(waiter, None)
                    passed = True
            if instigator is not None:
                instigator.unpark()
            if ended is not None:
                raise ended.with_traceback(None)
            if closed is not None:
                raise ReplicaClosedError(replica.name, closed)
            waiter.raise_if_interrupted()
            if passed:
                return
            waiter.park()

    def count_catch_up(self) -> None:
        """Count a replica that replays."""
        with self._lock:
            self._catch_ups += 1

    def replay_failed(self, replica: Replica[Op], sequence: int) -> None:
        """Forget a replica whose replay failed."""
        with self._lock:
            self._replay_failures += 1
        self.leave(replica, f"its replay of operation {sequence} failed")

    # Interrupting threads in guest code.

    def nudge(self) -> None:
        """Interrupt guest code, and again until every thread that has to notice something has noticed."""
        self._nudger.nudge()

    def _call_interrupt(self) -> None:
        self._interrupts += 1
        self._interrupt()

    def _unheard(self) -> bool:
        # No lock: signal handlers come here. A copy is taken in one step; a state read too early is read again later.
        version = self.version
        return any(replica.state == GUEST and replica.applied != version for replica in list(self._replicas))


def _in_guest(replica: Replica[Op]) -> bool:
    return replica.state == GUEST


class Instigation(Generic[Op]):
    """The link lock, held from `__enter__` to `__exit__`; see `Rendezvous.instigate`."""

    __slots__ = ("_rendezvous", "_replica", "_waiter")

    def __init__(self, rendezvous: Rendezvous[Op], replica: Replica[Op] | None) -> None:
        self._rendezvous = rendezvous
        self._replica = replica
        platform = rendezvous._platform  # noqa: SLF001 - one class in two parts
        self._waiter = Waiter("host thread", platform) if replica is None else replica.waiter

    def __enter__(self) -> Instigation[Op]:
        replica = self._replica
        turn = self._rendezvous._turn  # noqa: SLF001
        if replica is not None and replica.state == GUEST:
            message = (
                f"{replica.name!r} asks for the link lock in guest code, where a barrier would wait for it"
            )
            raise ProtocolError(message)
        if replica is not None and replica.replaying:
            message = f"{replica.name!r} asks for the link lock while it replays an operation"
            raise ProtocolError(message)
        if turn.held_by_caller():
            message = f"{self._waiter.name!r} asks for the link lock that its own thread holds"
            raise ProtocolError(message)
        try:
            turn.acquire(self._waiter)
            if replica is not None:
                replica.synchronize()
            return self
        except BaseException:
            turn.release(self._waiter)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._rendezvous._turn.release(self._waiter)  # noqa: SLF001
        if self._replica is None and kind is None:
            # What `commit` put off has no later safe point to go to in a thread without a group.
            # Not what the program ended with: the body has done its work, and nothing is waited for here.
            postponed = self._waiter.take_interrupt()
            if postponed is not None:
                raise postponed
