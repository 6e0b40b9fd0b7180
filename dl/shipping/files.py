"""Writing a file so that it is the old one or the new one, and never half of it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Have errors of the operating system name a file: what fails at a descriptor does not say of which file.

    Args:
        path: the file that the block opens, writes and closes.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def is_special(path: str | os.PathLike[str]) -> bool:
    """Whether a path leads to what is no regular file, such as a pipe, a device or an open file without a name.

    Such a thing is written in place: a file of its name would take it away from those who read it.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(found.st_mode):
        return True
    try:
        return not os.path.samestat(found, os.stat(os.path.realpath(path)))
    except FileNotFoundError:
        return True


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], mode: int | None = None) -> Iterator[BinaryIO]:
    """Give a new file, written aside, that takes the place of another when the block ends well; it is removed when not.

    What `is_special` is opened and written in place.

    Args:
        path: the file. A symbolic link stays one: what it leads to is replaced.
        mode: permissions of the new file; None for those of the file that it replaces, or of any new file.

    Raises:
        OSError: it cannot be written; names the file.
    """
    with naming(path):
        if is_special(path):
            # Not created: it could have gone away, and only what is there is written in place.
            with os.fdopen(os.open(path, os.O_WRONLY | getattr(os, "O_CLOEXEC", 0)), "wb") as file:
                yield file
            return
        with _aside(Path(os.path.realpath(path)), mode) as file:
            yield file


@contextlib.contextmanager
def _aside(place: Path, mode: int | None) -> Iterator[BinaryIO]:
    if mode is None:
        with contextlib.suppress(FileNotFoundError):
            mode = stat.S_IMODE(place.stat().st_mode)
    aside = place.with_name(f".{place.name[:200]}.{os.urandom(8).hex()}")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
    except OSError as error:
        error.filename = str(place)  # the user knows of no other
        raise
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, place)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()
        raise
