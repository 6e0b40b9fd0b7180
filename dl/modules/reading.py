"""Reading module files: how much of the host's memory it may take, for a whole program.

A file is read once however many threads open it at the same moment: one thread reads, the others wait for it and get the same
bytes. The size is checked on the open descriptor before anything is read, and no more than that is read, even if the file
grows meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from weakref import WeakValueDictionary

from dl.errors import LinkError, ResourceLimitError
from dl.modules.beneath import OpenedFile
from threads import recording

MAX_MODULE_BYTES = 1 << 30
"""Largest module that is read unless the host says otherwise, 1 GiB: the limit that engines and toolchains set on a binary."""

_HEAD_BYTES = 64
_PIECE_BYTES = 64 << 10
"""What is compared at a time: it stays in the processor's cache, and in memory that the process has already."""
_LOOK_AGAIN_SECONDS = 1.0
_MAGIC = b"\0asm"


class _Reading:
    """One file while it is read and parsed: alive as long as a thread uses it.

    Attributes:
        size: bytes that count against the budget.
        data: what was read; None while it is being read.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.data: bytes | None = None


class ReadBudget:
    """Bounds the bytes that a program reads for loading; safe for threads.

    A thread waits here, holding no lock of ours, while another one reads the same file, or until enough of the total is free.
    What it waits for is other threads' reading and parsing only, which wait for nothing themselves.

    Args:
        module_bytes: most bytes of one module; at least 1.
        total_bytes: most bytes of all files that are being read and parsed at one time; at least 1.

    `_lock` guards `_readings`; nothing is read or parsed while holding it. Only the threads that use a reading refer to it, so
    that however one is interrupted, what it had taken is free again, and another thread reads in its place.
    """

    def __init__(self, module_bytes: int = MAX_MODULE_BYTES, total_bytes: int = MAX_MODULE_BYTES) -> None:
        if module_bytes < 1 or total_bytes < 1:
            raise ValueError(f"a budget must be positive, not {module_bytes} and {total_bytes} bytes")
        self.module_bytes = module_bytes
        self.total_bytes = total_bytes
        self._lock = threading.Condition()
        self._readings: WeakValueDictionary[tuple[int, ...], _Reading] = WeakValueDictionary()

    @property
    def in_use(self) -> int:
        """Bytes that are being read and parsed."""
        # Not `values()`: without a GIL, an entry that dies in another thread may change what is walked.
        readings = [reference() for reference in self._readings.valuerefs()]
        return sum(reading.size for reading in readings if reading is not None)

    @contextlib.contextmanager
    def reading(self, file: OpenedFile, name: str) -> Iterator[bytes]:
        """Read a file; its bytes count against the budget until the `with` ends.

        Of a file that does not begin as a module does, only the beginning is read.

        Args:
            file: an open file.
            name: for messages.

        Raises:
            ResourceLimitError: it is larger than one module may be, or than the total.
            LinkError: it cannot be read.
        """
        head = _read(file, min(file.size, _HEAD_BYTES), name)
        if not head.startswith(_MAGIC):
            yield head
            return
        for limit, what in ((self.module_bytes, "module_bytes"), (self.total_bytes, "total_bytes")):
            if file.size > limit:
                raise ResourceLimitError(
                    name, f"a file of {file.size} bytes; at most {limit} are read (limit {what})"
                )
        held = [self._join(file)]
        try:
            if held[0].data is None:
                with recording.span("load", "read", name, bytes=file.size):
                    held[0].data = _read(file, file.size, name)
                with self._lock:
                    self._lock.notify_all()
            yield held[0].data
        finally:
            held.clear()  # an exception's traceback must not keep it
            with self._lock:
                self._lock.notify_all()

    def has(self, file: OpenedFile, known: bytes) -> bool:
        """Return whether a file may be read and holds these bytes, as far as they can be read; nothing of it is kept.

        Args:
            file: an open file.
            known: a module that was read before.
        """
        if file.size != len(known) or file.size > min(self.module_bytes, self.total_bytes):
            return False
        try:
            for at in range(0, len(known), _PIECE_BYTES):
                wanted = min(_PIECE_BYTES, len(known) - at)
                piece = os.pread(file.fd, wanted, at)
                if len(piece) < wanted or not known.startswith(piece, at):
                    return False
        except OSError:  # who reads it as a whole says what is wrong
            return False
        return True

    def _join(self, file: OpenedFile) -> _Reading:
        """Return the reading of a file: with its bytes, or without for the one thread that must read them."""
        with self._lock:
            while True:
                reading = self._readings.get(file.version)
                if reading is not None and reading.data is not None:
                    return reading
                if reading is None and self.in_use + file.size <= self.total_bytes:
                    reading = self._readings[file.version] = _Reading(file.size)
                    return reading
                del reading
                # With a limit only because a thread that is interrupted twice may end without a notification.
                self._lock.wait(_LOOK_AGAIN_SECONDS)


def _read(file: OpenedFile, size: int, name: str) -> bytes:
    """Read a number of bytes from the beginning, fewer if the file has shrunk."""
    try:
        data = os.pread(file.fd, size, 0)
        if len(data) == size:
            return data
        parts = [data]
        read = len(data)
        while read < size and parts[-1]:
            parts.append(os.pread(file.fd, size - read, read))
            read += len(parts[-1])
    except OSError as error:
        raise LinkError(name, os.strerror(error.errno or 0).lower()) from error
    return b"".join(parts)
