"""In which process a program was made: `os.fork` copies its locks, but not the threads that hold them."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

from threads.errors import ForkedProcessError

__all__ = ["CreatingProcess"]


class _Gated(Protocol):
    """What is entered by one comparison with its version."""

    version: int


_gated: weakref.WeakKeyDictionary[_Gated, int] = weakref.WeakKeyDictionary()


def _forked() -> None:
    for program, closed in list(_gated.items()):
        program.version = closed


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class CreatingProcess:
    """Knows the process that it was made in. Looked at on slow paths only, before a lock is taken.

    Entering guest code is one comparison with a program's version. In a child that says for ever that the gate is closed, so
    each entry takes the slow path, which refuses it; the common path pays nothing for that.

    Args:
      program: what it is asked about.
      closed: what its version says while the gate is closed.
    """

    __slots__ = ("_number",)

    def __init__(self, program: _Gated, closed: int) -> None:
        self._number = os.getpid()
        _gated[program] = closed

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
