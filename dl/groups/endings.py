"""Waiting for threads that have been told to end, for a bounded time.

Guest code ends at its next safe point, and a wait of ours at once, so nearly every thread is gone within milliseconds. Three
things need more than one order:

* a host function may swallow the exception that ends its thread, and return to the guest: the order is repeated;
* near out of memory the thread that repeats interrupts cannot be started: they are repeated here;
* a host function may wait for something of its own, for ever. Nothing can end that, so after `PATIENCE_SECONDS` the thread is
  left behind: it can run no more guest code, and what it uses is freed with its last reference.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from dl.logs import logger

log = logger("dl.threads")

PATIENCE_SECONDS = 5.0
"""How long the end of a program waits for threads that are in host functions."""

_FIRST_PAUSE, _LAST_PAUSE = 0.02, 0.2


def await_end(threads: Sequence[tuple[str, threading.Event]], remind: Callable[[], object]) -> bool:
    """Wait until all threads have ended, or until it has been too long.

    Args:
        threads: each thread's name, and what is set when it has ended.
        remind: called again and again until then: gives the order to end once more.

    Returns:
        Whether they have.
    """
    # It counts what it has waited, not what the clock shows: while the process stood still nobody had time to end.
    left, pause = PATIENCE_SECONDS, _FIRST_PAUSE
    for name, ended in threads:
        while not ended.wait(min(pause, left)):
            left = max(0.0, left - pause)
            if not left:
                log.warning("%s does not end: it is in a function of the host", name)
                break
            remind()
            pause = min(2 * pause, _LAST_PAUSE)
    return all(ended.is_set() for _, ended in threads)
