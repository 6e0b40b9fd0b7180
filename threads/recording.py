"""What the threads of this process do, for whoever records it: spans of time, and moments.

While nobody records, each place that could tell something reads one variable. A recorder is called in the thread that did it,
also with locks held and half-way through a barrier: so it takes no lock of ours, waits for nothing, and raises nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Final, Protocol

__all__ = ["Named", "Recorder", "add", "barrier", "moment", "named", "recorders", "remove", "since", "span"]


class Named(Protocol):
    """What has a name."""

    name: str


class Recorder(Protocol):
    """Gets told what happens; see the rules above."""

    def span(
        self, kind: str, phase: str, subject: str, begin_ns: int, end_ns: int, about: dict[str, Any]
    ) -> None:
        """Something took time in the calling thread, from `begin_ns` to `end_ns` of `time.monotonic_ns`.

        `kind` is the part of the work that it belongs to: `load`, `barrier`, `wait`, `guest`. `phase` is what was done, one of
        few texts, and `subject` to what, which may be empty; `about` has more, by name.
        """

    def moment(self, kind: str, what: str, about: dict[str, Any]) -> None:
        """Something happened now, in the calling thread."""

    def named(self, name: str) -> None:
        """The calling thread has a name in the program."""


_NAMED: Final = 64
"""Of those that a barrier has waited for, in a record of it."""

recorders: tuple[Recorder, ...] = ()
"""Who records. Replaced as a whole by `add` and `remove`; read without a lock."""

_changing = threading.Lock()
"""Guards the replacing of `recorders`; held for one step, a leaf."""


if hasattr(os, "register_at_fork"):
    # A thread of the parent may hold it, and does not come along.
    os.register_at_fork(after_in_child=_changing._at_fork_reinit)  # type: ignore[attr-defined]  # noqa: SLF001


def add(recorder: Recorder) -> None:
    """Have a recorder told from now on."""
    global recorders  # noqa: PLW0603 - it is the process that is recorded
    with _changing:
        recorders = (*recorders, recorder)


def remove(recorder: Recorder) -> None:
    """Tell a recorder no more; a call that is under way in another thread may still come."""
    global recorders  # noqa: PLW0603
    with _changing:
        recorders = tuple(other for other in recorders if other is not recorder)


class _Span:
    __slots__ = ("_about", "_begin", "_kind", "_phase", "_subject")

    def __init__(self, kind: str, phase: str, subject: str, about: dict[str, Any]) -> None:
        self._kind = kind
        self._phase = phase
        self._subject = subject
        self._about = about

    def __enter__(self) -> dict[str, Any]:
        self._begin = time.monotonic_ns()
        return self._about

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._about["error"] = kind.__name__
        since(self._begin, self._kind, self._phase, self._subject, self._about)


_NOTHING: Final[AbstractContextManager[dict[str, Any] | None]] = nullcontext()


def span(
    kind: str, phase: str, subject: str = "", **about: Any
) -> AbstractContextManager[dict[str, Any] | None]:
    """Tell that a `with` takes time; it gives what is told about it, to be added to, or None while nobody records."""
    return _Span(kind, phase, subject, about) if recorders else _NOTHING


def since(begin_ns: int, kind: str, phase: str, subject: str, about: dict[str, Any] | None = None) -> None:
    """Tell of something that began at `begin_ns` and ends now; the rest is as `Recorder.span` has it."""
    end = time.monotonic_ns()
    for recorder in recorders:
        recorder.span(kind, phase, subject, begin_ns, end, about or {})


def barrier(begin_ns: int, number: int, operation: object, awaited: Sequence[Named]) -> None:
    """Tell of a barrier that ends now.

    Args:
      begin_ns: when it began, of `time.monotonic_ns`.
      number: of its operation.
      operation: what was committed.
      awaited: those that were in guest code when it began.
    """
    if recorders:
        names = [other.name for other in awaited[:_NAMED]]
        about = {"operation": number, "awaited": names, "waited_for": len(awaited)}
        since(begin_ns, "barrier", "barrier", type(operation).__name__, about)


def moment(kind: str, what: str, **about: Any) -> None:
    """Tell of something that happens now."""
    for recorder in recorders:
        recorder.moment(kind, what, about)


def named(name: str) -> None:
    """Tell which name the calling thread has in the program."""
    for recorder in recorders:
        recorder.named(name)
