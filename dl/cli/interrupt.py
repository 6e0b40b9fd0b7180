"""Ctrl-C while the guest runs.

The linker brings a signal to guest code at its next safe point, and there Python raises KeyboardInterrupt. Code that has
none (built without interrupts, or inside a system call of the engine) gets a moment, then the process ends.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from dl.cli.console import print_error
from dl.cli.endings import INTERRUPTED
from dl.groups.wakeup_bell import BELL

GRACE_SECONDS = 1.0
"""How long the program may take to end by itself before the process ends without it."""


@contextlib.contextmanager
def ending_on_interrupt() -> Iterator[None]:
    """End the process if the block does not end within a moment after Ctrl-C."""
    done, interrupted = threading.Event(), threading.Event()

    def end() -> None:
        # SIGINT is the only signal that dlrun has a Python handler for, so it is the only one that gets here.
        if not interrupted.is_set():
            interrupted.set()
            threading.Thread(target=_end_unless, args=(done,), name="dlrun: Ctrl-C", daemon=True).start()

    BELL.add(end)
    try:
        yield
    finally:
        BELL.remove(end)
        done.set()


def _end_unless(done: threading.Event) -> None:
    if not done.wait(GRACE_SECONDS):
        print_error("interrupted")
        os._exit(INTERRUPTED)
