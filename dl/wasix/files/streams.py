"""Pipes and event counters: descriptors that live in this process and that WASI does not have.

They are built on `threads.Waits`, not on the host's pipes. So a thread that waits for one can be interrupted, delays no link
operation, and is part of deadlock detection: reading a pipe that no thread can write ends the program with an error.

All state is guarded by the lock of the program's `Waits`. All threads that wait for a stream wait in one queue, `Changes`, and
look again after every change; there are few such descriptors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from dl.wasix.abi import Errno, ErrnoError
from dl.wasix.files.overriding import override
from dl.wasix.limits import Budget
from threads import WaitQueue, Waits, unpark_all

PIPE_CAPACITY = 65536
"""Bytes a pipe holds."""
PIPE_ATOMIC = 4096
"""A write of at most so many bytes goes into a pipe as a whole (POSIX, PIPE_BUF)."""
MOST_BYTES = 1 << 24
"""Most bytes of one call that the host copies: overlapping buffers can add up to more than the guest's memory."""
_EVENT_MAXIMUM = 0xFFFFFFFFFFFFFFFE
_EVENT_BYTES = 8


class Changes:
    """The queue of the threads that wait for a change of any stream.

    Attributes:
        waits: the program's waits.
        queue: the threads that wait; guarded by `waits.lock`.
    """

    def __init__(self, waits: Waits) -> None:
        self.waits = waits
        self.queue: WaitQueue = {}
        self._watchers: set[Callable[[], None]] = set()

    @contextlib.contextmanager
    def watched(self, wake: Callable[[], None]) -> Iterator[None]:
        """Call `wake` at every change while the block runs, for a thread that also waits for a descriptor of the host's."""
        with self.waits.lock:
            self._watchers.add(wake)
        try:
            yield
        finally:
            with self.waits.lock:
                self._watchers.discard(wake)

    def happened_locked(self) -> Callable[[], None]:
        """Wake all waiting threads; with the lock held. The caller calls the result after releasing the lock."""
        woken = self.waits.wake_locked(self.queue, len(self.queue))
        watchers = tuple(self._watchers)

        def tell() -> None:
            unpark_all(woken)
            for wake in watchers:
                wake()

        return tell


class Stream:
    """One pipe or event counter, as one of its open ends sees it.

    Its methods do not wait. `readable` and `writable` are called under the lock of `Waits`, the others take it.
    """

    name = "a stream"
    reads = False
    writes = False
    filetype = 0
    """What WASI calls its type; 0 is unknown."""
    seeks = False
    """Whether it has positions, all of which are 0."""
    most_bytes = MOST_BYTES
    """Bytes that one call reads or writes at most; what is behind them is left for the next call."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes

    def readable(self) -> bool:
        """Whether `read` would return or fail at once."""
        return True

    def writable(self, data: bytes | None) -> bool:  # noqa: ARG002  most need not know
        """Whether `write` would take some of `data` (None: of a little), or fail, at once."""
        return True

    def available(self) -> int:
        """Bytes that can be read."""
        return 0

    def hung_up(self) -> bool:
        """Whether the other end is closed."""
        return False

    def read(self, size: int) -> bytes | Errno:  # noqa: ARG002
        """Return at most `size` bytes; no bytes are the end of the stream.

        Returns AGAIN when there is nothing to read yet, BADF for an end that cannot be read.
        """
        return Errno.BADF

    def write(self, data: bytes) -> int | Errno:  # noqa: ARG002
        """Write bytes; return how many were written.

        Returns AGAIN when there is no room, BADF for an end that cannot be written, PIPE when no reader is left.
        """
        return Errno.BADF

    def close(self) -> None:
        """Close this end: no descriptor refers to it any longer."""


class _Pipe:
    """What both ends of a pipe share.

    Its capacity is taken from the budget for as long as one of its ends is open, so that a write never fails for want of it.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.data = bytearray()
        self.reader_open = True
        self.writer_open = True

    def closed_one(self) -> None:
        """Give the capacity back if both ends are closed."""
        if not self.reader_open:
            self.data.clear()
        if not (self.reader_open or self.writer_open):
            self._budget.give(PIPE_CAPACITY)


