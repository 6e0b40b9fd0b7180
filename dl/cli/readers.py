"""Programs whose output nobody reads any more: they end with 141, as a shell has it for SIGPIPE.

Python ignores SIGPIPE, so that a program that never looks at what its writes return would write into a closed pipe for ever.
Who handles the signal gets it wherever the write was: in a system function of this linker, or in the engine's own WASI, which
calls no Python. The default action was rejected: it ends the process without its timeline, profile or map being written, and
also for a pipe that is not the program's output.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

from dl.cli.endings import BROKEN_PIPE
from dl.groups.wakeup_bell import BELL

if TYPE_CHECKING:
    from dl.wasix.process import Process

GRACE_SECONDS = 0.5
"""How long a program may take to reach a safe point before the process ends without it."""
_OUTPUTS = (1, 2)


class _NobodyReadsError(KeyboardInterrupt):
    """Ends the guest like a Ctrl-C: nothing on its way takes it for an error of a file."""


def nobody_reads() -> bool:
    """Whether standard output or standard error is a pipe or socket whose other end is closed."""
    poll = select.poll()
    for descriptor in _OUTPUTS:
        poll.register(descriptor, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


@contextlib.contextmanager
def ending_with_readers(process: Process) -> Iterator[None]:
    """End the block when its program writes to standard output or error and nobody reads that any more.

    A program that handles signals gets SIGPIPE in its first thread instead, and decides itself. In another than the main
    thread, or where SIGPIPE is somebody else's, nothing is done.

    Raises:
        BrokenPipeError: nobody reads.
    """
    former = signal.getsignal(signal.SIGPIPE)
    if former is not signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = process.signals
    done = threading.Event()
    noticed = False

    def handle(_number: int, _frame: FrameType | None) -> None:
        if not done.is_set() and not signals.has_handler and nobody_reads():
            raise _NobodyReadsError

    def came() -> None:
        nonlocal noticed
        if noticed or not nobody_reads():
            return
        if signals.has_handler:
            signals.send_to_main(signal.SIGPIPE)
            return
        noticed = True
        signals.wake_main()
        threading.Thread(target=end_unless_done, name="dlrun: SIGPIPE", daemon=True).start()

    def end_unless_done() -> None:
        if not done.wait(GRACE_SECONDS):
            os._exit(BROKEN_PIPE)

    signal.signal(signal.SIGPIPE, handle)
    BELL.add(came, signal.SIGPIPE)
    try:
        yield
    except _NobodyReadsError:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
    finally:
        done.set()
        BELL.remove(came)
        signal.signal(signal.SIGPIPE, former)
