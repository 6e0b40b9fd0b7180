"""Ctrl-C while the guest runs.

Python handles a signal between two of its own instructions, and a guest that computes or waits executes none. So a
thread of our own watches for SIGINT: it ends the program, which reaches guest code at its next safe point. Code that
has none (built without interrupts, or inside a system call of the engine) gets a moment, then the process ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

from dl.cli.console import print_error
from dl.cli.endings import INTERRUPTED

GRACE_SECONDS = 1.0
"""How long the program may take to end by itself before the process ends without it; a second Ctrl-C ends it at once."""


@contextlib.contextmanager
def ending_on_interrupt(end: Callable[[BaseException], object]) -> Iterator[None]:
    """Let Ctrl-C end the program while the block runs.

    Args:
        end: ends the program; called in another thread with the exception that its threads shall raise.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wakes, woken = socket.socketpair()
    wakes.setblocking(False)
    done = threading.Event()
    former = signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(woken, done, end), name="dlrun: Ctrl-C", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        done.set()
        wakes.close()
        watcher.join()
        woken.close()


def _watch(woken: socket.socket, done: threading.Event, end: Callable[[BaseException], object]) -> None:
    while signals := woken.recv(64):
        if signal.SIGINT in signals:
            end(KeyboardInterrupt())
            woken.settimeout(GRACE_SECONDS)
            with contextlib.suppress(TimeoutError):
                # Nothing but the end of the block, or another Ctrl-C, comes here.
                woken.recv(64)
            if not done.is_set():
                print_error("interrupted")
                os._exit(INTERRUPTED)
            return
