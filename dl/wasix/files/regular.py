"""Calls on regular files that the host has open for the guest: one system call each, by the calling thread, with no lock held.

A descriptor is looked up once, and the file that it means then is kept by the call. Errors are those of the system call, or
what the engine's WASI answers where it makes none.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

from dl.wasix.abi import Errno
from dl.wasix.files.host_files import APPEND, NONBLOCK, HostFile, host_errno

if TYPE_CHECKING:
    from dl.engine.protocol import Slots
    from dl.wasix.files.files import Files
    from memory import LinearMemory

Call = Callable[[HostFile, "Slots"], int]

MOST_BUFFERS = 1024
"""Buffers of one call (Linux, IOV_MAX); what is in others is left for the next call, as a read or write may."""

IOVEC_BYTES = 8
"""Of a list of buffers, the bytes of one: its address and its size."""

_MOST_OFFSET = (1 << 63) - 1
_REGULAR_FILE = 4
_RIGHTS = 0x3FFFFFFF
_NOT_READABLE, _NOT_WRITABLE = 0x4002, 0x40
"""The rights that the engine's WASI takes from a file that was not opened for reading, and writing."""
_ENGINE_DEVICE = 1
"""The device that the engine's WASI tells for every file."""
_WHENCE = (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END)
_ADVICE_COUNT = 6
_ATIM, _ATIM_NOW, _MTIM, _MTIM_NOW = 1, 2, 4, 8
_RECEIVE_FLAGS, _SHUTDOWN_FLAGS, _DESCRIPTOR_FLAGS = 3, 3, 31


def taken_buffers(memory: LinearMemory, address: int, count: int) -> int:
    """Return of how many buffers a call is made: as many as its list has, and not too many; all of the list must be in memory.

    Raises:
        OutOfBoundsError: it is not.
    """
    if count <= MOST_BUFFERS:
        return count  # whoever reads the list finds out
    memory.borrow(address, count * IOVEC_BYTES)
    return MOST_BUFFERS


Answer = TypeVar("Answer", bound=Callable[..., int])


def _with_errno(function: Answer) -> Answer:
    """Make a function answer with the guest's number for an error of the host's."""

    @wraps(function)
    def call(*arguments: Any) -> int:
        try:
            return function(*arguments)
        except OSError as error:
            return host_errno(error)

    return cast("Answer", call)


