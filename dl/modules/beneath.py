"""Opening a file beneath a directory: one walk, of which every step is checked on an open descriptor.

A path is walked component by component from the root of the host's file system. Each component is opened in the directory
that the step before it opened, without following links (`openat` with `O_NOFOLLOW`), so a directory or link that is swapped
meanwhile is either the old one or the new one, never a mixture. Links are read here and continue the same walk.

The walk is *confined* once it has entered its root, or a directory that the guest can write to. From then on a `..` or a link
that leads out ends it with `EXDEV`, before anything outside is looked at: what is outside changes neither the answer nor the
steps taken. An absolute link is followed in a confined walk only if its text begins with the path of the directory that
confines it, which is a comparison of texts.

A file that the host names, in a program whose guest has no directories, is walked by the kernel: nothing confines that walk.

Linux only: descriptors are opened with `O_PATH`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from dl.records import dataclass

MAX_PATH_BYTES = 4095
"""Longest path, in bytes without a terminator: Linux's `PATH_MAX` less one."""

MAX_COMPONENT_BYTES = 255
"""Longest component of a path, in bytes: Linux's `NAME_MAX`."""

MAX_LINKS = 40
"""Most symbolic links that one walk follows, as in Linux."""

MAX_STEPS = 4096
"""Most components that one walk opens, those that a `..` makes it open again included."""

_WHOLE = os.O_PATH | os.O_CLOEXEC
_STEP = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

Identity = tuple[int, int]
"""Device and inode: which file it is, whatever its path."""


@dataclass(frozen=True)
class Place:
    """Where a file may be.

    Attributes:
        base: a path of the host; relative ones are relative to the host's current directory.
        inside: a path relative to the directory `base`, which it must not leave; None when `base` itself is meant.
        identity: which directory `base` must be; None for any.
        confined: whether a walk that enters a directory which the guest can write to must stay in it.
        shown: what the host's messages call it.
        guest: what the guest's messages call it; never a path of the host that the guest did not give itself.
    """

    base: str
    inside: str | None = None
    identity: Identity | None = None
    confined: bool = True
    shown: str = ""
    guest: str = ""

    def child(self, name: str) -> Place:
        """Return the place of a file in the directory that this place is."""
        if self.inside is None:
            base, inside = os.path.join(self.base, name), None
        else:
            base, inside = self.base, os.path.join(self.inside, name)
        return Place(
            base,
            inside,
            self.identity,
            self.confined,
            os.path.join(self.shown, name),
            os.path.join(self.guest, name),
        )

    def with_suffix(self, suffix: str) -> Place:
        """Return the same place with another suffix in its last component; the old one must be there."""
        former = self.suffix

        def changed(text: str) -> str:
            return text.rstrip("/").removesuffix(former) + suffix

        return Place(
            changed(self.base) if self.inside is None else self.base,
            None if self.inside is None else changed(self.inside),
            self.identity,
            self.confined,
            changed(self.shown),
            changed(self.guest),
        )

    @property
    def suffix(self) -> str:
        """The suffix of its last component, with its dot; empty without one."""
        return os.path.splitext((self.base if self.inside is None else self.inside).rstrip("/"))[1]


def host_place(path: str, *, confined: bool = True) -> Place:
    """Return the place of a path of the host."""
    return Place(path, confined=confined, shown=path, guest=os.path.basename(path))


class NotOpenedError(Exception):
    """A walk did not reach a file.

    Attributes:
        errno: why: `EXDEV` when it would have left what confines it.
        path: the path that was being walked, as far as it is known; None when the walk was refused.
    """

    def __init__(self, error: int, path: str | None = None) -> None:
        super().__init__(error, path)
        self.errno = error
        self.path = path

    def __str__(self) -> str:
        if self.errno == errno.EXDEV:
            return "leads out of the directories that the program may load from"
        return os.strerror(self.errno).lower()


@dataclass(frozen=True)
class OpenedFile:
    """An open regular file; valid within the `with` that opened it.

    Attributes:
        fd: descriptor, for reading.
        path: its path on the host, all links resolved.
        size: bytes, as the open descriptor had them.
        version: changes when the file is another or was written to: device, inode, size, times.
        guest_written: whether the walk passed through a directory that the guest can write to.
    """

    fd: int
    path: str
    size: int
    version: tuple[int, ...]
    guest_written: bool


