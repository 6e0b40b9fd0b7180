"""Amounts that the guest takes and gives back, within the bounds of `dl.limits.Limits`."""

from __future__ import annotations

import threading


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
