"""Regular files that the host has open for the guest, without the engine: opened beneath a directory by one system call.

The engine's WASI hands each call on a file to a thread of its own and waits for it, which takes ten times as long as the
system call, and its files are in one context, which one thread calls at a time. So regular files in the directories that the
host gave are opened here, and read and written by the calling thread.

The kernel is what confines them: `openat2` with `RESOLVE_BENEATH` refuses every path that leads out of its directory, by `..`
or by a link, at each step of its walk, and with `RESOLVE_NO_MAGICLINKS` the links of `/proc`. The engine opens its files with
the same call. Nothing is decided here but success: whatever the kernel refuses is asked of the engine, whose answer counts.

Linux only (openat2 since 5.6); elsewhere all files are the engine's.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from functools import lru_cache
from typing import Any

from dl.records import dataclass
from dl.wasix.abi import Errno
from memory import Uncopied

APPEND, NONBLOCK = 1, 4
"""Flags of descriptors (the witx type `fdflags`) that a regular file of the host can have."""

_OPENAT2 = 437
_RESOLVE = 0x08 | 0x02
"""RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS: linux/openat2.h."""
_EMPTY_PATH, _BASIC_AND_BIRTH = 0x1000, 0xFFF
_STATUS_BYTES = 256
_UTIME_NOW, _UTIME_OMIT = 0x3FFFFFFF, 0x3FFFFFFE
_SECOND_NS = 1_000_000_000
_MOST_PATH_BYTES = 4095

_CREATE, _EXCLUSIVE, _TRUNCATE = 1, 4, 8
_FOLLOW = 1
_RIGHT_READ, _RIGHT_WRITE = 1 << 1, 1 << 6

_IS_LINUX = sys.platform == "linux"
_LOOK = getattr(os, "O_PATH", 0) | os.O_CLOEXEC
_OPEN = os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)


class _C:
    """Functions of the C library that Python does not have."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        self.syscall = library.syscall
        self.syscall.argtypes = (
            ctypes.c_long,
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_void_p,
            ctypes.c_size_t,
        )
        self.syscall.restype = ctypes.c_long
        self.statx = library.statx
        self.statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
        self.futimens = library.futimens
        self.futimens.argtypes = (ctypes.c_int, ctypes.c_void_p)


@lru_cache(maxsize=1)
def _c() -> _C | None:
    """Return the C library's functions; None where they are not all there, or their structures have other layouts."""
    try:
        return _C() if _IS_LINUX and ctypes.sizeof(ctypes.c_long) == ctypes.sizeof(ctypes.c_uint64) else None
    except (AttributeError, OSError):
        return None


@lru_cache(maxsize=256)
def _how(flags: int, mode: int) -> Any:
    """Return the `struct open_how` of a call; it is never changed."""
    return (ctypes.c_uint64 * 3)(flags, mode, _RESOLVE)


def _failed() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


