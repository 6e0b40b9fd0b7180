"""The border between guest and host code, crossed on every host call."""

from __future__ import annotations

from threading import get_ident

from dl.program.operations import DlOperation
from threads import GUEST, HOST, Rendezvous, Replica


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
