"""SHA-256, of little by the interpreter's own code: loading OpenSSL takes longer than digesting all modules of a small program.

`hashlib` loads it whenever it is imported, which takes three milliseconds; OpenSSL is then five times as fast. So `hashlib` is
imported for what is large, and used for all from then on.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

LARGE_BYTES = 1 << 18
"""From this size on, digesting without OpenSSL would take a third of what loading it does."""


def _own() -> Callable[..., Any] | None:
    """Return the interpreter's own SHA-256; None where it is built without."""
    try:
        if sys.version_info >= (3, 12):
            from _sha2 import sha256  # noqa: PLC0415  the name is of CPython
        else:
            from _sha256 import sha256  # type: ignore[import-not-found]  # noqa: PLC0415  as above
    except ImportError:
        return None
    found: Callable[..., Any] = sha256
    return found


_small = _own()


def sha256(data: bytes | memoryview) -> bytes:
    """Return the SHA-256 digest of bytes."""
    if _small is None or len(data) >= LARGE_BYTES or "hashlib" in sys.modules:
        import hashlib  # noqa: PLC0415  what this file is there to put off

        return hashlib.sha256(data).digest()
    digest: bytes = _small(data).digest()
    return digest
