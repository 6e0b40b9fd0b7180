"""Ctrl-C and SIGTERM while the guest runs.

The linker brings a signal to guest code at its next safe point, and there Python raises KeyboardInterrupt, or `Terminated`.
Code that has none (built without interrupts, or inside a system call of the engine) gets a moment, then the process ends.

A program that has named a function for signals gets the signal instead, in its first thread, and decides itself. A second
one within a second, or before the program has begun to handle the first, ends it as above.

The default action of SIGTERM was rejected: it ends the process without its timeline, trace, profile or map being written.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

from dl.cli.console import print_error
from dl.cli.endings import INTERRUPTED, TERMINATED, Terminated
from dl.groups.wakeup_bell import BELL

if TYPE_CHECKING:
    from dl.wasix.process import Process

GRACE_SECONDS = 1.0
"""How long the program may take to end by itself before the process ends without it."""
IMPATIENCE_SECONDS = 1.0
"""A second signal within this time is for the program's end, not for the program."""
_ENDINGS: dict[int, tuple[type[KeyboardInterrupt], str, int]] = {
    signal.SIGINT: (KeyboardInterrupt, "interrupted", INTERRUPTED),
    signal.SIGTERM: (Terminated, "terminated", TERMINATED),
}
"""What a signal raises, what is said then, and the exit code."""


def _raise_ending(number: int, _frame: FrameType | None) -> None:
    raise _ENDINGS[number][0]


class Interrupts:
    """Where Ctrl-C and SIGTERM go while a program runs. In the main thread.

    Attributes:
        forwarded: set when the program got the last one.
        numbers: the signals that are this command's to handle; others are ignored, as under nohup, or somebody else's.
    """

    def __init__(self, numbers: list[int]) -> None:
        self.forwarded = threading.Event()
        self.numbers = numbers
        self._last = float("-inf")

    @contextlib.contextmanager
    def to(self, process: Process) -> Iterator[None]:
        """Send signals to a program, if it handles them, while the block runs."""
        signals = process.signals
        # A Python signal handler may run anywhere in the main thread, so it takes no lock; `put` is reentrant.
        outgoing: queue.SimpleQueue[int] = queue.SimpleQueue()

        def forward() -> None:
            while number := outgoing.get():
                signals.send_to_main(number)

        def handle(number: int, _frame: FrameType | None) -> None:
            now, last = time.monotonic(), self._last
            self._last = now
            if not signals.has_handler or signals.interrupt_pending or now - last < IMPATIENCE_SECONDS:
                self.forwarded.clear()
                raise _ENDINGS[number][0]
            signals.interrupt_pending = True
            self.forwarded.set()
            outgoing.put(number)

        if not self.numbers:
            yield
            return
        sender = threading.Thread(target=forward, name="dlrun: signals", daemon=True)
        sender.start()
        former = {number: signal.signal(number, handle) for number in self.numbers}
        # A signal that comes right before the main thread begins to wait does not end the wait by itself.
        BELL.add(signals.wake_main)
        try:
            yield
        finally:
            BELL.remove(signals.wake_main)
            for number, handler in former.items():
                signal.signal(number, handler)
            outgoing.put(0)


@contextlib.contextmanager
def ending_on_interrupt() -> Iterator[Interrupts]:
    """End the process if the block does not end within a moment after a Ctrl-C or SIGTERM that the program did not get.

    Raises:
        KeyboardInterrupt: for Ctrl-C, in the block.
        Terminated: for SIGTERM, in the block.
    """
    numbers: list[int] = []
    if threading.current_thread() is threading.main_thread():
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            numbers.append(signal.SIGINT)
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            numbers.append(signal.SIGTERM)
    interrupts = Interrupts(numbers)
    done, interrupted = threading.Event(), threading.Event()

    def end_unless_done(number: int) -> None:
        if done.wait(GRACE_SECONDS):
            return
        if interrupts.forwarded.is_set():
            interrupts.forwarded.clear()
            interrupted.clear()
            return
        _, said, code = _ENDINGS[number]
        print_error(said)
        os._exit(code)

    def end(number: int) -> None:
        if not interrupted.is_set():
            interrupted.set()
            threading.Thread(
                target=end_unless_done, args=(number,), name="dlrun: the end", daemon=True
            ).start()

    rung = {number: partial(end, number) for number in (signal.SIGINT, *numbers)}
    for number, callback in rung.items():
        BELL.add(callback, number)
    if signal.SIGTERM in numbers:
        signal.signal(signal.SIGTERM, _raise_ending)
    try:
        yield interrupts
    finally:
        for callback in rung.values():
            BELL.remove(callback)
        if signal.SIGTERM in numbers:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        done.set()
