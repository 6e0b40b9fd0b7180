"""Numbers that many threads read at once, without a GIL: a rendezvous' version, and counts of changes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, TypeVar

from threads.fences import FREE_THREADED
from threads.platform import SYSTEM, Platform
from threads.rendezvous import Rendezvous

if TYPE_CHECKING:
    from typing_extensions import Self

    from threads.replica import Versioned

Op = TypeVar("Op")

__all__ = ["Count", "ParallelCount", "ParallelRendezvous", "new_count"]


class _Memory(ctypes.Structure):
    version: int
    _fields_: ClassVar = [("version", ctypes.c_int64)]


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
        self._memory = _Memory()
        super().__init__(interrupt, platform=platform)

    @property
    def version(self) -> int:
        """Number of committed operations, or CLOSED, or ENDED."""
        return self._memory.version

    @version.setter
    def version(self, to: int) -> None:
        self._memory.version = to

    def reader(self) -> Versioned:
        """Return a view of `version` for one thread."""
        return _Memory.from_buffer(self._memory)


class Count:
    """A number that one thread at a time changes, and all read.

    Attributes:
      value: the number.
    """

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def reader(self) -> Self | ctypes.c_int64:
        """Return what reads `value` for one thread that does so often."""
        return self


class ParallelCount(Count):
    """A count of which each thread may have a view of its own, as of the version of a `ParallelRendezvous`.

    A view may be behind. Who must see what was changed before a count grew reads `value` here, as an attribute.
    """

    __slots__ = ("_memory", "_value")

    def __init__(self) -> None:
        self._memory = ctypes.c_int64()
        super().__init__()

    @property
    def value(self) -> int:
        """The number."""
        return self._value

    @value.setter
    def value(self, to: int) -> None:
        self._value = to
        self._memory.value = to

    def reader(self) -> ctypes.c_int64:
        """Return a view of `value` for one thread."""
        return ctypes.c_int64.from_buffer(self._memory)


def new_count() -> Count:
    """Return a count, as the interpreter's threads need it."""
    return ParallelCount() if FREE_THREADED else Count()
