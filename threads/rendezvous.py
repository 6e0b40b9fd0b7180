"""The rendezvous: one program's instance groups make the same link operations, in the same order, each in time."""

# The problem
# ===========
# Every thread of a linked program has a store of its own: own table, own globals, own instance of every module.
# They share memory only. When one thread links a library, it places functions at table indices, and writes such an
# index into shared memory as a function pointer. Another thread that reads the pointer and calls through its
# own table must find the same function there. A store belongs to its thread, so no other thread can place it
# there; and nothing in Wasm says when a thread reads memory. Hence the one thing to guarantee:
#
#   Invariant: no guest instruction runs in a group that has yet to make a committed operation, nor between
#   the moment all groups have come to a barrier and the commit.
#
# Then it does not matter when a pointer is read: if it was written after the commit (and the linker gives it to
# nobody before), the thread that executes the load has made the operation already. (Guest instructions that an operation
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
#    A replay that fails ends that group, alone; nobody waits for what a replay needs. What a replay may still be
#    using is given back after it has ended (`after_replays`), by the thread that ends it;
#  * everything that can fail in an operation has happened before, privately, in the instigator. While it waits at
#    the barrier it may still give up (interrupt, Ctrl-C, time-out): the gate opens as it was, nothing was committed.
#    The append is the point of no return: whatever is raised in the instigator after it is delivered later;
#  * a group that dies is forgotten (`leave`): it is taken off the list that the barrier waits for, like one that arrived;
#  * a replay can be interrupted, and ended, at the safe points of the guest code that it runs. Its group is then half way
#    through an operation, so it leaves;
#  * the log holds an operation while some group has yet to make it, or a new one would have to; see `log.py`. A replica is
#    given its next operation, and marked as replaying it, in one step under the lock: a commit that replaces the
#    operation comes before (the replica never sees it) or after (the replica counts as having made it).
#
# Why the common path needs no lock, and what it needs without a GIL: see `Replica` and `fences.py`.
#
# What we do not do, and why
# ==========================
#  * Apply an operation to all groups from the instigator's thread: stores are bound to their threads.
#  * Wait until all have applied it (as Wasmer does): the slowest thread, one that sleeps say, would hold up the link,
#    and one that dies in its replay would hang everybody. No guest can tell the difference.
#  * Wait, in an unload, until no follower is instantiating the module: a start function may compute for ever.
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
#  * An exception that a handler of another signal than SIGINT raises, in the middle of undoing what an earlier one cut off;
#    see `uninterrupted.py`. Handlers should call `Replica.interrupt_with`, which takes no lock, instead of raising.

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from threads import recording
from threads.errors import BarrierTimeoutError, ProtocolError, ReplicaClosedError
from threads.fences import pass_heavy
from threads.instigation import Instigation
from threads.log import OperationLog
from threads.nudger import FIRST_REPEAT_NS, LAST_REPEAT_NS, Nudger
from threads.platform import SYSTEM, LockLike, Platform
from threads.process import CreatingProcess
from threads.replays import Replays
from threads.replica import DETACHED, GUEST, HOST, STALE, Replica, Versioned
from threads.turn import Turn
from threads.uninterrupted import unwound_whole
from threads.waiter import Waiter

if TYPE_CHECKING:
    from threads.statistics import RendezvousStatistics

Op = TypeVar("Op")

__all__ = ["CLOSED", "DETACHED", "ENDED", "GUEST", "HOST", "STALE", "Rendezvous", "Replica"]

LATENCY_SAMPLES: Final = 1024
"""Barriers whose duration is kept: enough for percentiles, and bounded however long a program links."""

# What `Rendezvous.version` holds instead of a number. Both negative, so that leaving guest code is one comparison,
# and both unlike any replica's `applied`, so that entering it is one too.
CLOSED: Final = -1  # a barrier is under way
ENDED: Final = -2  # the program has ended

_NOTHING: Final[Mapping[int, Any]] = MappingProxyType({})


