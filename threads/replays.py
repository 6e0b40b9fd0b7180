"""Which replica replays what, and what happens when it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from threads.errors import ReplicaClosedError
from threads.grace import GracePeriods
from threads.platform import LockLike

if TYPE_CHECKING:
    from threads.rendezvous import Rendezvous
    from threads.replica import Replica

Op = TypeVar("Op")

__all__ = ["Replays"]


class Replays(Generic[Op]):
    """The part of a rendezvous that gives replicas their operations; called by Replica, in the replica's thread.

    Attributes:
      catch_ups: times a replica replayed one or more operations. Guarded by the rendezvous' lock.
      failures: replicas that ended because a replay failed. Guarded by it too.
    """

    __slots__ = ("_grace", "_lock", "_rendezvous", "catch_ups", "failures")

    def __init__(self, rendezvous: Rendezvous[Op], lock: LockLike) -> None:
        self._rendezvous = rendezvous
        self._lock = lock  # the rendezvous' own
        self._grace = GracePeriods()  # guarded by: _lock
        self.catch_ups = 0
        self.failures = 0

    def begin(self, replica: Replica[Op], *, first: bool) -> tuple[int, Op] | None:
        """Give a replica its next operation, and mark it as replaying that one, in one step; None if nothing is left.

        `first`: of those that it replays in this run.

        One step with respect to every commit: one that replaces the operation either comes before, and this replica
        never sees it, or comes after, and finds the replica replaying.

        Raises:
          ReplicaClosedError: it is a member no longer.
        """
        log = self._rendezvous.log
        with self._lock:
            if replica.closed is not None:
                raise ReplicaClosedError(replica.name, replica.closed)
            following = log.next(replica, replica.sequence)
            if following is None:
                replica.sequence = log.committed  # the rest has been dropped, or was never for this one
            else:
                self.catch_ups += first
                self._grace.begin(replica)
                replica.replaying = following[0]
            return following

    def end(self, replica: Replica[Op], *, made: bool) -> None:
        """Note that a replica's thread is out of its replay, and whether the operation was made. Idempotent.

        Raises:
          BaseException: what an action of `Rendezvous.after_replays` raised that is meant for the thread.
        """
        with self._lock:
            sequence = replica.replaying
            if sequence:
                if made:
                    replica.sequence = sequence
                    self._rendezvous.log.paid(replica, sequence)
                replica.replaying = 0
            self._grace.end(replica)
        self._grace.perform_due()

    def failed(self, replica: Replica[Op]) -> None:
        """Forget a replica whose replay failed; `end` must follow."""
        with self._lock:
            self.failures += 1
        self._rendezvous.leave(replica, f"its replay of operation {replica.replaying} failed")

    def after(self, action: Callable[[], None]) -> None:
        """Perform an action as `Rendezvous.after_replays` says."""
        with self._lock:
            postponed = self._grace.add(action)
        if not postponed:
            action()
