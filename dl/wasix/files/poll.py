"""`poll_oneoff`: wait until one of several descriptors is ready or a time has come.

WASI's own function would wait inside the engine, where nothing can interrupt it and where it would block every other thread's
WASI calls. This one waits in `threads.Waits`. Files are always ready, streams when they say so, and standard
input when the host's descriptor is.
"""

from __future__ import annotations

import time

from dl.records import dataclass
from dl.wasix.abi import Errno, ErrnoError
from dl.wasix.clocks import MONOTONIC, REALTIME
from dl.wasix.files.descriptors import OpenFile
from dl.wasix.files.files import Files
from threads import Waiter

CLOCK, READ, WRITE = 0, 1, 2
_ABSOLUTE = 1
_HANGUP = 1
_EVENT_BYTES = 32
_MOST_SUBSCRIPTIONS = 1 << 16
_ONE_BYTE = 1


@dataclass(frozen=True)
class Layout:
    """Where the fields of a subscription are, bytes; those of WASI's two snapshots differ."""

    size: int
    clock: str

    def read_clock(self, files: Files, address: int) -> tuple[int, int, int]:
        """Return clock, time in nanoseconds, and flags of a clock's subscription."""
        clock, timeout, flags = files.memory.read_struct(self.clock, address)
        return clock, timeout, flags


PREVIEW1_LAYOUT = Layout(48, "16xI4xQ8xH")
SNAPSHOT0_LAYOUT = Layout(56, "24xI4xQ8xH")


@dataclass
class _Subscription:
    userdata: bytes
    kind: int
    file: OpenFile | None = None
    deadline: int = 0
    error: Errno = Errno.SUCCESS


@dataclass(frozen=True)
class _Happened:
    subscription: _Subscription
    size: int = 0
    flags: int = 0


class Poll:
    """The calls of one program."""

    def __init__(self, files: Files, layout: Layout) -> None:
        self._files = files
        self._layout = layout

    def __call__(self, subscriptions: int, events: int, count: int, out: int) -> int:
        """`poll_oneoff`.

        Raises:
            OutOfBoundsError: an address is outside the memory; nothing was waited for.
        """
        files = self._files
        if not 0 < count <= _MOST_SUBSCRIPTIONS:
            return Errno.INVAL
        files.memory.read(events, count * _EVENT_BYTES)
        files.memory.read(out, 4)
        wanted = [self._read(subscriptions + i * self._layout.size) for i in range(count)]
        happened = self._wait(wanted)
        if happened is None:
            return Errno.INTR
        for position, event in enumerate(happened):
            self._write(events + position * _EVENT_BYTES, event)
        files.memory.write_u32(out, len(happened))
        return Errno.SUCCESS

    def _read(self, address: int) -> _Subscription:
        memory = self._files.memory
        wanted = _Subscription(memory.read(address, 8), memory.read_u8(address + 8))
        try:
            if wanted.kind == CLOCK:
                wanted.deadline = self._deadline(address)
            elif wanted.kind in (READ, WRITE):
                wanted.file = self._files.file(memory.read_i32(address + 16))
            else:
                wanted.error = Errno.INVAL
        except ErrnoError as error:
            wanted.error = error.errno
        return wanted

    def _deadline(self, address: int) -> int:
        """Return when a clock's subscription is due, in nanoseconds of our own monotonic clock."""
        clock, timeout, flags = self._layout.read_clock(self._files, address)
        if clock not in (REALTIME, MONOTONIC):
            raise ErrnoError(Errno.INVAL)
        now = time.monotonic_ns()
        if not flags & _ABSOLUTE:
            return now + timeout
        return now + timeout - self._files.clocks.now(clock)

    def _wait(self, wanted: list[_Subscription]) -> list[_Happened] | None:
        """Return what has happened, at least one thing; None if a signal came first."""
        files = self._files
        deadline = min((w.deadline for w in wanted if w.kind == CLOCK and not w.error), default=None)
        host = next(
            (w.file for w in wanted if w.kind == READ and w.file and w.file.host_input is not None), None
        )
        streams = any(w.file and w.file.stream for w in wanted)
        what = "one of several descriptors" if streams else "a time to come"
        queue = files.changes.queue if streams else {}

        def ready() -> bool:
            return any(self._look(w, time.monotonic_ns()) for w in wanted)

        def body(waiter: Waiter) -> bool:
            remaining = None if deadline is None else deadline - time.monotonic_ns()
            if host is None:
                files.waits.wait(waiter, what, lambda: None if ready() else queue, remaining)
                return True
            assert host.host_input is not None
            with files.changes.watched(files.host_input.bell().ring):
                with files.waits.lock:
                    already = ready()
                return already or files.host_input.wait(waiter, host.host_input, what, remaining)

        while True:
            now = time.monotonic_ns()
            with files.waits.lock:
                happened = [event for w in wanted if (event := self._look(w, now))]
            if happened:
                return happened
            if files.signals.interrupted(body) is None:
                return None

    def _look(self, wanted: _Subscription, now: int) -> _Happened | None:
        """Return what a subscription's event is, if it has happened; under the lock of `Waits`."""
        file = wanted.file
        if wanted.error:
            return _Happened(wanted)
        if wanted.kind == CLOCK:
            return _Happened(wanted) if wanted.deadline <= now else None
        assert file is not None
        stream = file.stream
        if wanted.kind == READ and file.host_input is not None:
            return _Happened(wanted, _ONE_BYTE) if self._files.host_input.ready(file.host_input) else None
        if stream is None:
            return _Happened(wanted, _ONE_BYTE)
        ready = stream.readable() if wanted.kind == READ else stream.writable(None)
        if not ready:
            return None
        size = stream.available() if wanted.kind == READ else _ONE_BYTE
        return _Happened(wanted, size, _HANGUP if stream.hung_up() else 0)

    def _write(self, address: int, event: _Happened) -> None:
        wanted = event.subscription
        self._files.memory.write(address, wanted.userdata)
        self._files.memory.write_struct(
            "HB5xQH6x", address + 8, wanted.error, wanted.kind, event.size, event.flags
        )
