"""Waiting for a descriptor of the host, in a way that our own threads can interrupt."""

from __future__ import annotations

import contextlib
import os
import select
import threading

from dl.wasix.abi import ErrnoError
from dl.wasix.files.host_files import host_errno
from memory import Uncopied
from threads import Waiter, Waits

_MILLISECOND_NS = 1_000_000
_LONGEST_MS = (1 << 31) - 1
_READY = select.POLLIN | select.POLLHUP | select.POLLERR | select.POLLNVAL if hasattr(select, "poll") else 0
CAN_WAIT = bool(_READY)
"""Whether this platform can wait for a descriptor."""


class _Bell(Uncopied):
    """Ends a `poll` from another thread: one byte in a pipe that is polled too.

    It is closed with its last reference, so a ring that comes after the wait never writes to another file.
    """

    reader = _writer = -1  # of one that could not be made

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self._writer, False)

    def ring(self) -> None:
        """End the wait under way, or the next one."""
        with contextlib.suppress(BlockingIOError):  # full: it will ring anyway
            os.write(self._writer, b"!")

    def clear(self) -> None:
        """Discard all rings so far."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self.reader, 4096):
                pass

    def __del__(self) -> None:
        if self.reader >= 0:
            os.close(self.reader)
            os.close(self._writer)


class HostInput:
    """Waits of a program's threads for descriptors of the host; each thread has its own bell."""

    def __init__(self, waits: Waits) -> None:
        self._waits = waits
        self._local = threading.local()

    def bell(self) -> _Bell:
        """Return the calling thread's bell.

        Raises:
            ErrnoError: the host has no descriptors for one.
        """
        bell: _Bell | None = getattr(self._local, "bell", None)
        if bell is None:
            try:
                bell = self._local.bell = _Bell()
            except OSError as error:
                raise ErrnoError(host_errno(error)) from error
        return bell

    @staticmethod
    def ready(descriptor: int) -> bool:
        """Whether a read of a descriptor would not wait."""
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))

    def wait(self, waiter: Waiter, descriptor: int, what: str, timeout_ns: int | None = None) -> bool:
        """Wait until a descriptor can be read, the calling thread's bell rings, or the time is over.

        Args:
            waiter: the calling thread's.
            descriptor: the host's.
            what: what it waits for, in words that follow "waits for".
            timeout_ns: nanoseconds; None for no limit.

        Returns:
            True; look again.

        Raises:
            ErrnoError: the host has no descriptors left.
            BaseException: what the thread was interrupted with.
        """
        bell = self.bell()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.register(bell.reader, select.POLLIN)
        # Up to the next millisecond, so that the time is over when the wait is.
        timeout = None if timeout_ns is None else min(-(-max(timeout_ns, 0) // _MILLISECOND_NS), _LONGEST_MS)
        with self._waits.external(waiter, what, bell.ring):
            poll.poll(timeout)
        bell.clear()
        return True
