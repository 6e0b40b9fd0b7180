"""The directories that a program can see, as names: which of them an absolute path leads into."""

from __future__ import annotations

from collections.abc import Iterable

from dl.modules.guest_paths import guest_root
from dl.wasix.files.descriptors import OpenFile


def below_preopen(path: bytes, directories: Iterable[OpenFile]) -> tuple[OpenFile, int] | None:
    """Find the open directory that an absolute path leads into: the one with the longest name.

    Args:
        path: begins with a slash.
        directories: open files whose `preopen` is set.

    Returns:
        The directory, and how many bytes of the path to leave out, all of them if it is the directory itself; None if
        there is none.
    """
    best: tuple[int, OpenFile] | None = None
    for file in directories:
        assert file.preopen is not None
        root = guest_root(file.preopen).encode().rstrip(b"/")
        follows = path[len(root) :]
        if path.startswith(root) and follows[:1] in (b"/", b"") and (best is None or len(root) > best[0]):
            best = len(root), file
    if best is None:
        return None
    length, file = best
    rest = path[length:].lstrip(b"/")
    return file, len(path) - len(rest)
