"""Pipes with names, and what comes out of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def read_from(path: Path) -> Iterator[list[bytes]]:
    """Make a pipe with a name, and read it to its end beside the block; the list then has all that came."""
    os.mkfifo(path)
    came: list[bytes] = []
    thread = threading.Thread(target=lambda: came.append(path.read_bytes()), daemon=True)
    thread.start()
    yield came
    thread.join(30)
    assert not thread.is_alive(), f"nobody has written to {path} and closed it"


def opened_by_reader(path: Path) -> list[int]:
    """Return a descriptor to write to a pipe if somebody has it open for reading; else nothing."""
    try:
        return [os.open(path, os.O_WRONLY | os.O_NONBLOCK)]
    except OSError:
        return []