class RegularFiles:
    """Calls on the host's files of one program.

    Attributes:
        calls: by name, functions that work on slots and whose first argument is the descriptor; each returns an errno.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._memory: LinearMemory | None = None
        self.calls: dict[str, Call] = {
            "fd_advise": self._advise,
            "fd_allocate": lambda _file, _slots: Errno.NOTSUP,
            "fd_datasync": self._datasync,
            "fd_fdstat_set_rights": lambda _file, slots: (
                Errno.INVAL if (slots.u64(1) | slots.u64(2)) & ~_RIGHTS else Errno.NOTSUP
            ),
            "fd_filestat_set_size": self._set_size,
            "fd_filestat_set_times": self._set_times,
            "fd_pread": self._pread,
            "fd_prestat_dir_name": lambda _file, _slots: Errno.NOTDIR,
            "fd_prestat_get": lambda _file, _slots: Errno.BADF,
            "fd_pwrite": self._pwrite,
            "fd_readdir": lambda _file, _slots: Errno.BADF,
            "fd_seek": lambda file, slots: self.seek(file, slots.u64(1), slots.u32(2), slots.u32(3)),
            "fd_sync": self._sync,
            "fd_tell": lambda file, slots: self.seek(file, 0, 1, slots.u32(1)),
            "path_open": lambda _file, _slots: Errno.NOTDIR,
            "sock_accept": lambda _file, slots: _no_socket(slots.u32(1), _DESCRIPTOR_FLAGS),
            "sock_recv": lambda _file, slots: _no_socket(slots.u32(3), _RECEIVE_FLAGS),
            "sock_send": lambda _file, _slots: Errno.NOTSOCK,
            "sock_shutdown": lambda _file, slots: _no_socket(slots.u32(1), _SHUTDOWN_FLAGS),
        }

    def call(self, name: str, file: HostFile, slots: Slots) -> None:
        """Call a function on a file; its errno is in the first slot then. What takes a path has no directory in a file."""
        answer = self.calls.get(name)
        slots.set_32(0, Errno.BADF if answer is None else answer(file, slots))

    @property
    def memory(self) -> LinearMemory:
        """The program's memory."""
        memory = self._memory
        if memory is None:
            memory = self._memory = self._files.memory
        return memory

    def _buffers(self, address: int, count: int) -> list[memoryview]:
        memory = self.memory
        if count == 1:
            at, size = memory.read_struct("2I", address)
            return [memory.borrow(at, size)]
        count = taken_buffers(memory, address, count)
        flat = memory.read_struct(f"{2 * count}I", address)
        return [memory.borrow(at, size) for at, size in zip(flat[::2], flat[1::2], strict=True)]

    def _move(
        self, move: Callable[..., int], file: HostFile, iovecs: int, count: int, out: int, *offset: int
    ) -> int:
        """Read or write by one system call, and say how many bytes that were; nothing is moved if that cannot be said."""
        buffers = self._buffers(iovecs, count)
        self.memory.borrow(out, 4)
        self.memory.write_u32(out, move(file.fd, buffers, *offset))
        return Errno.SUCCESS

    # on slots

    @_with_errno
    def _pread(self, file: HostFile, slots: Slots) -> int:
        offset, out = slots.u64(3), slots.u32(4)
        if offset > _MOST_OFFSET:
            return Errno.INVAL
        if not file.reads:
            return Errno.BADF
        return self._move(os.preadv, file, slots.u32(1), slots.u32(2), out, offset)

    @_with_errno
    def _pwrite(self, file: HostFile, slots: Slots) -> int:
        # What is appended has no offset (pwrite(2), BUGS), so none is wrong.
        offset, out = 0 if file.flags & APPEND else slots.u64(3), slots.u32(4)
        if offset > _MOST_OFFSET:
            return Errno.INVAL
        if not file.writes:
            return Errno.BADF
        return self._move(os.pwritev, file, slots.u32(1), slots.u32(2), out, offset)

    @_with_errno
    def _advise(self, file: HostFile, slots: Slots) -> int:
        offset, size, advice = slots.u64(1), slots.u64(2), slots.u32(3)
        if advice >= _ADVICE_COUNT or offset > _MOST_OFFSET or size > _MOST_OFFSET:
            return Errno.INVAL
        os.posix_fadvise(file.fd, offset, size, _ADVICE[advice])
        return Errno.SUCCESS

    @_with_errno
    def _datasync(self, file: HostFile, _slots: Slots) -> int:
        os.fdatasync(file.fd)
        return Errno.SUCCESS

    @_with_errno
    def _sync(self, file: HostFile, _slots: Slots) -> int:
        os.fsync(file.fd)
        return Errno.SUCCESS

    @_with_errno
    def _set_size(self, file: HostFile, slots: Slots) -> int:
        size = slots.u64(1)
        if not file.writes or size > _MOST_OFFSET:
            return Errno.INVAL
        os.ftruncate(file.fd, size)
        return Errno.SUCCESS

    @_with_errno
    def _set_times(self, file: HostFile, slots: Slots) -> int:
        flags = slots.u32(3)
        accessed = _time(slots.u64(1), given=flags & _ATIM, now=flags & _ATIM_NOW)
        modified = _time(slots.u64(2), given=flags & _MTIM, now=flags & _MTIM_NOW)
        known = _ATIM | _ATIM_NOW | _MTIM | _MTIM_NOW
        if flags & ~known or isinstance(accessed, Errno) or isinstance(modified, Errno):
            return Errno.INVAL
        file.set_times(accessed, modified)
        return Errno.SUCCESS

    # on typed values

    @_with_errno
    def seek(self, file: HostFile, offset: int, whence: int, out: int) -> int:
        """`fd_seek`, with the directions of preview 1; the offset is a signed one, given unsigned."""
        if whence >= len(_WHENCE):
            return Errno.INVAL
        self.memory.borrow(out, 8)
        offset -= (offset > _MOST_OFFSET) << 64
        self.memory.write_u64(out, os.lseek(file.fd, offset, _WHENCE[whence]))
        return Errno.SUCCESS

    @_with_errno
    def read(self, file: HostFile, iovecs: int, count: int, out: int) -> int:
        """`fd_read`."""
        if not file.reads:
            return Errno.BADF
        return self._move(os.readv, file, iovecs, count, out)

    @_with_errno
    def write(self, file: HostFile, iovecs: int, count: int, out: int) -> int:
        """`fd_write`: the kernel writes all buffers of a call together."""
        if not file.writes:
            return Errno.BADF
        return self._move(os.writev, file, iovecs, count, out)

    def fdstat_get(self, file: HostFile, out: int) -> int:
        """`fd_fdstat_get`."""
        rights = _RIGHTS & ~(0 if file.reads else _NOT_READABLE) & ~(0 if file.writes else _NOT_WRITABLE)
        self.memory.write_struct("BxH4xQQ", out, _REGULAR_FILE, file.flags, rights, rights)
        return Errno.SUCCESS

    @_with_errno
    def fdstat_set_flags(self, file: HostFile, flags: int) -> int:
        """`fd_fdstat_set_flags`."""
        if flags & ~(APPEND | NONBLOCK):
            return Errno.INVAL
        file.set_flags(flags)
        return Errno.SUCCESS

    @_with_errno
    def filestat_get(self, file: HostFile, out: int) -> int:
        """`fd_filestat_get`."""
        status = file.status()
        times = (status.accessed, status.modified, status.made)
        self.memory.write_struct(
            "QQB7xQQQQQ",
            out,
            _ENGINE_DEVICE,
            status.inode,
            _REGULAR_FILE,
            status.links,
            status.size,
            *(max(time, 0) for time in times),
        )
        return Errno.SUCCESS


_ADVICE = tuple(
    getattr(os, f"POSIX_FADV_{name}", 0)
    for name in ("NORMAL", "SEQUENTIAL", "RANDOM", "WILLNEED", "DONTNEED", "NOREUSE")
)
"""By the witx type `advice`."""


def _time(time: int, *, given: int, now: int) -> int | Errno | None:
    if given and now:
        return Errno.INVAL
    if now:
        return -1
    return time if given else None


def _no_socket(flags: int, known: int) -> Errno:
    return Errno.INVAL if flags & ~known else Errno.NOTSOCK
