"""Signals that are sent after a time: `proc_raise_interval`, from which the C library makes `alarm` and `setitimer`."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from threads import Waits

_LONGEST_SECONDS = threading.TIMEOUT_MAX
SHORTEST_SECONDS = 0.001
"""Of what is repeated: about what timers of operating systems have. A shorter one would keep a processor and the
interpreter busy for nothing, since a signal that is pending already is not sent again."""


class Alarms:
    """The timers of one program, one for each signal.

    `_lock` guards `_timers` and `_closed`. A timer's thread exists only while it is set.

    Args:
        ring: sends a signal; called on a timer's thread.
        waits: the program's waits: while a timer is set, threads that wait for each other are not deadlocked.
    """

    def __init__(self, ring: Callable[[int], None], waits: Waits) -> None:
        self._ring = ring
        self._waits = waits
        self._lock = threading.Lock()
        self._timers: dict[int, _Timer] = {}
        self._closed = False

    def set(self, signal: int, nanoseconds: int, *, repeat: bool) -> None:
        """Send a signal after a time, once or repeatedly, at most each `SHORTEST_SECONDS`; 0 ns removes the signal's timer.

        Raises:
            RuntimeError: the host cannot start a thread; the signal's timer is as before.
        """
        with self._lock:
            timer: _Timer | None = None
            if nanoseconds and not self._closed:
                seconds = min(max(nanoseconds / 1e9, SHORTEST_SECONDS * repeat), _LONGEST_SECONDS)
                timer = _Timer(self, signal, seconds, repeat)
                # From here on, not only once the thread runs: the caller may wait right after.
                timer.outsider.enter_context(self._waits.outsider())
                try:
                    # It takes the lock before it looks at the timers.
                    timer.thread.start()
                except BaseException:
                    timer.outsider.close()
                    raise
            former = self._timers.pop(signal, None)
            if timer is not None:
                self._timers[signal] = timer
        if former is not None:
            former.cancelled.set()

    def run(self, timer: _Timer) -> None:
        """A timer's thread."""
        with timer.outsider:
            while not timer.cancelled.wait(timer.seconds):
                if not timer.repeat:
                    with self._lock:
                        if self._timers.get(timer.signal) is timer:
                            del self._timers[timer.signal]
                self._ring(timer.signal)
                if not timer.repeat:
                    return

    def close(self) -> None:
        """Remove all timers and accept no new ones; waits for their threads."""
        with self._lock:
            self._closed = True
            timers, self._timers = list(self._timers.values()), {}
        for timer in timers:
            timer.cancelled.set()
        for timer in timers:
            if timer.thread is not threading.current_thread():
                timer.thread.join()


class _Timer:
    def __init__(self, alarms: Alarms, signal: int, seconds: float, repeat: bool) -> None:
        self.signal = signal
        self.seconds = seconds
        self.repeat = repeat
        self.cancelled = threading.Event()
        self.outsider = contextlib.ExitStack()
        self.thread = threading.Thread(
            target=alarms.run, args=(self,), name=f"alarm for signal {signal}", daemon=True
        )
