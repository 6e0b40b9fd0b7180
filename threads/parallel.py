"""A rendezvous whose number many threads read at once, without a GIL."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, TypeVar

from threads.platform import SYSTEM, Platform
from threads.rendezvous import Rendezvous

Op = TypeVar("Op")

__all__ = ["ParallelRendezvous"]


class ParallelRendezvous(Rendezvous[Op]):
    """A rendezvous whose `version` lies in memory, of which each thread may have a view of its own.

    Without a GIL, a thread that reads an attribute of an object counts its reference to that object, and to what it reads. If
    many threads read one object on every host call, the processors pass that count around and do little else: two threads
    are then slower than one. A view belongs to one thread, and reads the number from memory.

    Args:
      interrupt, platform: as of `Rendezvous`.
    """

    __slots__ = ("_memory",)

    def __init__(self, interrupt: Callable[[], None], *, platform: Platform = SYSTEM) -> None:
        self._memory = ctypes.c_int64()
        super().__init__(interrupt, platform=platform)

    @property
    def version(self) -> int:
        """Number of committed operations, or CLOSED, or ENDED."""
        return self._memory.value

    @version.setter
    def version(self, to: int) -> None:
        self._memory.value = to

    def version_view(self) -> Any:
        """Return what reads `version`, as `value`, for one thread."""
        return ctypes.c_int64.from_buffer(self._memory)
