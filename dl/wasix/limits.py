"""What one program may take of the host through its system interface."""

from __future__ import annotations

import threading
from dataclasses import dataclass

PIPE_BYTES = 64 << 20
"""Default of `SystemLimits.pipe_bytes`: what Linux lets a user have (fs.pipe-user-pages-soft)."""
DESCRIPTORS = 4096
"""Default of `SystemLimits.descriptors`: the usual hard limit of a process (RLIMIT_NOFILE)."""


@dataclass(frozen=True)
class SystemLimits:
    """Bounds of one program; at each of them the guest gets an errno.

    Alarms need no bound of their own: there is one for each of the 64 signals.

    Attributes:
        pipe_bytes: bytes that all pipes may hold together, each of them 64 KiB; more pipes are 41 (`nfile`).
        descriptors: open descriptors; more are 33 (`mfile`).
    """

    pipe_bytes: int = PIPE_BYTES
    descriptors: int = DESCRIPTORS


class Budget:
    """An amount that is taken and given back. From any thread; `_lock` guards `_left`, a leaf."""

    def __init__(self, total: int) -> None:
        self._lock = threading.Lock()
        self._left = total

    @property
    def left(self) -> int:
        """What can still be taken."""
        return self._left

    def take(self, amount: int) -> bool:
        """Take an amount; False if there is not as much, and nothing is taken."""
        with self._lock:
            if amount > self._left:
                return False
            self._left -= amount
            return True

    def give(self, amount: int) -> None:
        """Give back what was taken."""
        with self._lock:
            self._left += amount
