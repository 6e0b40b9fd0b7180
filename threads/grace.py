"""Grace periods: when to free what a replay that is under way may still be using.

The linker gives a removed module's memory to another module. A follower that began to replay the load before the removal
was committed may be instantiating the module at this moment, in its own thread, and an instantiation writes to that
memory. The linker must not wait for it: a replay runs start functions and host calls, and the linker holds the link lock.
So, as in read-copy-update, it registers an action, which is performed once every replay that was under way at that
moment has ended. Replays that begin later do not count: they cannot have seen what was removed.

A replica is counted from the moment it is given its operation until its thread is out of `apply`, however it gets out.
A replica that is made to leave in between counts until then: its thread is still in `apply`.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable

from threads.tables import found_in

__all__ = ["GracePeriods"]


class _Period:
    __slots__ = ("action", "awaited")

    def __init__(self, action: Callable[[], None], awaited: dict[object, None]) -> None:
        self.action = action
        self.awaited = awaited


class GracePeriods:
    """The replays under way in one program, and the actions that wait for some of them.

    Concurrency:
      `begin`, `end` and `add` are called under the rendezvous' lock, `perform_due` under none. Every action is performed
      once: taking it from `_due` is one step.
    """

    __slots__ = ("_due", "_under_way")

    def __init__(self) -> None:
        self._under_way: dict[object, list[_Period]] = {}  # replays, and the periods that wait for each
        self._due: deque[Callable[[], None]] = deque()

    def begin(self, replica: object) -> None:
        """A replica begins to replay an operation."""
        self._under_way[replica] = []

    def end(self, replica: object) -> None:
        """A replica's thread has ended its replay, well or badly; `perform_due` must follow. Idempotent."""
        for period in found_in(self._under_way, replica, ()):
            if period.awaited.pop(replica, self) is None and not period.awaited:
                self._due.append(period.action)
        self._under_way.pop(replica, None)

    def add(self, action: Callable[[], None]) -> bool:
        """Perform an action after the replays under way; returns False if there are none: the caller performs it."""
        if not self._under_way:
            return False
        period = _Period(action, dict.fromkeys(self._under_way))
        for periods in self._under_way.values():
            periods.append(period)
        return True

    def perform_due(self) -> None:
        """Perform the actions whose time has come.

        An `Exception` of an action is reported to `threading.excepthook`, as that of a thread which nobody joins: the
        thread that happens to perform it has nothing to do with it. Anything else (KeyboardInterrupt, SystemExit) is meant
        for the thread and raised, after the other actions.
        """
        while self._due:
            try:
                action = self._due.popleft()
            except IndexError:
                return  # another thread has taken the last one
            try:
                action()
            except Exception:  # noqa: BLE001 - reported
                kind, value, traceback = sys.exc_info()
                arguments = (kind, value, traceback, threading.current_thread())
                threading.excepthook(threading.ExceptHookArgs(arguments))
            except BaseException:
                self.perform_due()
                raise
