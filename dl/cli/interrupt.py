"""Ctrl-C while the guest runs.

The linker brings a signal to guest code at its next safe point, and there Python raises KeyboardInterrupt. Code that has
none (built without interrupts, or inside a system call of the engine) gets a moment, then the process ends.

A program that has named a function for signals gets SIGINT instead, in its first thread, and decides itself. A second
Ctrl-C within a second, or before the program has begun to handle the first, ends it as above.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

from dl.cli.console import print_error
from dl.cli.endings import INTERRUPTED
from dl.groups.wakeup_bell import BELL

if TYPE_CHECKING:
    from dl.wasix.process import Process

GRACE_SECONDS = 1.0
"""How long the program may take to end by itself before the process ends without it."""
IMPATIENCE_SECONDS = 1.0
"""A second Ctrl-C within this time is for the program's end, not for the program."""


class Interrupts:
    """Where Ctrl-C goes while a program runs. In the main thread.

    Attributes:
        forwarded: set when the program got the last one.
    """

    def __init__(self) -> None:
        self.forwarded = threading.Event()
        self._last = float("-inf")

    @contextlib.contextmanager
    def to(self, process: Process) -> Iterator[None]:
        """Send SIGINT to a program, if it handles signals, while the block runs."""
        signals = process.signals
        # A Python signal handler may run anywhere in the main thread, so it takes no lock; `put` is reentrant.
        outgoing: queue.SimpleQueue[bool] = queue.SimpleQueue()

        def forward() -> None:
            while outgoing.get():
                signals.send_to_main(signal.SIGINT)

        def handle(_number: int, _frame: FrameType | None) -> None:
            now, last = time.monotonic(), self._last
            self._last = now
            if not signals.has_handler or signals.interrupt_pending or now - last < IMPATIENCE_SECONDS:
                self.forwarded.clear()
                raise KeyboardInterrupt
            signals.interrupt_pending = True
            self.forwarded.set()
            outgoing.put(True)

        former = signal.getsignal(signal.SIGINT)
        if former is not signal.default_int_handler:  # ignored, as under nohup, or somebody else's
            yield
            return
        sender = threading.Thread(target=forward, name="dlrun: SIGINT", daemon=True)
        sender.start()
        signal.signal(signal.SIGINT, handle)
        # A signal that comes right before the main thread begins to wait does not end the wait by itself.
        BELL.add(signals.wake_main)
        try:
            yield
        finally:
            BELL.remove(signals.wake_main)
            signal.signal(signal.SIGINT, former)
            outgoing.put(False)


@contextlib.contextmanager
def ending_on_interrupt() -> Iterator[Interrupts]:
    """End the process if the block does not end within a moment after a Ctrl-C that the program did not get."""
    interrupts = Interrupts()
    done, interrupted = threading.Event(), threading.Event()

    def end_unless_done() -> None:
        if done.wait(GRACE_SECONDS):
            return
        if interrupts.forwarded.is_set():
            interrupts.forwarded.clear()
            interrupted.clear()
            return
        print_error("interrupted")
        os._exit(INTERRUPTED)

    def end() -> None:
        if not interrupted.is_set():
            interrupted.set()
            threading.Thread(target=end_unless_done, name="dlrun: Ctrl-C", daemon=True).start()

    BELL.add(end, signal.SIGINT)
    try:
        yield interrupts
    finally:
        BELL.remove(end)
        done.set()
