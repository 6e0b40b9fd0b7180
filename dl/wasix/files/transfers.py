"""`fd_read` and `fd_write`: of WASI's files under its lock, of streams and standard input with no lock held while they wait."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from dl.program.wasi import WasiCalls
from dl.wasix.abi import Errno, ErrnoError
from dl.wasix.files.descriptors import OpenFile
from dl.wasix.files.files import Files
from dl.wasix.files.regular import IOVEC_BYTES, taken_buffers
from dl.wasix.files.streams import MOST_BYTES
from dl.wasix.signals import SIGPIPE
from threads import Waiter

_MOST_WRITTEN = (1 << 32) - 1
"""Bytes that the answer to a call can count."""


class Transfers:
    """Reading and writing of one program's files."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._reading_host = threading.Lock()  # two threads that saw one byte come must not both read

    def _pieces(self, iovecs: int, count: int) -> list[tuple[int, int]]:
        """Return addresses and sizes, in bytes, of a call's buffers, the empty ones left out, and those that are too many."""
        count = taken_buffers(self._files.memory, iovecs, count)
        flat = self._files.memory.read_struct(f"{2 * count}I", iovecs)
        return [piece for piece in zip(flat[::2], flat[1::2], strict=True) if piece[1]]

    def _scatter(self, pieces: list[tuple[int, int]], data: bytes, out: int) -> int:
        start = 0
        for address, size in pieces:
            if start >= len(data):
                break
            self._files.memory.write(address, data[start : start + size])
            start += size
        self._files.memory.write_u32(out, len(data))
        return Errno.SUCCESS

    def _gather(self, pieces: list[tuple[int, int]], most: int) -> bytes:
        data = bytearray()
        for address, size in pieces:
            data += self._files.memory.read(address, min(size, most - len(data)))
        return bytes(data)

    def _check_pieces(self, pieces: list[tuple[int, int]], out: int) -> int:
        """Check that all of a call's memory is there, before anything is taken; return how many bytes fit."""
        self._files.memory.read(out, 4)
        end = self._files.memory.size
        if any(address + size > end for address, size in pieces):
            raise ErrnoError(Errno.MEMVIOLATION)
        return sum(size for _, size in pieces)

    def read(self, number: int, iovecs: int, count: int, out: int) -> int:
        """`fd_read`."""
        host = self._files.file(number).host
        if host is not None:
            return self._files.regular.read(host, iovecs, count, out)
        wasi = self._files.wasi
        with wasi.lock:
            file = self._files.table.file(number)
            if file.wasi is not None and file.host_input is None:
                return wasi.call("fd_read", file.wasi, iovecs, count, out)
            file.references += 1
        try:
            pieces = self._pieces(iovecs, count)
            size = self._check_pieces(pieces, out)
            data = self._read_stream(file, size) if file.host_input is None else self._read_host(file, size)
            return data if isinstance(data, Errno) else self._scatter(pieces, data, out)
        finally:
            self._files.done_with(file)

    def _read_host(self, file: OpenFile, size: int) -> bytes | Errno:
        descriptor = file.host_input
        assert descriptor is not None
        while True:
            with self._reading_host:
                if not size or self._files.host_input.ready(descriptor):
                    try:
                        return os.read(descriptor, min(size, MOST_BYTES))
                    except BlockingIOError:
                        pass  # another process took it
                    except OSError:
                        return Errno.IO
            if file.nonblocking:
                return Errno.AGAIN
            waited = self._files.signals.interrupted(
                lambda waiter: self._files.host_input.wait(waiter, descriptor, "standard input")
            )
            if waited is None:
                return Errno.INTR

    def _read_stream(self, file: OpenFile, size: int) -> bytes | Errno:
        stream = file.stream
        assert stream is not None
        if not stream.reads:
            return Errno.BADF
        while True:
            data = stream.read(min(size, stream.most_bytes))
            if data is not Errno.AGAIN or file.nonblocking:
                return data
            if not self._wait_for(f"{stream.name} to be written", stream.readable):
                return Errno.INTR

    def _wait_for(self, what: str, ready: Callable[[], bool]) -> bool:
        """Wait for a change of any stream, unless one is ready; returns False if a signal came first."""

        def body(waiter: Waiter) -> bool:
            self._files.waits.wait(waiter, what, lambda: None if ready() else self._files.changes.queue)
            return True

        return self._files.signals.interrupted(body) is not None

    def write(self, number: int, iovecs: int, count: int, out: int) -> int:
        """`fd_write`: all of one call is written together, whatever other threads write."""
        host = self._files.file(number).host
        if host is not None:
            return self._files.regular.write(host, iovecs, count, out)
        wasi = self._files.wasi
        with wasi.lock:
            file = self._files.table.file(number)
            if file.wasi is not None:
                return self._write_wasi(wasi, file.wasi, iovecs, count, out)
            file.references += 1
        try:
            pieces = self._pieces(iovecs, count)
            self._check_pieces(pieces, out)
            assert file.stream is not None
            written = self._write_stream(file, self._gather(pieces, file.stream.most_bytes))
            if isinstance(written, Errno):
                return written
            self._files.memory.write_u32(out, written)
            return Errno.SUCCESS
        finally:
            self._files.done_with(file)

    def _write_wasi(self, wasi: WasiCalls, number: int, iovecs: int, count: int, out: int) -> int:
        """Write all buffers of a call; the engine's function takes one at a time."""
        if count <= 1:
            return wasi.call("fd_write", number, iovecs, count, out)
        count = taken_buffers(self._files.memory, iovecs, count)
        sizes = self._files.memory.read_struct(f"{2 * count}I", iovecs)[1::2]
        total = position = 0
        while position < count:
            if not sizes[position]:
                position += 1
                continue
            if total + sizes[position] > _MOST_WRITTEN:
                break
            error = wasi.call("fd_write", number, iovecs + position * IOVEC_BYTES, count - position, out)
            if error:
                if total:
                    break
                return error
            written = self._files.memory.read_u32(out)
            total += written
            if written < sizes[position]:
                break  # part of a buffer: the caller asks again for the rest
            while position < count and written >= sizes[position]:
                written -= sizes[position]
                position += 1
        self._files.memory.write_u32(out, total)
        return Errno.SUCCESS

    def _write_stream(self, file: OpenFile, data: bytes) -> int | Errno:
        stream = file.stream
        assert stream is not None
        if not stream.writes:
            return Errno.BADF
        total = 0
        while True:
            rest = data[total:]
            taken = stream.write(rest)
            if taken is Errno.PIPE:
                self._files.signals.send_to_caller(SIGPIPE)
            if not isinstance(taken, Errno):
                total += taken
                if total >= len(data) or file.nonblocking or (not taken and not rest):
                    return total
                continue
            if taken is not Errno.AGAIN or file.nonblocking:
                return total or taken
            if not self._wait_for(f"room in {stream.name}", lambda: stream.writable(rest)):  # noqa: B023
                return total or Errno.INTR