@contextlib.contextmanager
def open_beneath(place: Place, guest_directories: frozenset[Identity] = frozenset()) -> Iterator[OpenedFile]:
    """Open a regular file for reading; what is checked is the file that is open.

    Args:
        place: where it is.
        guest_directories: the directories that the guest can write to.

    Raises:
        NotOpenedError: there is none, it is no regular file (`EISDIR`, or `EINVAL` for devices and pipes), it cannot be
            read, the walk would leave what confines it (`EXDEV`), or a bound was reached (`ENAMETOOLONG`, `ELOOP`).
    """
    with contextlib.ExitStack() as stack:
        whole = None if guest_directories or place.inside is not None else _open_whole(place.base)
        if whole is not None:
            fd, path = whole
            stack.callback(os.close, fd)
            yield _opened(fd, path, guest_written=False)
            return
        walk = _Walk(stack, guest_directories, confined=place.confined)
        found = walk.to(place)
        if found is None:
            raise NotOpenedError(errno.EISDIR, walk.path())
        yield _opened(found, walk.path(), guest_written=walk.guest_written)


def _opened(fd: int, path: str, *, guest_written: bool) -> OpenedFile:
    status = os.fstat(fd)
    version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return OpenedFile(fd, path, status.st_size, version, guest_written)


def _open_whole(path: str) -> tuple[int, str] | None:
    """Open a file that nothing confines, as the kernel walks; return its descriptor, and its path with all links resolved.

    A walk would open the same, in two system calls for each directory. None if there is anything to be said against it: the
    walk finds out what.
    """
    try:
        at = os.open(path, _WHOLE)
    except (OSError, ValueError):
        return None
    try:
        status = os.fstat(at)
        open_now = f"/proc/self/fd/{at}"
        found = os.readlink(open_now)
        # Looked at before it is opened: opening a device may do something. One that is gone has no path.
        if not stat.S_ISREG(status.st_mode) or not status.st_nlink or not found.startswith("/"):
            return None
        return os.open(open_now, _READ & ~os.O_NOFOLLOW), found
    except OSError:  # without a /proc, or one that may not be read
        return None
    finally:
        os.close(at)


def check_directory(place: Place, guest_directories: frozenset[Identity] = frozenset()) -> None:
    """Check that a place is a directory that can be searched.

    Raises:
        NotOpenedError: it is not, with the errno of a `chdir`; or as `open_beneath`.
    """
    with contextlib.ExitStack() as stack:
        walk = _Walk(stack, guest_directories, confined=place.confined)
        if walk.to(place, directory=True) is not None:
            raise NotOpenedError(errno.ENOTDIR, walk.path())


def identity_of(directory: str) -> Identity | None:
    """Return which directory a path leads to, all links followed; None if it leads to none."""
    try:
        status = os.stat(directory)
    except (OSError, ValueError):
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISDIR(status.st_mode) else None


def absolute(path: str) -> str:
    """Return a path of the host as an absolute one, as the file system would take it.

    Raises:
        OSError: the current directory is gone.
    """
    if path.startswith("/"):
        return path
    # The current directory is a resolved path: a leading `..` may be applied to its text.
    directory = os.getcwd()
    rest = [part for part in path.split("/") if part not in ("", ".")]
    while rest and rest[0] == "..":
        directory = os.path.dirname(directory)
        del rest[0]
    return "/".join([directory.rstrip("/"), *rest]) or "/"


def too_long(path: str) -> bool:
    """Whether a path, or a component of it, is longer than the file system takes; no file system is asked."""
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return len(raw) > MAX_PATH_BYTES or max(map(len, raw.split(b"/"))) > MAX_COMPONENT_BYTES


