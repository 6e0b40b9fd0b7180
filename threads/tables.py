"""Looking into a dictionary that several threads use, without waiting where there is no GIL."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, overload

from threads.fences import FREE_THREADED

__all__ = ["found_in"]

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")


def _found_in(table: dict[K, V], key: K, default: D | None = None) -> V | D | None:
    try:
        return table[key]
    except KeyError:
        return default


if TYPE_CHECKING:

    @overload
    def found_in(table: dict[K, V], key: K, /) -> V | None: ...
    @overload
    def found_in(table: dict[K, V], key: K, default: D, /) -> V | D: ...
    def found_in(table: dict[K, V], key: K, default: object = None, /) -> object:
        """Return what a dictionary has for a key, or a default: `dict.get`.

        Without a GIL, that one holds the dictionary's lock and takes it again, when a thread that has not made the
        dictionary is the first other one to read it, or when the key is `bytes`. So it waits for itself: it gives the
        processor away forty times, and then lets go of all that it holds. Beside threads that compute, each time costs a time
        slice, and the first load of a thread has some sixty such calls. Subscription takes the lock once.
        """
else:
    found_in = _found_in if FREE_THREADED else dict.get
