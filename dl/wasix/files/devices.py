"""Files that a C library of WASIX expects under `/dev`: they belong to no directory of the host's.

They are found by their absolute path, in `path_open` and `path_filestat_get`, whatever directory the path begins at.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from dl.wasix.abi import Errno
from dl.wasix.files.overriding import override
from dl.wasix.files.streams import Changes, Stream

CHARACTER_DEVICE = 2


class Device(Stream):
    """A character device; it never waits, and any position in it is 0."""

    reads = True
    writes = True
    filetype = CHARACTER_DEVICE
    seeks = True

    @override
    def write(self, data: bytes) -> int | Errno:
        return len(data)


class Null(Device):
    """`/dev/null`: empty, and takes everything."""

    name = "/dev/null"

    @override
    def read(self, size: int) -> bytes | Errno:  # noqa: ARG002  the base class has it
        return b""


class Zero(Device):
    """`/dev/zero`: zeros without end."""

    name = "/dev/zero"

    @override
    def available(self) -> int:
        return self.most_bytes

    @override
    def read(self, size: int) -> bytes | Errno:
        return bytes(size)


class Random(Device):
    """`/dev/urandom`: the host's random bytes."""

    name = "/dev/urandom"

    @override
    def available(self) -> int:
        return self.most_bytes

    @override
    def read(self, size: int) -> bytes | Errno:
        return os.urandom(size)


class TerminalDevice(Device):
    """`/dev/tty`: the host's terminal. Reading is that of standard input, which whoever opens this arranges.

    Args:
        changes: what waits for streams wait in.
        output: the host's descriptor to write to.
    """

    name = "/dev/tty"
    seeks = False

    def __init__(self, changes: Changes, output: int) -> None:
        super().__init__(changes)
        self._output = output

    @override
    def write(self, data: bytes) -> int | Errno:
        try:
            return os.write(self._output, data)
        except BlockingIOError:
            return Errno.AGAIN
        except OSError:
            return Errno.IO


DEVICES: dict[bytes, Callable[[Changes], Device]] = {
    b"/dev/null": Null,
    b"/dev/random": Random,
    b"/dev/urandom": Random,
    b"/dev/zero": Zero,
}
"""Devices that every host has, by their path."""

TERMINAL = b"/dev/tty"

LONGEST = 256
"""Longer paths, in bytes, are not looked at: no spelling of a device's name needs more."""


def terminal_output() -> int | None:
    """Return the host's descriptor of standard output or error that is a terminal; None if neither is one."""
    for number in (2, 1):
        with contextlib.suppress(OSError):
            if os.isatty(number):
                return number
    return None
