"""A thread as something that waits: parked, woken and interrupted, by any thread at any time.

Every wait of this package (gate, link lock, barrier, futex, sleep, join) parks the one `Waiter` of its thread.
So one interrupt reaches a thread in any of them, and a wake costs the thread it is meant for and no other.

A wake is a hint, never a fact: `park` may return for no reason, and a wake may come after its wait ended. Each
waiting loop therefore checks its condition (a queue, a number, under its own lock) in every round. In return `unpark`
needs no lock and can be called with any lock held or none, also by a thread that knows nothing of the wait.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from threads.platform import SYSTEM, Platform

__all__ = ["Waiter"]

_LONGEST_PARK_NS = 3600 * 10**9  # far below `threading.TIMEOUT_MAX`; a spurious return each hour harms nobody


class Waiter:
    """What one thread waits with.

    Attributes:
      name: the thread's name in reports.
      alarm: called, with no lock held, in the thread that interrupts this one, after the exception is posted;
        a thread that runs guest code sets it, so that the interrupt also reaches it while it does not wait.
      fence: between the variables that this thread writes and reads, and those of whoever interrupts it.
      bell: called, with no lock held, by `unpark`; set only while the thread waits in something foreign (poll).

    Concurrency:
      `park`, `take` and `raise_if_interrupted` are for the owning thread. All else is for any thread, also for a signal
      handler: no lock is taken here.
    """

    __slots__ = ("_ended", "_pending", "_shields", "_wake", "alarm", "bell", "fence", "name", "platform")

    def __init__(self, name: str, platform: Platform = SYSTEM) -> None:
        self.name = name
        self.platform = platform
        self.fence = platform.fence()
        self.alarm: Callable[[], None] | None = None
        self.bell: Callable[[], None] | None = None
        # What stores a wake in a single step that cannot be torn by an exception: a flag beside a condition could be
        # left saying "woken" with nobody woken.
        self._wake = platform.wake()
        # By a key of its own each, in the order they came. A dictionary, because its additions, its `pop` of a key and its
        # `copy` are single steps on every interpreter; those of a deque, beside another thread, are not.
        self._pending: dict[object, BaseException] = {}
        self._ended: BaseException | None = None  # set once, never cleared
        self._shields = 0  # written by the owning thread alone

    def __repr__(self) -> str:
        return f"<Waiter {self.name!r}>"

    @property
    def ended(self) -> BaseException | None:
        """What the thread raises at every wait and safe point, without the traceback of an earlier one; None if nothing."""
        return None if self._ended is None else self._ended.with_traceback(None)

    @property
    def interrupted(self) -> bool:
        """Whether `raise_if_interrupted` would raise."""
        return self._ended is not None or (bool(self._pending) and not self._shields)

    @contextlib.contextmanager
    def shielded(self) -> Iterator[None]:
        """Hold interrupts back while the body runs, for what must not stop half-way: undoing something.

        They are delivered after it. What the program ended with is not held back, nor is Ctrl-C: see `uninterrupted`. For
        the owning thread; it nests.
        """
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
            # An interrupter posts first and looks then whether interrupts are held back.
            self.fence.light()
            if self._pending and not self._shields and self.alarm is not None:
                self.alarm()

    def interrupt(self, exception: BaseException) -> None:
        """Make the thread raise `exception` at its next wait or safe point, once; wake it if it waits.

        Several are raised one after the other, in the order they came: none is lost.
        """
        self._pending[object()] = exception
        # First posted, then everything that tells whether the thread needs to be told: `bell`, and what `alarm` reads.
        self.fence.heavy()
        if self.alarm is not None:
            self.alarm()
        self.unpark()

    def withdraw(self, exception: BaseException) -> bool:
        """Withdraw an exception that was not raised yet; returns whether it was still there."""
        return any(
            posted is exception and self._pending.pop(key, None) is not None
            for key, posted in self._pending.copy().items()
        )

    def end(self, exception: BaseException) -> None:
        """Make the thread raise `exception` at every wait and safe point from now on; the first call counts."""
        if self._ended is None:
            self._ended = exception
        self.fence.heavy()  # as in `interrupt`
        self.unpark()

    def take(self) -> BaseException | None:
        """Return what the thread has to raise now, if anything. An interrupt is then delivered; an end stays."""
        if self._ended is not None:
            # One instance may end many threads; the traceback of one is no news to another.
            return self._ended.with_traceback(None)
        return self.take_interrupt()

    def take_interrupt(self) -> BaseException | None:
        """Return the oldest interrupt, which is then delivered, or None; whether the thread was ended or not."""
        if self._shields or not self._pending:
            return None
        for key in self._pending.copy():
            exception = self._pending.pop(key, None)
            if exception is not None:
                return exception  # the others of the copy may have been withdrawn meanwhile
        return None

    def raise_if_interrupted(self) -> None:
        """Raise what `take` returns, if anything.

        Raises:
          BaseException: the exception given to `end`, or the oldest given to `interrupt`, which is then gone.
        """
        exception = self.take()
        if exception is not None:
            raise exception

    def park(self, timeout_ns: int | None = None) -> None:
        """Wait for a wake, for at most `timeout_ns` (None: no limit, negative: as 0); may return early.

        Raises:
          KeyboardInterrupt: or whatever a signal handler raises, in the main thread.
        """
        if timeout_ns is None or timeout_ns > _LONGEST_PARK_NS:
            timeout_ns = _LONGEST_PARK_NS
        self._wake.acquire(timeout=max(timeout_ns, 0) / 1e9)
        # A wake that comes before this is stored no second time, so what it was for must be seen from here on.
        self.fence.light()

    def unpark(self) -> None:
        """Wake the thread, or make its next `park` return immediately."""
        try:  # noqa: SIM105 - `suppress` would be a second call on every wake
            self._wake.release()
        except RuntimeError:
            pass  # a wake is stored already, and one is enough: its taker checks everything
        bell = self.bell
        if bell is not None:
            bell()
