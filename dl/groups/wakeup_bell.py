"""Signals while the main thread runs guest code.

Python runs signal handlers in the main thread, between two bytecodes. A main thread inside guest code executes none, so
Ctrl-C would wait until the guest returns. The C handler does write to the wakeup descriptor at once, though. A thread reads
it and interrupts the engine; the main thread's safe point is Python code, where the handler runs and may raise.

The descriptor is one for the process. If somebody else has taken it (trio, asyncio in the main thread), theirs stays: their
guest code runs on worker threads, whose signals they handle.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

from dl.forks import in_forked_child, renew


class SignalBell:
    """Calls back, on a thread of its own, soon after a signal has come to the process.

    `_lock` guards `_callbacks` and the thread's life; callbacks run outside it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: list[tuple[Callable[[], None], int | None]] = []
        self._pipe: tuple[int, int] | None = (
            None  # a socket pair serves as well; importing sockets takes 3 ms
        )

    def add(self, callback: Callable[[], None], number: int | None = None) -> bool:
        """Have a callback called at every signal, or at those of one number.

        Returns:
            False where that cannot be: not in the main thread, or taken.
        """
        if threading.current_thread() is not threading.main_thread():
            return False
        with self._lock:
            if not self._callbacks and not self._listen():
                return False
            self._callbacks.append((callback, number))
            return True

    def remove(self, callback: Callable[[], None]) -> None:
        """Undo `add`; from any thread, but only the main thread gives the descriptor back."""
        with self._lock:
            for position, (each, _) in enumerate(self._callbacks):
                if each == callback:
                    del self._callbacks[position]
                    break
            if not self._callbacks and threading.current_thread() is threading.main_thread():
                self._stop()

    def forked(self) -> None:
        """Begin anew in a forked child: the reader is a thread of the parent, and the parent's programs are not the child's."""
        renew(self._lock)
        self._callbacks = []
        if self._pipe is None:
            return
        os.close(self._pipe[0])  # its reader did not come along
        if threading.current_thread() is threading.main_thread():
            self._stop()
        else:
            os.close(self._pipe[1])
            self._pipe = None

    def _listen(self) -> bool:
        if self._pipe is not None:
            return True
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        taken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        if taken != -1:
            signal.set_wakeup_fd(taken, warn_on_full_buffer=False)
            os.close(reader)
            os.close(writer)
            return False
        self._pipe = reader, writer
        threading.Thread(target=self._watch, args=(reader,), name="signals", daemon=True).start()
        return True

    def _stop(self) -> None:
        if self._pipe is None:
            return
        _, writer = self._pipe
        present = signal.set_wakeup_fd(-1)
        if present not in (-1, writer):
            signal.set_wakeup_fd(present)
        os.close(writer)  # which ends the reader
        self._pipe = None

    def _watch(self, reader: int) -> None:
        try:
            while numbers := os.read(reader, 64):  # a byte for each signal
                with self._lock:
                    callbacks = list(self._callbacks)
                for callback, number in callbacks:
                    if number is None or number in numbers:
                        callback()
        finally:
            os.close(reader)


BELL = SignalBell()
"""The process's one."""

in_forked_child(BELL.forked)
