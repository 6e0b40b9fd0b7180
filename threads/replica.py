"""One instance group's side of the rendezvous: entering and leaving guest code.

Read `rendezvous.py` first: it states the problem and the invariant. This file is the part of the protocol that runs
on every host call, so its common path takes no lock and makes two attribute accesses.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, Protocol, TypeVar, cast

from threads import recording
from threads.errors import InGuestCodeError, ReplayError, ReplicaClosedError
from threads.platform import SYSTEM, Platform
from threads.uninterrupted import unwound_whole
from threads.waiter import Waiter

if TYPE_CHECKING:
    from threads.rendezvous import Rendezvous

Op = TypeVar("Op")

__all__ = ["DETACHED", "GUEST", "HOST", "REPLAY_PATIENCE_NS", "STALE", "STATE_NAMES", "Replica", "Versioned"]

# A replica's states. Plain integers: they are written on every host call, and an enumeration's member costs
# three times as much to load.
DETACHED: Final = 0  # its thread is outside guest code, doing what Python threads do
HOST: Final = 1  # below guest code, in a host call (or replaying); the barrier never waits for it
GUEST: Final = 2  # may be executing guest instructions
STATE_NAMES: Final = ("detached", "host", "guest")

REPLAY_PATIENCE_NS: Final = (
    20_000_000  # how long an interrupt waits for a replay to end before it ends the group
)
_LEAST_NOTICES: Final = 4  # and how often the replay comes by: a nudge comes after 2, 4, 8 and 16 ms

# What `Replica.applied` holds when the replica must not enter guest code unasked, whatever its number is: it
# has not joined, has left, or an interrupt is pending. Differs from every `Rendezvous.version`.
STALE: Final = -3


class Versioned(Protocol):
    """What reads the number of committed operations, or CLOSED, or ENDED."""

    @property
    def version(self) -> int:
        """The number."""
        ...


class Replica(Generic[Op]):
    """What one instance group has applied of the log, and whether its thread may be in guest code.

    Args:
      name: for reports and errors.
      apply: called as `apply(sequence, operation)` in the group's own thread, with no lock held, for every operation
        in order that matters to this group. If it raises, the group ends: the replica leaves. It may run guest code of
        its own (a start function, `__wasm_init_tls`), which then belongs to the operation: its host calls and safe points
        replay nothing, but they raise what the program ended with, and what the thread is interrupted with if the
        operation does not end within `REPLAY_PATIENCE_NS` of it, though the thread runs.
      platform: where locks and time come from; for tests.

    Attributes:
      state: DETACHED, HOST or GUEST. Written by the replica's thread alone.
      applied: equal to `Rendezvous.version` exactly when the replica may be in guest code; otherwise the number
        it has applied, or STALE. For comparing; `sequence` is the number.
      sequence: every operation up to this number it has made, or need not make. Written by its thread, under the lock
        when others may compare it with the log.
      replaying: number of the operation that its thread is inside `apply` for, 0 if none. Written under the lock.
      owed: see `log.Debtor`. Guarded by the lock.
      waiter: what the replica's thread must use for every wait, so that it can be interrupted.
      gate: what reads `Rendezvous.version` for the replica's thread.
      fence: the waiter's: between what this thread writes and reads, and what others do.

    The common paths may be written out at the call site; these are the exact forms, and their order matters:

        replica.state = GUEST                          # enter_guest(), exit_host()
        if replica.applied != replica.gate.version:
            replica.catch_up()                         # if it raises, state is HOST: guest code must not run

        replica.state = HOST                           # enter_host(), leave_guest(HOST); DETACHED likewise
        if replica.gate.version < 0:
            replica.arrive()

    Why two plain accesses suffice (Dekker's argument). The thread writes `state`, then reads `version`; an instigator
    writes `version = CLOSED`, then reads every `state`. If all four happen in one order that all threads agree on,
    at least one of the two reads sees the other's write: either the thread sees the closed gate and goes the slow
    way, or the instigator sees GUEST and waits for it. Leaving is the same argument with the roles of "see GUEST"
    and "wake the instigator". The one order is `fence`'s: its light side belongs between the thread's store and its
    load, and whoever stores what these paths read (`version`, `applied`) passes the heavy side before it reads a
    state. The light side is left out above because it does nothing, but on platforms whose `light_is_free` is
    false: there a `Replica` is a `FencedReplica`, whose `state` passes it with each store.

    Concurrency:
      all methods are for the replica's thread, except where they say otherwise. The thread may change while
      the state is DETACHED.
    """

    __slots__ = (
        "_apply",
        "_closed",
        "_delivered",
        "_notices",
        "_patient_until",
        "_rendezvous",
        "applied",
        "fence",
        "gate",
        "name",
        "owed",
        "replaying",
        "sequence",
        "state",
        "waiter",
    )

    def __new__(
        cls, _name: str, _apply: Callable[[int, Op], None], *, platform: Platform = SYSTEM
    ) -> Replica[Op]:
        """Return a new one, of the class that the platform's fences need."""
        return object.__new__(cls if platform.light_is_free or cls is not Replica else FencedReplica)

    def __init__(self, name: str, apply: Callable[[int, Op], None], *, platform: Platform = SYSTEM) -> None:
        self.name = name
        self.waiter = Waiter(name, platform)
        self.fence = self.waiter.fence
        self.state: int = DETACHED
        self.applied: int = STALE
        self.sequence = 0
        self.replaying = 0
        self.owed: OrderedDict[int, None] = OrderedDict()
        self.waiter.alarm = self._alarm
        self._apply = apply
        # Of the replay under way: what was raised inside it, and until when it holds an interrupt back.
        self._delivered: BaseException | None = None
        self._patient_until: int | None = None
        self._notices = 0
        self._rendezvous: Rendezvous[Op] = _NOWHERE  # written once, by join
        self.gate: Versioned = _NOWHERE
        self._closed: str | None = "it has not joined"  # guarded by: Rendezvous._lock

    def __repr__(self) -> str:
        return f"<Replica {self.name!r} {STATE_NAMES[self.state]} at {self.sequence}>"

    @property
    def closed(self) -> str | None:
        """Why the replica may not enter guest code, or None while it is a member."""
        return self._closed

    @property
    def joined_before(self) -> bool:
        """Whether the replica is or was a member of a rendezvous."""
        return self._rendezvous is not _NOWHERE

    @property
    def begun(self) -> int:
        """Number of the last operation that it has made or is making; under the rendezvous' lock."""
        return self.replaying or self.sequence

    def enter_guest(self) -> int:
        """Enter guest code, up to date; call it right before a call into Wasm.

        Returns:
          The state it came from, for `leave_guest`; guest code, host call and guest code nest to any depth.

        Raises:
          ReplayError: a missing operation could not be replayed; the replica has left.
          ReplicaClosedError: it is not a member.
          InGuestCodeError: it is in guest code already: a signal handler, or a host call did not call `enter_host`.
          BaseException: what the thread was interrupted with, or the program ended with.
          In all cases the state is as before, and guest code must not be entered.
        """
        previous = self.state
        if previous == GUEST:
            message = f"{self.name!r} enters guest code from guest code"
            raise InGuestCodeError(message)
        self.state = GUEST
        if self.applied != self.gate.version:
            try:
                self.catch_up()
            except BaseException:
                self.state = previous
                raise
        return previous

    def leave_guest(self, to: int = DETACHED) -> None:
        """Leave guest code; call it, in a `finally`, right after a call into Wasm. Never raises.

        Args:
          to: what `enter_guest` returned.
        """
        self.state = to
        if self.gate.version < 0:
            self.arrive()

    def enter_host(self) -> None:
        """Begin a host call; from here to `exit_host` the thread may take as long as it likes. Never raises."""
        self.state = HOST
        if self.gate.version < 0:
            self.arrive()

    def exit_host(self) -> None:
        """End a host call that returns to guest code (one that raises does not call it: `leave_guest` follows).

        Raises:
          BaseException: as `enter_guest`; the state is then HOST and the host call must raise, not return.
        """
        self.state = GUEST
        if self.applied != self.gate.version:
            self.catch_up()

    def safe_point(self) -> None:
        """Wait for a barrier under way and apply what it committed; for the engine's callback, in guest code.

        Raises:
          BaseException: as `exit_host`; guest code must be unwound.
        """
        if self.applied != self.gate.version:
            self.catch_up()

    def synchronize(self) -> None:
        """Apply what is committed without entering guest code; for a host call that looks into its own group.

        Raises:
          ReplayError, ReplicaClosedError: as `enter_guest`.
          InGuestCodeError: called in state GUEST.
          BaseException: if something is missing, what the thread was interrupted with, or the program ended with.
        """
        if self.replaying:
            return
        if self._closed is not None:
            raise ReplicaClosedError(self.name, self._closed)
        if self.state == GUEST:
            message = f"{self.name!r} synchronizes in guest code; that is what safe_point does"
            raise InGuestCodeError(message)
        self._replay()

    def interrupt_with(self, exception: BaseException) -> None:
        """Raise `exception` in the replica's thread, once: at its next safe point, host call exit, entry or wait.

        For any thread, also for a signal handler. A waiting thread wakes, a computing one is interrupted.
        """
        self.waiter.interrupt(exception)

    def withdraw(self, exception: BaseException) -> bool:
        """Take back an interrupt that came too late; returns whether it was still undelivered. For any thread."""
        return self.waiter.withdraw(exception)

    def _alarm(self) -> None:
        # Runs in the interrupting thread, after the exception was posted and the fence passed. No lock: it may be a signal
        # handler's. `settle` writes the number first and looks for posted exceptions afterwards, so one of the two always
        # ends with STALE; and the thread writes GUEST before it reads `applied`, so one of the two sees the other.
        # A replay is the same: the thread writes `replaying` first and looks for posted exceptions afterwards.
        self.applied = STALE
        self.fence.heavy()
        if self.state == GUEST or self.replaying:
            self._rendezvous.nudge()

    # The slow paths.

    def arrive(self) -> None:
        """Report to a waiting barrier that this thread is no longer in guest code; state is not GUEST."""
        self._rendezvous.arrived(self)

    def catch_up(self) -> None:
        """Wait for the gate, apply what is missing, and enter guest code: afterwards state is GUEST.

        Raises:
          BaseException: as `exit_host`; the state is then HOST.
        """
        self.state = HOST
        if self.replaying:
            # Guest code that belongs to the operation being replayed. It stays HOST: no barrier waits for it,
            # and it runs nothing of the program that could see a difference.
            self._stop_if_interrupted()
            return
        rendezvous = self._rendezvous
        while True:
            rendezvous.pass_gate(self)
            self._replay()
            self.state = GUEST
            if self.applied == self.gate.version:
                return
            self.state = HOST

    def settle(self) -> None:
        """Make `applied` true again; the order of the two steps matters, see `_alarm`."""
        self.applied = self.sequence
        self.fence.light()
        if self._closed is not None or self.waiter.interrupted:
            self.applied = STALE

    def _stop_if_interrupted(self) -> None:
        # In a replay. Whatever is raised here ends the operation half way, and the group with it. So an interrupt waits
        # first: nearly every replay ends within a millisecond, and then the interrupt costs the group nothing. The
        # thread counts as unaware until then, so it is nudged and comes here again. The time alone does not tell that the
        # replay takes long: a thread that the system did not run meanwhile has come here once or twice.
        waiter = self.waiter
        exception = waiter.ended
        if exception is None and self._closed is not None:
            exception = ReplicaClosedError(self.name, self._closed)
        if exception is None and waiter.interrupted:
            now = waiter.platform.monotonic_ns()
            if self._patient_until is None:
                self._patient_until = now + REPLAY_PATIENCE_NS
            self._notices += 1
            if now >= self._patient_until and self._notices >= _LEAST_NOTICES:
                exception = waiter.take()
        if exception is not None:
            self._delivered = exception
            raise exception

    def _replay(self) -> None:
        if self.sequence < self._rendezvous.committed:
            with unwound_whole():
                self._replay_all()
        self.settle()

    def _replay_all(self) -> None:
        # Runs until nothing is missing; what is committed meanwhile is replayed in the same run.
        rendezvous = self._rendezvous
        replays = rendezvous.replays
        state = self.state
        first = True
        while self.sequence < rendezvous.committed:
            self._delivered = self._patient_until = None
            self._notices = 0
            begun = made = False
            try:
                following = replays.begin(self, first=first)
                if following is None:
                    return
                first = False
                # Here, because from now on an interrupt finds `replaying` set and nudges; and nothing is half done yet.
                self.fence.light()
                self.waiter.raise_if_interrupted()
                begun = True
                with recording.span("barrier", "replay", type(following[1]).__name__, operation=following[0]):
                    self._apply(*following)
                made = True
                replays.end(self, made=True)
            except BaseException as error:
                if begun and not made:
                    self._fail(error)
                replays.end(self, made=made)
                raise
            finally:
                self.state = state  # host calls of the operation's own guest code leave it HOST

    def _fail(self, cause: BaseException) -> NoReturn:
        # Half applied: unlike any other group from here on. It ends alone, and the barrier forgets it.
        sequence = self.replaying
        replays = self._rendezvous.replays
        replays.failed(self)
        replays.end(self, made=False)
        if self._delivered is not None:
            # That is why it failed, whatever `apply` made of it; and an interrupt must not get lost.
            raise self._delivered
        if isinstance(cause, Exception):
            raise ReplayError(self.name, sequence, cause) from cause
        raise cause

    def joined(self, rendezvous: Rendezvous[Op], sequence: int) -> None:
        """Become a member; called by `Rendezvous.join`, under its lock."""
        self._rendezvous = rendezvous
        self.gate = rendezvous.reader()
        self._closed = None
        self.sequence = sequence
        self.settle()

    def left(self, reason: str) -> None:
        """Be a member no longer; called by `Rendezvous.leave`, under its lock, from any thread.

        The order matters, see `settle`.
        """
        self._closed = reason
        self.fence.heavy()
        self.applied = STALE


class FencedReplica(Replica[Op]):
    """A replica for platforms where the light side of a fence is not free: each store to `state` passes it."""

    __slots__ = ()

    # The slot is looked up in the class each time: `threads.testing.store_buffers` puts another one there during a run, and
    # with one that was kept from before, the model would not see that such a store is late.

    @property
    def state(self) -> int:
        """DETACHED, HOST or GUEST."""
        state: int = vars(Replica)["state"].__get__(self)
        return state

    @state.setter
    def state(self, to: int) -> None:
        vars(Replica)["state"].__set__(self, to)
        self.fence.light()


class _Nowhere:
    """What a replica belongs to before it joins: nothing waits for it and its gate never opens."""

    version = 0
    committed = 0

    def arrived(self, replica: Replica[Any]) -> None:
        """Nobody waits."""

    def nudge(self) -> None:
        """Nobody runs."""

    def pass_gate(self, replica: Replica[Any]) -> None:
        raise ReplicaClosedError(replica.name, replica.closed or "it has not joined")


_NOWHERE: Final = cast("Rendezvous[Any]", _Nowhere())