class HostDirectory(Uncopied):
    """A directory that the host gave the program, held open; closed with its last reference.

    Args:
        path: its path on the host.

    Raises:
        OSError: it is no directory, or this system cannot hold it so.
    """

    def __init__(self, path: str) -> None:
        if _c() is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        self._fd = os.open(path, _LOOK | os.O_DIRECTORY)

    def __del__(self, _close: Any = os.close) -> None:
        # The default is there for the interpreter's end, when modules have lost their names.
        if "_fd" in self.__dict__:
            _close(self._fd)

    def open(self, path: bytes, lookup: int, oflags: int, rights: int, flags: int) -> HostFile | Errno | None:
        """Open a regular file as `path_open` would.

        Args:
            path: a relative path.
            lookup: preview 1's `lookupflags`.
            oflags: preview 1's `oflags`.
            rights: preview 1's `rights`.
            flags: preview 1's `fdflags`.

        Returns:
            The file; NOENT if there is none and none is to be made; NOTSUP for a named pipe: the engine reads at offsets only,
            and its opening waits for the other end, where nothing can interrupt it; None if this is not for the host to
            decide: it is no regular file, the kernel refuses it, or the arguments are none that are known here.
        """
        form, way = _form(path), _way(lookup, oflags, rights, flags)
        if form is None or way is None:
            return None
        try:
            # Looked at before it is opened: opening a pipe or a device does something.
            mode = 0 if way.is_new else self._look(path, way.follow, form)
            if mode is None:
                if not way.creates:
                    return Errno.NOENT
            elif mode and not stat.S_ISREG(mode):
                return Errno.NOTSUP if self._is_pipe(path, mode, way.follow) else None
            if form is _Form.NAME:
                # A name, which is no link: it cannot lead out. A link ends in an error, and is the engine's.
                fd = os.open(path, way.wanted | os.O_NOFOLLOW, 0o666, dir_fd=self._fd)
            else:
                fd = self._beneath(path, way.wanted | way.follow, 0o666 if way.creates else 0)
            file = HostFile(fd, reads=way.reads, writes=way.writes, flags=flags)
            # It may have been swapped meanwhile; then it is closed again.
            return file if stat.S_ISREG(os.fstat(fd).st_mode) else None
        except OSError:
            return None

    def _look(self, path: bytes, follow: int, form: int) -> int | None:
        """Return the mode of what a path leads to; None if there is nothing."""
        try:
            if form is _Form.NAME:
                return os.stat(path, dir_fd=self._fd, follow_symlinks=False).st_mode
            fd = self._beneath(path, _LOOK | follow)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        try:
            return os.fstat(fd).st_mode
        finally:
            os.close(fd)

    def _is_pipe(self, path: bytes, mode: int, follow: int) -> bool:
        """Return whether a path, of which the mode is known, leads to a named pipe."""
        if stat.S_ISLNK(mode) and not follow:
            fd = self._beneath(path, _LOOK)
            try:
                mode = os.fstat(fd).st_mode
            finally:
                os.close(fd)
        return stat.S_ISFIFO(mode)

    def _beneath(self, path: bytes, flags: int, mode: int = 0) -> int:
        """Open what a path leads to in this directory, and nowhere else.

        Raises:
            OSError: the kernel refuses it.
        """
        how = _how(flags, mode)
        native = _c()
        assert native is not None
        fd: int = native.syscall(_OPENAT2, self._fd, path, ctypes.addressof(how), 24)
        if fd < 0:
            raise _failed()
        return fd


class _Form:
    """What a path looks like."""

    NAME = 1
    PATH = 2


@lru_cache(maxsize=256)
def _form(path: bytes) -> int | None:
    """Return the form of a path that the engine reads as the kernel does: relative, of UTF-8, ending in a name; else None."""
    if not 0 < len(path) <= _MOST_PATH_BYTES or path[:1] == b"/" or path[-1:] == b"/" or b"\0" in path:
        return None
    parts = path.split(b"/")
    if b".." in parts or parts[-1] == b".":
        return None
    try:
        path.decode()
    except UnicodeDecodeError:
        return None
    return _Form.NAME if len(parts) == 1 else _Form.PATH


@dataclass(frozen=True)
class _Way:
    """How a file is opened.

    Attributes:
        reads, writes: what may be done with it.
        creates: whether it is made if there is none.
        is_new: whether there must be none.
        wanted: flags of the host, but for `follow`.
        follow: whether a link at the end is followed: 0, or O_NOFOLLOW.
    """

    reads: bool
    writes: bool
    creates: bool
    is_new: bool
    wanted: int
    follow: int


@lru_cache(maxsize=256)
def _way(lookup: int, oflags: int, rights: int, flags: int) -> _Way | None:
    """Return how `path_open` opens a regular file; None if the engine is to answer."""
    if lookup & ~_FOLLOW or oflags & ~(_CREATE | _EXCLUSIVE | _TRUNCATE) or flags & ~(APPEND | NONBLOCK):
        return None
    # The engine's rule: what is created or truncated can be written, and what is not to be written can be read.
    writes = bool(rights & _RIGHT_WRITE or oflags & (_CREATE | _TRUNCATE))
    reads = bool(rights & _RIGHT_READ or not rights & _RIGHT_WRITE)
    creates, is_new = bool(oflags & _CREATE), oflags & (_CREATE | _EXCLUSIVE) == _CREATE | _EXCLUSIVE
    wanted = _OPEN | ((os.O_RDWR if reads else os.O_WRONLY) if writes else os.O_RDONLY)
    wanted |= (os.O_TRUNC if oflags & _TRUNCATE else 0) | (os.O_APPEND if flags & APPEND else 0)
    wanted |= (os.O_CREAT if creates else 0) | (os.O_EXCL if is_new else 0)
    return _Way(reads, writes, creates, is_new, wanted, 0 if lookup & _FOLLOW else os.O_NOFOLLOW)


@dataclass(frozen=True)
class FileStatus:
    """What `fd_filestat_get` says of a regular file.

    Attributes:
        inode: the number by which the engine's WASI knows the file.
        links: hard links.
        size: bytes.
        accessed, modified, made: nanoseconds since 1970; `made` is what the engine's WASI tells for the last change of status.
    """

    inode: int
    links: int
    size: int
    accessed: int
    modified: int
    made: int


