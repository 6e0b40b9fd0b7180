"""Parts of a program that few programs need: each is made when it is first asked for, and what it needs is imported then."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Part = TypeVar("Part")


class Later(Generic[Part]):
    """A part that is made once, by whichever thread first calls for it; then each call returns it.

    `_lock` is held while it is made: making it runs none of the guest's code, and takes only the locks that imports take and
    those of other parts.

    Args:
        make: makes the part. When it fails, the next call tries again.

    Attributes:
        made: the part; None as long as nobody has asked for it.
    """

    def __init__(self, make: Callable[[], Part]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self.made: Part | None = None

    def __call__(self) -> Part:
        """Return the part."""
        made = self.made
        if made is not None:
            return made
        with self._lock:
            if self.made is None:
                self.made = self._make()
            return self.made
