"""One instigator's hold of the link lock."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

from threads import recording
from threads.errors import InGuestCodeError, ProtocolError, ReplicaClosedError
from threads.replica import GUEST, Replica
from threads.uninterrupted import protect, unwound_whole
from threads.waiter import Waiter

if TYPE_CHECKING:
    from threads.rendezvous import Rendezvous

Op = TypeVar("Op")

__all__ = ["Instigation"]


class Instigation(Generic[Op]):
    """The link lock, held from `__enter__` to `__exit__`; see `Rendezvous.instigate`.

    Meanwhile Ctrl-C in the main thread is held back while an exception is being handled: undoing is not cut short.
    """

    __slots__ = ("_began", "_current", "_guard", "_rendezvous", "_replica", "_waiter")

    def __init__(self, rendezvous: Rendezvous[Op], replica: Replica[Op] | None, *, current: bool) -> None:
        self._rendezvous = rendezvous
        self._replica = replica
        self._current = current
        self._guard = unwound_whole()
        self._began = 0  # when it was taken, for who records it
        platform = rendezvous._platform  # noqa: SLF001 - one class in two parts
        self._waiter = Waiter("host thread", platform) if replica is None else replica.waiter

    def __enter__(self) -> Instigation[Op]:
        self._rendezvous.process.check()
        replica = self._replica
        turn = self._rendezvous._turn  # noqa: SLF001
        if replica is not None and replica.state == GUEST:
            message = (
                f"{replica.name!r} asks for the link lock in guest code, where a barrier would wait for it"
            )
            raise InGuestCodeError(message)
        if replica is not None and replica.replaying:
            message = f"{replica.name!r} asks for the link lock while it replays an operation"
            raise ProtocolError(message)
        if turn.held_by_caller():
            message = f"{self._waiter.name!r} asks for the link lock that its own thread holds"
            raise ProtocolError(message)
        try:
            self._guard.__enter__()
            with recording.span("barrier", "wait for the link lock"):
                turn.acquire(self._waiter)
                if replica is not None and self._current and replica.sequence < self._rendezvous.committed:
                    # What others have committed meanwhile: without the lock, so that they do not wait for it. Only once, so
                    # that those who commit all the while cannot keep this thread from doing so.
                    turn.release(self._waiter)
                    replica.synchronize()
                    turn.acquire(self._waiter)
            self._began = time.monotonic_ns() if recording.recorders else 0
            if replica is not None:
                if self._current:
                    replica.synchronize()
                elif replica.closed is not None:
                    raise ReplicaClosedError(replica.name, replica.closed)
            return self
        except BaseException as error:
            try:
                turn.release(self._waiter)
            finally:
                self._guard.__exit__(type(error), error, error.__traceback__)
            raise

    @protect
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._rendezvous._turn.release(self._waiter)  # noqa: SLF001
            if self._began:
                recording.since(self._began, "barrier", "hold the link lock", "")
        finally:
            self._guard.__exit__(kind, value, traceback)
        if self._replica is None and kind is None:
            # What `commit` postponed has no later safe point in a thread without a group. Not what the program ended
            # with: the body has done its work, and nothing is waited for here.
            postponed = self._waiter.take_interrupt()
            if postponed is not None:
                raise postponed