class HostFile(Uncopied):
    """A regular file of the host's, open; closed with its last reference.

    Who calls it holds a reference, so the number of its descriptor is no other file's while a call is under way, whatever
    other threads close.

    Args:
        fd: the descriptor, which it owns.
        reads: whether it was opened for reading.
        writes: whether it was opened for writing.
        flags: preview 1's `fdflags`.

    Attributes:
        fd, reads, writes, flags: as given; `flags` as it was last set.
    """

    def __init__(self, fd: int, *, reads: bool, writes: bool, flags: int) -> None:
        self.fd = fd
        self.reads = reads
        self.writes = writes
        self.flags = flags
        self._inode: int | None = None

    def __del__(self, _close: Any = os.close) -> None:
        # The default is there for the interpreter's end, when modules have lost their names.
        _close(self.fd)

    def set_flags(self, flags: int) -> None:
        """Set preview 1's `fdflags`: `APPEND` and `NONBLOCK`, the only ones there are."""
        import fcntl  # noqa: PLC0415  for this alone

        fcntl.fcntl(self.fd, fcntl.F_SETFL, os.O_NONBLOCK | (os.O_APPEND if flags & APPEND else 0))
        self.flags = flags

    def status(self) -> FileStatus:
        """Return its status.

        Raises:
            OSError: the host cannot tell it.
        """
        native = _c()
        assert native is not None
        area = ctypes.create_string_buffer(_STATUS_BYTES)
        if native.statx(self.fd, b"", _EMPTY_PATH, _BASIC_AND_BIRTH, ctypes.addressof(area)):
            raise _failed()

        def number(offset: int, size: int = 8) -> int:
            return int.from_bytes(area.raw[offset : offset + size], sys.byteorder)

        def time(offset: int) -> int:
            seconds = int.from_bytes(area.raw[offset : offset + 8], sys.byteorder, signed=True)
            return seconds * _SECOND_NS + number(offset + 8, 4)

        if self._inode is None:
            status = os.fstat(self.fd)
            self._inode = engine_inode(status.st_dev, status.st_ino)
        return FileStatus(self._inode, number(16, 4), number(40), time(64), time(112), time(80))

    def set_times(self, accessed: int | None, modified: int | None) -> None:
        """Set times, nanoseconds since 1970; -1 is now, None leaves one as it is.

        Raises:
            OSError: the host refuses.
        """
        native = _c()
        assert native is not None
        area = (ctypes.c_long * 4)()
        for position, time in ((0, accessed), (2, modified)):
            if time is None or time < 0:
                area[position + 1] = _UTIME_OMIT if time is None else _UTIME_NOW
            else:
                area[position], area[position + 1] = divmod(time, _SECOND_NS)
        if native.futimens(self.fd, ctypes.addressof(area)):
            raise _failed()


_64 = (1 << 64) - 1


def engine_inode(device: int, inode: int) -> int:
    """Return the number by which the engine's WASI knows a file: the hash of Rust's `DefaultHasher` over device and inode.

    That is SipHash-1-3 with a key of zeros. Files that are opened here must have the numbers that the engine tells for their
    paths, by which programs find out whether two of them are the same.
    """
    a, b, c, d = 0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573

    def mixed(a: int, b: int, c: int, d: int) -> tuple[int, int, int, int]:
        a, c = (a + b) & _64, (c + d) & _64
        b, d = _rotated(b, 13) ^ a, _rotated(d, 16) ^ c
        a = _rotated(a, 32)
        c, a = (c + b) & _64, (a + d) & _64
        b, d = _rotated(b, 17) ^ c, _rotated(d, 21) ^ a
        return a, b, _rotated(c, 32), d

    for word in (device, inode, 16 << 56):  # the last one says that there were 16 bytes
        a, b, c, d = mixed(a, b, c, d ^ word)
        a ^= word
    c ^= 0xFF
    for _ in range(3):
        a, b, c, d = mixed(a, b, c, d)
    return a ^ b ^ c ^ d


def _rotated(word: int, bits: int) -> int:
    return (word << bits | word >> 64 - bits) & _64


def host_errno(error: OSError) -> Errno:
    """Return the guest's number for an error of the host's; IO for one that it has no number for."""
    name = errno.errorcode.get(error.errno or 0, "")[1:]
    found: Errno = vars(Errno).get(name, Errno.IO)
    return found
