"""A directory that nobody but the user can have put files into.

Loading compiled code is running it. So before a file is read, it must be certain that the user wrote it; that it looks like a
file of ours is not enough. What is checked, and on what:

* Every component of the path, from the root on, is opened relative to the one before it, without following links, and examined
  as an open file. What was checked is what is used, so nothing can be exchanged in between.
* Each directory on the way belongs to root or to the user, and nobody else can write to it. Otherwise others could move a
  directory of the user's, with files that they made the user write, to where the cache is looked for. A directory with the
  sticky bit, such as /tmp, may be writable: there, only the owner of an entry can rename or remove it. A symbolic link on the
  way must belong to root or to the user, and its target is walked in the same way.
* The directory itself and each file in it belong to the effective user, and group and others cannot write to them. An access
  control list that lets somebody else write shows in the group's bits of the mode.
* A process whose effective user or group is not its real one (set-uid, set-gid) has no such directory: whoever started it
  chooses the environment, and with it the path. For root, a directory of another user's, such as one found through a HOME that
  `sudo` kept, fails the same check, and nothing is created in it.

What is not protected: files against the user's own processes. Whoever can write as the user can also change the Python code
that reads this. A guest that is given a directory writes as the user, too: see `dl.engine.disk_cache.open_cache`.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

from memory import Uncopied

_MOST_LINKS = 40
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_DIRECTORY = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_LOOK = _DIRECTORY | getattr(os, "O_PATH", os.O_RDONLY)
_FILE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


class NotPrivateError(Exception):
    """The directory, or one on the way to it, is not the user's alone; the text says which and why."""


class PrivateDirectory(Uncopied):
    """An open directory of the effective user's.

    Args:
        path: where; it is created, with what is missing on the way, for the user alone.

    Raises:
        NotPrivateError: somebody else could have put files there.
        OSError: it cannot be opened or created.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _check_process()
        self._user = os.geteuid()
        self._fd = self._walk(os.path.abspath(path))

    def _walk(self, path: str) -> int:
        rest = [part for part in reversed(path.split(os.sep)) if part]
        at, links = os.sep, 0
        fd = os.open(os.sep, _LOOK)
        try:
            while rest:
                self._check_on_the_way(fd, at)
                part = rest.pop()
                try:
                    found = os.stat(part, dir_fd=fd, follow_symlinks=False)
                except FileNotFoundError:
                    with contextlib.suppress(FileExistsError):  # another process was first
                        os.mkdir(part, 0o700, dir_fd=fd)
                    found = os.stat(part, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISLNK(found.st_mode):
                    links += 1
                    if links > _MOST_LINKS or found.st_uid not in (0, self._user):
                        raise NotPrivateError(f"{os.path.join(at, part)} is a link that is not to be trusted")
                    target = os.readlink(part, dir_fd=fd)
                    rest += [piece for piece in reversed(target.split(os.sep)) if piece]
                    if target.startswith(os.sep):
                        fd, at = self._enter(fd, os.sep), os.sep
                    continue
                fd = self._enter(fd, part, flags=_LOOK if rest else _DIRECTORY | os.O_RDONLY)
                at = os.path.normpath(os.path.join(at, part))
            self._check_own(os.fstat(fd), at)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _enter(self, fd: int, part: str, flags: int = _LOOK) -> int:
        entered = os.open(part, flags, dir_fd=fd)
        os.close(fd)
        return entered

    def _check_on_the_way(self, fd: int, at: str) -> None:
        found = os.fstat(fd)
        if found.st_uid not in (0, self._user):
            raise NotPrivateError(f"{at} belongs to user {found.st_uid}")
        if found.st_mode & _OTHERS_WRITE and not found.st_mode & stat.S_ISVTX:
            raise NotPrivateError(f"{at} can be written by others")

    def _check_own(self, found: os.stat_result, what: str) -> None:
        if found.st_uid != self._user:
            raise NotPrivateError(f"{what} belongs to user {found.st_uid}, not to user {self._user}")
        if found.st_mode & _OTHERS_WRITE:
            raise NotPrivateError(f"{what} can be written by others")

    def open(self, name: str) -> int:
        """Open a file for reading; the caller closes the descriptor.

        Raises:
            NotPrivateError: it is not a regular file of the user's alone.
            OSError: it cannot be opened; `FileNotFoundError` if there is none.
        """
        self._check_own(os.fstat(self._fd), str(self.path))
        fd = os.open(name, os.O_RDONLY | _FILE, dir_fd=self._fd)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise NotPrivateError(f"{name} is not a regular file")
            self._check_own(found, name)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def write(self, name: str, parts: tuple[bytes, ...]) -> None:
        """Put a file in place, whole or not at all, whatever other processes do.

        Raises:
            NotPrivateError: the directory is no longer the user's alone.
            OSError: it cannot be written.
        """
        self._check_own(os.fstat(self._fd), str(self.path))
        aside = f".{os.urandom(8).hex()}{TEMPORARY}"
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE, 0o600, dir_fd=self._fd)
        try:
            with open(fd, "wb") as file:
                for part in parts:
                    file.write(part)
            os.rename(aside, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except BaseException:
            self.remove(aside)
            raise

    def entries(self) -> list[tuple[str, os.stat_result]]:
        """Return the names of what is in the directory, and what each is; links are not followed."""
        found = []
        with os.scandir(self._fd) as listing:
            for entry in listing:
                with contextlib.suppress(FileNotFoundError):  # removed by another process
                    found.append((entry.name, entry.stat(follow_symlinks=False)))
        return found

    def remove(self, name: str) -> bool:
        """Remove a file; return whether it was there and is gone."""
        try:
            os.unlink(name, dir_fd=self._fd)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the directory; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if self.__dict__.get("_fd", -1) >= 0:
            self.close()


TEMPORARY = ".tmp"
"""Ending of files that are being written."""


def read_content(file: BinaryIO, most: int) -> bytes:
    """Return a file's content, of which it must not be more than `most` bytes; what is beyond is left out.

    `read(most)` alone would first ask for room for `most` bytes, however small the file.
    """
    return file.read(min(os.fstat(file.fileno()).st_size, most))


def _check_process() -> None:
    if not hasattr(os, "geteuid") or os.open not in os.supports_dir_fd or not hasattr(os, "O_NOFOLLOW"):
        raise NotPrivateError("this system does not say who may write to a directory")
    if os.getuid() != os.geteuid() or os.getgid() != os.getegid():
        raise NotPrivateError("the process runs with the rights of another user than the one that started it")
