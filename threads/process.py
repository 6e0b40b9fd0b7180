"""In which process a program was made: `os.fork` copies its locks, but not the threads that hold them."""

from __future__ import annotations

import os

from threads.errors import ForkedProcessError

__all__ = ["CreatingProcess"]


class CreatingProcess:
    """Knows the process that it was made in. Looked at on slow paths only, before a lock is taken."""

    __slots__ = ("_number",)

    def __init__(self) -> None:
        self._number = os.getpid()

    def is_this_one(self) -> bool:
        """Return whether the caller runs in that process, not in a forked child."""
        return os.getpid() == self._number

    def check(self) -> None:
        """Refuse to work in a forked child.

        Raises:
          ForkedProcessError: the caller runs in one.
        """
        if not self.is_this_one():
            raise ForkedProcessError(self._number, os.getpid())
