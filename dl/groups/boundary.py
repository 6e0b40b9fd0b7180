"""The border between guest and host code, crossed on every host call."""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident

from dl.program.operations import DlOperation
from threads import FREE_THREADED, GUEST, HOST, ParallelRendezvous, Rendezvous, Replica, Versioned


class GuestBoundary:
    """Which replica each thread runs, and the two steps of every host call; see `threads.Replica` for why they suffice.

    Concurrency:
        `replicas` is written by `dl.groups.registry` alone, under its lock, and only while the thread whose entry changes is
        outside guest code; a thread reads its own entry without a lock.

    Attributes:
        replicas: the replica of each thread's group, by the thread's identity.
    """

    __slots__ = ("_rendezvous", "replicas")

    def __init__(self, rendezvous: Rendezvous[DlOperation]) -> None:
        self._rendezvous = rendezvous
        self.replicas: dict[int, Replica[DlOperation]] = {}

    def enter_host(self) -> Replica[DlOperation]:
        """Come from guest code into a host function."""
        replica = self.replicas[get_ident()]
        replica.state = HOST
        if self._rendezvous.version < 0:
            replica.arrive()
        return replica

    def exit_host(self, replica: Replica[DlOperation]) -> None:
        """Go back to guest code, up to date.

        Raises:
            BaseException: what the guest must be unwound with.
        """
        replica.state = GUEST
        if replica.applied != self._rendezvous.version:
            replica.catch_up()


class ParallelBoundary(GuestBoundary):
    """A boundary for threads that run Python in parallel: each store has one of its own, which no other thread uses."""

    __slots__ = ("_parallel",)

    def __init__(self, rendezvous: ParallelRendezvous[DlOperation]) -> None:
        super().__init__(rendezvous)
        self._parallel = rendezvous

    def own(self) -> StoreBoundary:
        """Return the boundary of a store that is being made."""
        return StoreBoundary(self, self._parallel.reader())


class StoreBoundary:
    """The two steps of every host call in one store: those of `GuestBoundary`, on objects that only the store's thread uses.

    Args:
        boundary: knows the group of the thread that calls first; a store is one group's to its end.
        gate: the view of the rendezvous' number.
    """

    __slots__ = ("_boundary", "_gate", "_replica")

    def __init__(self, boundary: GuestBoundary, gate: Versioned) -> None:
        self._boundary = boundary
        self._gate = gate
        self._replica: Replica[DlOperation] | None = None

    def enter_host(self) -> Replica[DlOperation]:
        """Come from guest code into a host function."""
        replica = self._replica
        if replica is None:
            replica = self._replica = self._boundary.replicas[get_ident()]
        replica.state = HOST
        if self._gate.version < 0:
            replica.arrive()
        return replica

    def exit_host(self, replica: Replica[DlOperation]) -> None:
        """Go back to guest code, up to date.

        Raises:
            BaseException: what the guest must be unwound with.
        """
        replica.state = GUEST
        if replica.applied != self._gate.version:
            replica.catch_up()


def new_boundary(interrupt: Callable[[], None]) -> tuple[Rendezvous[DlOperation], GuestBoundary]:
    """Return a program's rendezvous and its boundary, as the interpreter's threads need them.

    Args:
        interrupt: the engine's; see `threads.Rendezvous`.
    """
    if FREE_THREADED:
        parallel: ParallelRendezvous[DlOperation] = ParallelRendezvous(interrupt)
        return parallel, ParallelBoundary(parallel)
    rendezvous: Rendezvous[DlOperation] = Rendezvous(interrupt)
    return rendezvous, GuestBoundary(rendezvous)
