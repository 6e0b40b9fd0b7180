"""What a bundle is called, and which names its files may have: such as stay in it wherever it is unpacked."""

from __future__ import annotations

import os
import stat

MANIFEST = "bundle.json"
DATA = "data"
_ARCHIVE = b"PK\x03\x04"

MAX_FILES = 10_000
MAX_BYTES = (1 << 31) - 1
"""Most bytes of all files of a bundle together, unpacked."""
MAX_MANIFEST_BYTES = 16 << 20


def fault_of_name(name: str) -> str:
    """Return why a text cannot be the name of a file in a bundle; empty if it can."""
    if not name or name in (".", ".."):
        return f"is {name!r}"
    if "/" in name or "\\" in name:
        return "has a slash or a backslash"
    if not name.isprintable():
        return "has characters that cannot be printed"
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return "is not UTF-8"
    return "is longer than 240 bytes" if length > 240 else ""


def fault_of_path(path: str) -> str:
    """Return why a text cannot be the path of a file in a bundle; empty if it can."""
    if len(path) > 4000:
        return "is longer than 4000 characters"
    return next(filter(None, map(fault_of_name, path.split("/"))), "")


def is_bundle(path: str) -> bool:
    """Whether a path is that of a bundle: an archive, or a folder with a manifest. Nothing else of it is looked at."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            return os.path.isfile(os.path.join(path, MANIFEST))
        if not stat.S_ISREG(status.st_mode):
            return False
        with open(path, "rb") as file:
            return file.read(len(_ARCHIVE)) == _ARCHIVE
    except (OSError, ValueError):
        return False  # whoever opens it says what is wrong
