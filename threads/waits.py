"""All waits of a program's threads in one place: woken, timed out, interrupted, and recognized as a deadlock.

A futex wait, a sleep and a join differ in what ends them and in nothing else, so they share one way to wait. And because
every one of them is known here with what it waits for, so is the moment when nothing is left that could end any.

Who counts in a deadlock. A *participant* is a thread that runs guest code for the program: it is one from
`add` until `remove`. A participant is *stuck* while it is in a wait that has no time limit and that only
another thread's action can end (futex, event). It is not stuck while it computes, is in any other host call, is
outside guest code, sleeps, waits with a time limit, or waits for the outside world (`external`). An *outsider* is the
promise that a thread which is no participant may still act: a Python thread that holds the linker and can call in.
A deadlock is: there are participants, all of them are stuck, none has an interrupt to be delivered, and there are no
outsiders. Waking a waiter ends its being stuck in the same step, so a thread that was woken but has not
yet run is never counted as stuck.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Iterator

from threads import recording
from threads.errors import DeadlockError, ProtocolError
from threads.platform import SYSTEM, LockLike, Platform
from threads.uninterrupted import unwound_whole
from threads.waiter import Waiter

__all__ = ["Event", "Wait", "WaitQueue", "WaitResult", "Waits", "unpark_all"]


class WaitResult(enum.Enum):
    """How a wait ended. The values are those of `memory.atomic.wait32` (threads proposal, "wait")."""

    WOKEN = 0
    NOT_EQUAL = 1
    TIMED_OUT = 2


class Wait:
    """One wait under way; all fields are guarded by `Waits.lock`."""

    __slots__ = ("done", "stuck", "waiter", "what")

    def __init__(self, waiter: Waiter, what: str, *, stuck: bool) -> None:
        self.waiter = waiter
        self.what = what
        self.stuck = stuck  # whether only another thread's action can end it
        self.done = False  # set by the thread that wakes it, in the step that takes it out of its queue


WaitQueue = dict[Wait, None]
"""Waits for one thing, the oldest first; a dictionary, so that one can leave from the middle at no cost."""


class Waits:
    """The waits of one program.

    Args:
      on_deadlock: called once for every deadlock found, with no lock held, in the thread that completed it, after
        every waiter was interrupted with a DeadlockError of its own.
      platform: where locks and time come from; for tests.

    Attributes:
      lock: guards every queue of the program, and what each thread waits for. Held for a few steps; nothing is waited for
        under it. The one foreign thing called under it is a futex's `still_expected`, which reads one
        number from memory: the check and the enqueueing must be one step, or a wake between them is lost.
    """

    def __init__(
        self, on_deadlock: Callable[[DeadlockError], None] | None = None, *, platform: Platform = SYSTEM
    ) -> None:
        self.lock: LockLike = platform.lock()
        self._platform = platform
        self._on_deadlock = on_deadlock
        self._participants: dict[Waiter, Wait | None] = {}  # what each waits for; guarded by: lock
        self._stuck = 0  # participants whose wait is `stuck`; guarded by: lock
        self._outsiders = 0  # guarded by: lock

    def add(self, waiter: Waiter) -> None:
        """Count the waiter's thread as one of the program's participants. From any thread.

        A thread's starter calls it before the thread runs, so that there is no moment at which it is unknown.

        Raises:
          ProtocolError: the waiter is one already.
        """
        with self.lock:
            if waiter in self._participants:
                message = f"{waiter.name!r} is a participant already"
                raise ProtocolError(message)
            self._participants[waiter] = None

    def remove(self, waiter: Waiter) -> None:
        """Stop counting the waiter's thread; if all others are stuck now, report the deadlock. Idempotent."""
        with self.lock:
            self._participants.pop(waiter, None)
            hopeless = self._hopeless_locked()
        self._report(hopeless)

    @contextlib.contextmanager
    def participant(self, waiter: Waiter) -> Iterator[None]:
        """`add`, and `remove` at the end of the `with`."""
        self.add(waiter)
        try:
            yield
        finally:
            self.remove(waiter)

    @contextlib.contextmanager
    def outsider(self) -> Iterator[None]:
        """Promise that a thread outside may wake others while the `with` lasts: no deadlock is reported."""
        with self.lock:
            self._outsiders += 1
        try:
            yield
        finally:
            with self.lock:
                self._outsiders -= 1
                hopeless = self._hopeless_locked()
            self._report(hopeless)

    def waiting(self) -> tuple[tuple[str, str], ...]:
        """Return every participant's name and what it waits for ("" if for nothing), oldest participant first."""
        with self.lock:
            return tuple(
                (waiter.name, "" if wait is None else wait.what)
                for waiter, wait in self._participants.items()
            )

    def wait(
        self, waiter: Waiter, what: str, admit: Callable[[], WaitQueue | None], timeout_ns: int | None = None
    ) -> WaitResult:
        """Wait in a queue until woken.

        A wake takes precedence over a time-out or an interrupt of the same moment: it was meant for this
        thread and would be lost. The interrupt then stays for the next wait or safe point.

        Args:
          waiter: the calling thread's.
          what: what it waits for, in words that follow "waits for".
          admit: called under `lock`: returns the queue to wait in, or None for not waiting at all.
          timeout_ns: nanoseconds, 0 or less is over immediately; None is no limit.

        Returns:
          WOKEN, TIMED_OUT, or NOT_EQUAL if `admit` returned None.

        Raises:
          BaseException: what the thread was interrupted or ended with, DeadlockError among them.
        """
        deadline = None if timeout_ns is None else self._platform.monotonic_ns() + timeout_ns
        waiter.raise_if_interrupted()
        wait = Wait(waiter, what, stuck=deadline is None)
        with unwound_whole(), recording.span("wait", "wait for", what) as about:
            result = self._wait(wait, admit, deadline)
            if about is not None:
                about["result"] = result.name.lower()
            return result

    def _wait(self, wait: Wait, admit: Callable[[], WaitQueue | None], deadline: int | None) -> WaitResult:
        clock = self._platform.monotonic_ns
        waiter = wait.waiter
        queue: WaitQueue | None = None
        try:
            with self.lock:
                queue = admit()
                if queue is None:
                    return WaitResult.NOT_EQUAL
                queue[wait] = None
                self._begin_locked(wait)
            while True:
                remaining = None if deadline is None else deadline - clock()
                exception = None
                with self.lock:
                    if wait.done:
                        return WaitResult.WOKEN
                    if waiter.interrupted:
                        exception = waiter.take()
                    if exception is not None or (remaining is not None and remaining <= 0):
                        self._end_locked(wait)
                        del queue[wait]
                        break
                    hopeless = self._hopeless_locked()
                if hopeless:
                    self._report(hopeless)
                else:
                    waiter.park(remaining)
        except BaseException:
            # A signal handler's exception. If a wake came in the same moment it is lost with this thread.
            with self.lock:
                self._end_locked(wait)
                if queue is not None:
                    queue.pop(wait, None)
            raise
        if exception is not None:
            raise exception
        return WaitResult.TIMED_OUT

    def wake_locked(self, queue: WaitQueue, count: int) -> list[Waiter]:
        """End the `count` oldest waits of a queue; under `lock`. The caller unparks those it returns, after the lock."""
        woken: list[Waiter] = []
        while queue and len(woken) < count:
            wait = next(iter(queue))
            del queue[wait]
            wait.done = True
            self._end_locked(wait)
            woken.append(wait.waiter)
        return woken

    def sleep(self, waiter: Waiter, duration_ns: int) -> None:
        """Wait for `duration_ns` nanoseconds.

        Raises:
          BaseException: as `wait`.
        """
        queue: WaitQueue = {}
        self.wait(waiter, f"{duration_ns / 1e9:g} s to pass", lambda: queue, duration_ns)

    @contextlib.contextmanager
    def external(self, waiter: Waiter, what: str, wake: Callable[[], None]) -> Iterator[None]:
        """Wait, in the body, for something outside the program (file descriptors), interruptibly.

        Args:
          waiter: the calling thread's.
          what: as in `wait`.
          wake: makes the body's wait return (writes to a pipe it polls too). Called in other threads, for every
            interrupt and for wakes that mean something else, and possibly once more right after the body.

        Raises:
          BaseException: what the thread was interrupted with: before the body, or after it if it returns.
        """
        wait = Wait(waiter, what, stuck=False)
        with self.lock:
            self._begin_locked(wait)
        # First the bell, then the look at what is pending: an interrupt posts first and rings then.
        waiter.bell = wake
        waiter.fence.light()
        try:
            waiter.raise_if_interrupted()
            with recording.span("wait", "wait for", what):
                yield
        finally:
            waiter.bell = None
            with self.lock:
                self._end_locked(wait)
        waiter.raise_if_interrupted()

    def _begin_locked(self, wait: Wait) -> None:
        if wait.waiter in self._participants:
            self._participants[wait.waiter] = wait
            self._stuck += wait.stuck

    def _end_locked(self, wait: Wait) -> None:
        if self._participants.get(wait.waiter) is wait:
            self._participants[wait.waiter] = None
            self._stuck -= wait.stuck

    def _hopeless_locked(self) -> list[tuple[Waiter, str]]:
        """Return all participants and what they wait for if nothing can wake one, and no longer count them as stuck."""
        if not self._participants or self._stuck < len(self._participants) or self._outsiders:
            return []
        if any(waiter.interrupted for waiter in self._participants):
            return []
        hopeless = [(waiter, wait.what) for waiter, wait in self._participants.items() if wait is not None]
        for wait in self._participants.values():
            if wait is not None:
                wait.stuck = False  # it is about to be interrupted
        self._stuck = 0
        return hopeless

    def _report(self, hopeless: list[tuple[Waiter, str]]) -> None:
        if not hopeless:
            return
        threads = tuple((waiter.name, what) for waiter, what in hopeless)
        for waiter, _ in hopeless:
            waiter.interrupt(DeadlockError(threads))
        if self._on_deadlock is not None:
            self._on_deadlock(DeadlockError(threads))