class PipeReader(Stream):
    """The end of a pipe that is read."""

    name = "a pipe"
    reads = True

    def __init__(self, changes: Changes, pipe: _Pipe) -> None:
        super().__init__(changes)
        self._pipe = pipe

    @override
    def readable(self) -> bool:
        return bool(self._pipe.data) or not self._pipe.writer_open

    @override
    def available(self) -> int:
        return len(self._pipe.data)

    @override
    def hung_up(self) -> bool:
        return not self._pipe.writer_open

    @override
    def read(self, size: int) -> bytes | Errno:
        pipe = self._pipe
        with self._changes.waits.lock:
            if not pipe.data:
                return Errno.AGAIN if pipe.writer_open and size else b""
            taken = bytes(pipe.data[:size])
            del pipe.data[:size]
            tell = self._changes.happened_locked()
        tell()
        return taken

    @override
    def close(self) -> None:
        with self._changes.waits.lock:
            self._pipe.reader_open = False
            self._pipe.closed_one()
            tell = self._changes.happened_locked()
        tell()


class PipeWriter(Stream):
    """The end of a pipe that is written."""

    name = "a pipe"
    writes = True

    def __init__(self, changes: Changes, pipe: _Pipe) -> None:
        super().__init__(changes)
        self._pipe = pipe

    @override
    def writable(self, data: bytes | None) -> bool:
        room = PIPE_CAPACITY - len(self._pipe.data)
        size = PIPE_ATOMIC if data is None else len(data)
        return not self._pipe.reader_open or room >= (size if size <= PIPE_ATOMIC else 1)

    @override
    def hung_up(self) -> bool:
        return not self._pipe.reader_open

    @override
    def write(self, data: bytes) -> int | Errno:
        pipe = self._pipe
        with self._changes.waits.lock:
            if not pipe.reader_open:
                return Errno.PIPE
            if not self.writable(data):
                return Errno.AGAIN
            taken = data[: PIPE_CAPACITY - len(pipe.data)]
            pipe.data += taken
            tell = self._changes.happened_locked()
        tell()
        return len(taken)

    @override
    def close(self) -> None:
        with self._changes.waits.lock:
            self._pipe.writer_open = False
            self._pipe.closed_one()
            tell = self._changes.happened_locked()
        tell()


def pipe(changes: Changes, budget: Budget) -> tuple[PipeReader, PipeWriter]:
    """Make a pipe; return the end to read and the end to write.

    Raises:
        ErrnoError: NFILE, the budget has not `PIPE_CAPACITY` bytes left (pipe(2): "the limit on memory that can be allocated
            for pipes").
    """
    if not budget.take(PIPE_CAPACITY):
        raise ErrnoError(Errno.NFILE)
    shared = _Pipe(budget)
    return PipeReader(changes, shared), PipeWriter(changes, shared)


class EventCounter(Stream):
    """A 64-bit counter: a write adds to it, a read takes all of it, or one as from a semaphore (Linux, eventfd)."""

    name = "an event"
    reads = True
    writes = True
    most_bytes = _EVENT_BYTES  # one call adds or takes one number (eventfd(2))

    def __init__(self, changes: Changes, value: int, *, semaphore: bool) -> None:
        super().__init__(changes)
        self._value = value
        self._semaphore = semaphore

    @override
    def readable(self) -> bool:
        return self._value > 0

    @override
    def writable(self, data: bytes | None) -> bool:
        added = 1 if data is None else int.from_bytes(data[:_EVENT_BYTES], "little")
        return added > _EVENT_MAXIMUM or self._value + added <= _EVENT_MAXIMUM

    @override
    def available(self) -> int:
        return _EVENT_BYTES if self._value else 0

    @override
    def read(self, size: int) -> bytes | Errno:
        if size < _EVENT_BYTES:
            return Errno.INVAL
        with self._changes.waits.lock:
            if not self._value:
                return Errno.AGAIN
            taken = 1 if self._semaphore else self._value
            self._value -= taken
            tell = self._changes.happened_locked()
        tell()
        return taken.to_bytes(_EVENT_BYTES, "little")

    @override
    def write(self, data: bytes) -> int | Errno:
        if len(data) < _EVENT_BYTES:
            return Errno.INVAL
        added = int.from_bytes(data[:_EVENT_BYTES], "little")
        if added > _EVENT_MAXIMUM:
            return Errno.INVAL
        with self._changes.waits.lock:
            if self._value + added > _EVENT_MAXIMUM:
                return Errno.AGAIN
            self._value += added
            tell = self._changes.happened_locked()
        tell()
        return _EVENT_BYTES
