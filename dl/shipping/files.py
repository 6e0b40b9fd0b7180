"""Writing a file so that it is the old one or the new one, and never half of it."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path, mode: int | None = None) -> Iterator[BinaryIO]:
    """Give a new file, written aside, that takes the place of another when the block ends well; it is removed when not.

    Args:
        path: the file. A symbolic link stays one: what it leads to is replaced.
        mode: permissions of the new file; None for those of the file that it replaces, or of any new file.

    Raises:
        OSError: it cannot be written.
    """
    place = Path(os.path.realpath(path))
    if mode is None:
        with contextlib.suppress(FileNotFoundError):
            mode = stat.S_IMODE(place.stat().st_mode)
    aside = place.with_name(f".{place.name[:200]}.{secrets.token_hex(8)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
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