class Event:
    """Something that happens once: a thread's end, a module's readiness.

    Args:
      waits: the program's waits.
      what: what happens, in words that follow "waits for".
    """

    def __init__(self, waits: Waits, what: str) -> None:
        self._waits = waits
        self._what = what
        self._happened = False  # guarded by: Waits.lock, for writing
        self._queue: WaitQueue = {}  # guarded by: Waits.lock

    def is_set(self) -> bool:
        """Return whether it has happened."""
        return self._happened

    def set(self) -> None:
        """Note that it has happened: every waiter continues, now and later. From any thread; idempotent."""
        with self._waits.lock:
            self._happened = True
            woken = self._waits.wake_locked(self._queue, len(self._queue))
        unpark_all(woken)

    def wait(self, waiter: Waiter, timeout_ns: int | None = None) -> bool:
        """Wait until it has happened; returns False if that took longer than `timeout_ns`.

        Raises:
          BaseException: as `Waits.wait`.
        """
        result = self._waits.wait(
            waiter, self._what, lambda: None if self._happened else self._queue, timeout_ns
        )
        return result is not WaitResult.TIMED_OUT


def unpark_all(waiters: list[Waiter]) -> None:
    """Wake several threads, all of them even if a signal handler raises in between: their waits are over already."""
    try:
        for waiter in waiters:
            waiter.unpark()
    except BaseException:
        for waiter in waiters:
            waiter.unpark()
        raise