class _Walk:
    """One walk. Descriptors are closed by the stack; few are open at a time.

    Attributes:
        guest_written: whether it has passed through a directory that the guest can write to.
    """

    def __init__(
        self, stack: contextlib.ExitStack, guest_directories: frozenset[Identity], *, confined: bool
    ) -> None:
        stack.callback(self._close)
        self._guest_directories = guest_directories
        self._confines_to_guest = confined
        self._floor = -1  # what the walk began in, or must not leave
        self._here = -1
        self._last = -1  # what is no directory
        self._floor_names: list[str] = []
        self._names: list[str] = []  # below the floor
        self._pending: list[str] = []  # last first
        self._is_floor = False
        self._left = MAX_STEPS
        self._links = 0
        self.guest_written = False
        self._in_guest = False

    def _close(self) -> None:
        for fd in {self._floor, self._here, self._last} - {-1}:
            os.close(fd)
        self._floor = self._here = self._last = -1

    def path(self) -> str:
        """Return the path that the walk has reached, and what is left of it."""
        return "/" + "/".join([*self._floor_names, *self._names, *reversed(self._pending)])

    def to(self, place: Place, *, directory: bool = False) -> int | None:
        """Walk to a place; return the descriptor of a regular file, None if it is a directory."""
        try:
            return self._to(place, directory=directory)
        except OSError as error:
            raise NotOpenedError(error.errno or errno.EIO, self.path()) from None
        except ValueError:  # a NUL, or a text that is no file name
            raise NotOpenedError(errno.ENOENT) from None

    def _to(self, place: Place, *, directory: bool) -> int | None:
        for text in (place.base, place.inside or ""):
            if too_long(text):
                raise NotOpenedError(errno.ENAMETOOLONG)
        self._here = self._floor = os.open("/", _STEP)
        self._look_at(os.fstat(self._here))
        is_file = self._walk(absolute(place.base))
        if place.inside is not None:
            if is_file:
                raise NotOpenedError(errno.ENOTDIR, self.path())
            status = os.fstat(self._here)
            if place.identity is not None and (status.st_dev, status.st_ino) != place.identity:
                raise NotOpenedError(errno.EXDEV)
            self._confine()
            is_file = self._walk(place.inside)
        if not is_file:
            if directory:  # looking up a name in it takes the permission to search it
                os.close(os.open(".", _STEP, dir_fd=self._here))
            return None
        return self._last if directory else self._readable()

    def _confine(self) -> None:
        """Make the directory that the walk is in the one that it must not leave."""
        if self._floor != self._here:
            os.close(self._floor)
            self._floor = self._here
        self._floor_names += self._names
        self._names = []
        self._is_floor = True

    def _walk(self, path: str) -> bool:
        """Walk on from here; return whether what was reached is no directory."""
        self._pending = [part for part in reversed(path.split("/")) if part not in ("", ".")]
        while self._pending:
            name = self._pending.pop()
            if name in ("", "."):
                continue
            if name == "..":
                self._up()
                continue
            self._pending.append(name)
            self._left -= 1
            if self._left < 0:
                raise NotOpenedError(errno.ELOOP)
            fd = os.open(name, _STEP, dir_fd=self._here)
            self._pending.pop()
            status = os.fstat(fd)
            if stat.S_ISLNK(status.st_mode):
                try:
                    text = os.readlink("", dir_fd=fd)
                finally:
                    os.close(fd)
                self._follow(text)
            elif stat.S_ISDIR(status.st_mode):
                self._enter(name, fd, status)
            else:
                self._last = fd
                self._names.append(name)
                if self._pending:
                    raise NotOpenedError(errno.ENOTDIR, self.path())
                return True
        return False

    def _enter(self, name: str, fd: int, status: os.stat_result) -> None:
        if self._here != self._floor:
            os.close(self._here)
        self._here = fd
        self._names.append(name)
        self._look_at(status)

    def _look_at(self, status: os.stat_result) -> None:
        """Note whether the guest can write to the directory that was entered, and confine the walk if it can."""
        if (status.st_dev, status.st_ino) in self._guest_directories:
            self.guest_written = True
            if self._confines_to_guest and not self._in_guest:
                self._in_guest = True
                self._confine()

    def _restart(self, names: list[str]) -> None:
        """Walk again from the floor."""
        if self._here != self._floor:
            os.close(self._here)
        self._here = self._floor
        self._names = []
        self._pending += reversed(names)

    def _up(self) -> None:
        if self._names:
            # Not the kernel's `..`: the directory may have been moved since it was entered.
            self._restart(self._names[:-1])
        elif self._is_floor and self._floor_names:
            raise NotOpenedError(errno.EXDEV)

    def _follow(self, text: str) -> None:
        self._links += 1
        if self._links > MAX_LINKS:
            raise NotOpenedError(errno.ELOOP)
        if text.startswith("/"):
            if self._is_floor:
                floor = "/" + "/".join(self._floor_names)
                if os.path.commonpath([floor, os.path.normpath(text)]) != floor:
                    raise NotOpenedError(errno.EXDEV)
                text = os.path.relpath(os.path.normpath(text), floor)
            self._restart([])
        self._pending += reversed(text.split("/"))

    def _readable(self) -> int:
        """Open the regular file that was reached for reading, and return its descriptor."""
        # Looked at before it is opened: opening a device may do something.
        if not stat.S_ISREG(os.fstat(self._last).st_mode):
            raise NotOpenedError(errno.EINVAL, self.path())
        fd = os.open(self._names[-1], _READ, dir_fd=self._here)
        os.close(self._last)
        self._last = fd
        if not stat.S_ISREG(os.fstat(fd).st_mode):  # swapped meanwhile
            raise NotOpenedError(errno.EINVAL, self.path())
        return fd