class Rendezvous(Generic[Op]):
    """Where all replicas of one program meet.

    Args:
      interrupt: makes every thread in guest code call `Replica.safe_point` soon (bumps the engine's epoch). Called
        with no lock held, from any thread, also when nobody needs it. May get lost: it is repeated until noticed.
      platform: where locks, threads and time come from; for tests.

    Attributes:
      version: number of committed operations, or CLOSED, or ENDED. Written under the lock; read without.
      log: the operations.
      replays, process: for Replica and Instigation.
      nudger: interrupts the engine until whoever has to notice something has; others may register what else there is.
    """

    __slots__ = (
        "__weakref__", "_awaited", "_barriers", "_ended", "_gate", "_instigator", "_interrupt", "_interrupts", "_latency",
        "_lock", "_platform", "_replicas", "_turn", "log", "nudger", "process", "replays", "version",
    )  # fmt: skip

    def __init__(self, interrupt: Callable[[], None], *, platform: Platform = SYSTEM) -> None:
        self.log: OperationLog[Op] = OperationLog()
        self.version: int = 0
        self._interrupt = interrupt
        self._platform = platform
        self.process = CreatingProcess(self, CLOSED)
        # Guards the fields below. Innermost: held for a few steps; nothing is waited for or called under it.
        self._lock: LockLike = platform.lock()
        self._replicas: dict[Replica[Op], None] = {}  # members, in the order they joined
        # Members that the barrier under way still waits for. Invariant: empty unless version is CLOSED.
        self._awaited: dict[Replica[Op], None] = {}
        self._instigator: Waiter | None = None  # waits for _awaited to become empty
        # Waiters for the gate to open; each removes itself.
        self._gate: dict[Waiter, None] = {}
        self._ended: BaseException | None = None
        self._barriers = 0
        self.replays: Replays[Op] = Replays(self, self._lock)
        self._latency: deque[float] = deque(maxlen=LATENCY_SAMPLES)
        # Not guarded, since signal handlers interrupt: of two threads that do so in one moment, one may go uncounted.
        self._interrupts = 0
        # The link lock, outermost. A thread that waits for it is HOST or DETACHED, so no barrier ever waits for that thread.
        self._turn = Turn(platform)
        self.nudger = Nudger(platform, self._call_interrupt, self._unheard)

    def reader(self) -> Versioned:
        """Return what reads `version` for one thread: this rendezvous, or a view of its own; see `ParallelRendezvous`."""
        return self

    @property
    def committed(self) -> int:
        """Number of committed operations; unlike `version` also while a barrier is under way."""
        return self.log.committed

    def join(self, replica: Replica[Op], applied: int = 0) -> None:
        """Make a replica a member. It catches up before it enters guest code. From any thread.

        Args:
          replica: a new one; it is DETACHED.
          applied: operations its group contains already, 0 to `committed`; if not 0, at least `log.oldest_start`.

        Raises:
          ProtocolError: it has joined before, or `applied` is out of range.
          ForkedProcessError: in a forked child.
          BaseException: what the program ended with.
        """
        self.process.check()
        with self._lock:
            if self._ended is not None:
                raise self._ended.with_traceback(None)
            if replica.joined_before:
                raise ProtocolError(f"{replica.name!r} joins a second time")
            if not (applied == 0 or self.log.oldest_start <= applied <= self.log.committed):
                # With less than `oldest_start` the group may have made something whose undoing is dropped.
                message = (
                    f"{replica.name!r} joins with {applied} operations, of {self.log.committed}; the log can"
                )
                raise ProtocolError(f"{message} continue from 0, or from {self.log.oldest_start} on")
            self._replicas[replica] = None
            replica.joined(self, applied)

    def leave(self, replica: Replica[Op], reason: str = "it has left") -> None:
        """Forget a replica, in whatever state it is; a barrier that waits for it continues. Idempotent; any thread.

        Its thread must not run guest code again. If it is alive, its next safe point, wait for the gate or entry raises
        ReplicaClosedError. In a forked child this does nothing.

        Args:
          replica: the one to forget.
          reason: what that error says.
        """
        if not self.process.is_this_one():
            return
        with self._lock:
            if replica not in self._replicas:
                return
            self.log.forgive(replica)
            del self._replicas[replica]
            replica.left(reason)
            instigator = self._arrived_locked(replica)
        if instigator is not None:
            instigator.unpark()
        replica.waiter.unpark()

    def instigate(self, replica: Replica[Op] | None, *, current: bool = True) -> Instigation[Op]:
        """Take the link lock, for a `with`; inside, the linker's state is the caller's to change.

        The caller waits for its turn in arrival order, in state HOST or DETACHED, and has applied every committed
        operation when the body starts, if it wants to. A body that raises has committed what it committed, and nothing else.

        Args:
          replica: the calling thread's; None for a thread without an instance group.
          current: whether to apply what is committed; needed for a commit of what the caller's group has made.

        Raises:
          ProtocolError: on entry: the thread holds the link lock already, or is in guest code.
          ReplayError, ReplicaClosedError: on entry, as `Replica.synchronize`.
          ForkedProcessError: on entry: in a forked child.
          BaseException: on entry: what the thread was interrupted with, or the program ended with.
        """
        return Instigation(self, replica, current=current)

    def commit(
        self,
        replica: Replica[Op] | None,
        operation: Op,
        *,
        timeout: float | None = None,
        replaces: Mapping[int, Op | None] = _NOTHING,
        only_after: int | None = None,
        leaves: Op | None = None,
    ) -> int:
        """Append an operation while no group executes guest code. Only inside `instigate`.

        The group of `replica` has made it already. The others make it before their next guest instruction, unawaited.

        Args:
          replica: as given to `instigate`, or None: the group makes it later. If it is in state GUEST it is HOST from here on.
          operation: what `apply` of every other replica will be given.
          timeout: seconds to wait for threads in guest code; None: no limit.
          replaces: earlier operations that this one makes obsolete, by number: dropped (None) or replaced, in the same
            step as the append, for every group that has not begun them. An operation that is gone stays so.
          only_after: number of the earliest operation whose effect this one undoes, if it undoes something; `replaces`
            must drop or replace that one and all later ones of the same effect. Then only groups that have come to that number
            make this one, and a new group makes none of them. It may be given to a group that came to it while the
            undone operations replaced each other, and has made none of them; it must be harmless there. None: for every group.
          leaves: with `only_after`: what other groups make in its place, until a later commit replaces it; None for nothing.

        Returns:
          The operation's number, from 1. An exception after the commit (Ctrl-C) is not lost: it interrupts the thread.

        Raises:
          BarrierTimeoutError: some replicas did not come; or, as below, nothing was committed: roll back.
          ProtocolError: called outside `instigate`, or a number is not that of an earlier operation.
          BaseException: what the thread was interrupted with while it waited, what the program ended with, or what
            `interrupt` raised.
        """
        waiter = self._turn.holder
        if (
            waiter is None
            or not self._turn.held_by_caller()
            or (replica is not None and replica.waiter is not waiter)
        ):
            raise ProtocolError(
                "commit is called by a thread that does not hold the link lock for this replica"
            )
        if replica is not None and replica.closed is not None:
            raise ReplicaClosedError(replica.name, replica.closed)
        before = self.log.committed
        if replica is not None and replica.sequence != before:
            raise ProtocolError(f"{replica.name!r} commits before it has made what is committed")
        for number in replaces if only_after is None else (only_after, *replaces):
            if not 1 <= number <= before:
                raise ProtocolError(f"an operation refers to operation {number}, of {before}")
        started = self._platform.monotonic_ns()
        try:
            if replica is not None and replica.state == GUEST:
                replica.state = HOST
            awaited = self._close_gate(waiter)
            self._gather(waiter, timeout)
            with self._lock:
                if self._ended is not None:
                    raise self._ended.with_traceback(None)
                owed_to = None if only_after is None else self._begun_locked(only_after, replica)
                self.log.append(operation, replaces=replaces, owed_to=owed_to, leaves=leaves)
            self._open_gate(replica)
            with self._lock:
                self._latency.append((self._platform.monotonic_ns() - started) / 1e9)
            recording.barrier(started, before + 1, operation, awaited)
            return before + 1
        except BaseException as error:
            # Ctrl-C is held back in here, up to the end of the handler: see `Instigation`.
            self._open_gate(replica)
            if self.log.committed == before:
                raise
            waiter.interrupt(error)
            return before + 1

    def after_replays(self, action: Callable[[], None]) -> None:
        """Call `action` once no replica is in the middle of replaying an operation that it began before this call.

        For giving back what the operations that have just been replaced would use: a commit that replaced them comes first.

        Args:
          action: called once, with no lock of this package held: in this thread, now, if no replay is under way; otherwise in
            the thread that ends the last of them, however that ends. It should be short, wait for nothing, and rely on no lock
            of the caller's. Here it may raise. There an `Exception` of its goes to `threading.excepthook`, since the thread has
            nothing to do with it; any other exception is the thread's own (Ctrl-C) and is raised in it.
        """
        self.process.check()
        self.replays.after(action)

    def shutdown(self, exception: BaseException) -> bool:
        """End the program: every thread gets `exception` at its next safe point, entry or wait, also inside a replay.

        For any thread, in any state, but not for a signal handler: it takes the lock.

        Whoever waits for the gate, the link lock, a barrier or a futex wakes and raises. A barrier under way commits nothing.
        The one instance is raised in all threads, so it should be plain data.

        Returns:
          Whether this call ended it; the first one counts. False in a forked child, where there is nobody to end.
        """
        if not self.process.is_this_one():
            return False
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
        """Return a snapshot. From any thread; raises ForkedProcessError in a forked child."""
        from threads.statistics import RendezvousStatistics  # noqa: PLC0415  `dataclasses` is slow to import

        self.process.check()
        with self._lock:
            states = [replica.state for replica in self._replicas]
            return RendezvousStatistics(
                detached=states.count(DETACHED),
                host=states.count(HOST),
                guest=states.count(GUEST),
                committed=self.log.committed,
                log_entries=len(self.log),
                barriers=self._barriers,
                catch_ups=self.replays.catch_ups,
                replay_failures=self.replays.failures,
                interrupts=self._interrupts,
                barrier_seconds=tuple(self._latency),
            )

    # The barrier, from the instigator's side.

    def _close_gate(self, waiter: Waiter) -> list[Replica[Op]]:
        with self._lock:
            if self._ended is not None:
                raise self._ended.with_traceback(None)
            self._barriers += 1
            self._instigator = waiter
            # First the gate, then the states: see `Replica`. A thread seen as GUEST either will come to a safe
            # point, or is just finding the gate closed; both end in `_arrived_locked`.
            self.version = CLOSED
            pass_heavy(self._replicas)
            # A call, not a comprehension: CPython 3.12 and 3.13 compile the loop of an inlined one so that a signal
            # handler's exception at its jump back skips the handlers around it, and would leave the lock held.
            self._awaited = dict.fromkeys(filter(_in_guest, self._replicas))
            return list(self._awaited)

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
                self._platform.hurry(self)
                self._call_interrupt()
                repeat_at = now + pause
                pause = min(2 * pause, LAST_REPEAT_NS)
            waiter.park((repeat_at if deadline is None else min(repeat_at, deadline)) - now)

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
        self._platform.relax(self)
        for waiter in waiting:
            waiter.unpark()

    def _begun_locked(self, sequence: int, instigator: Replica[Op] | None) -> list[Replica[Op]]:
        # Members that have made operation `sequence`, or are making it. No comprehension: see `_close_gate`.
        return list(filter(lambda other: other is not instigator and other.begun >= sequence, self._replicas))

    # The barrier, from a follower's side; called by Replica.

    def arrived(self, replica: Replica[Op]) -> None:
        """Take a replica that is not in guest code off the list the barrier waits for; in a forked child nothing waits."""
        if not self.process.is_this_one():
            return
        with self._lock:
            instigator = self._arrived_locked(replica)
        if instigator is not None:
            instigator.unpark()

    def _arrived_locked(self, replica: Replica[Op]) -> Waiter | None:
        # Returns the waiter to wake, outside the lock. Late calls, for a barrier that is over, find nothing to do: it is
        # true at any time that this replica is not in guest code, because only its own thread could go there.
        if replica in self._awaited:
            del self._awaited[replica]
            recording.moment("barrier", "arrives", name=replica.name, operation=self.log.committed + 1)
            if not self._awaited:
                return self._instigator
        return None

    def pass_gate(self, replica: Replica[Op]) -> None:
        """Wait, in state HOST, until no barrier is under way.

        Raises:
          BaseException: as `Replica.enter_guest`.
        """
        self.process.check()
        if self._passes(replica, waits=False):
            return
        waiter = replica.waiter
        with unwound_whole(), recording.span("barrier", "held at the gate"):
            try:
                while not self._passes(replica, waits=True):
                    waiter.park()
            except BaseException:
                with self._lock:
                    self._gate.pop(waiter, None)
                raise

    def _passes(self, replica: Replica[Op], *, waits: bool) -> bool:
        # If it does not, and `waits`, it is in `_gate`, so that the opening wakes it.
        waiter = replica.waiter
        with self._lock:
            instigator = self._arrived_locked(replica)
            closed = replica.closed
            ended = self._ended
            if self.version == CLOSED and closed is None and ended is None and not waiter.interrupted:
                passes = False
                if waits:
                    self._gate[waiter] = None
            else:
                passes = True
                self._gate.pop(waiter, None)
        if instigator is not None:
            instigator.unpark()
        if ended is not None:
            raise ended.with_traceback(None)
        if closed is not None:
            raise ReplicaClosedError(replica.name, closed)
        waiter.raise_if_interrupted()
        return passes

    # Interrupting threads in guest code.

    def nudge(self) -> None:
        """Interrupt guest code, until every thread that has to notice something has noticed."""
        self.nudger.nudge()

    def _call_interrupt(self) -> None:
        self._interrupts += 1
        self._interrupt()

    def _unheard(self) -> bool:
        # No lock: signal handlers come here. The copy is atomic; a state read too early is read again later.
        version = self.version
        for replica in self._replicas.copy():
            if replica.state == GUEST and replica.applied != version:
                return True
            # It is HOST, so that no barrier waits for it, but may be in the guest code of an operation.
            if replica.replaying and replica.waiter.interrupted:
                return True
        return False


def _in_guest(replica: Replica[Op]) -> bool:
    return replica.state == GUEST
