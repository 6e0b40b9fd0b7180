"""A least-recently-used memo that is bounded by the weight of its values, not by their number."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from dl.forks import renew
from threads import found_in

Value = TypeVar("Value")


class _Key:
    """A key whose hash is computed once: those of generated modules consist of thousands of values."""

    __slots__ = ("hash", "value")

    def __init__(self, value: Hashable) -> None:
        self.value = value
        self.hash = hash(value)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.hash == other.hash and self.value == other.value


class Recent(Generic[Value]):
    """A bounded memo by key, safe for threads; two threads may make the same value, and one of the two is kept.

    `_lock` guards the other fields; nothing is called while holding it but the comparison of keys.

    Args:
        most: total weight of the values that are kept; the least recently used go first, the newest never.
    """

    def __init__(self, most: int) -> None:
        self._lock = threading.Lock()
        self._most = most
        self._weight = 0
        self._kept: OrderedDict[_Key, tuple[_Key, Value, int]] = OrderedDict()

    def forked(self) -> None:
        """Begin anew in a forked child, whose parent's threads may hold the lock."""
        renew(self._lock)
        self._weight = 0
        self._kept = OrderedDict()

    def find(self, key: Hashable) -> Value | None:
        """Return the value that is kept under a key, if any, and count it as used."""
        wanted = _Key(key)
        with self._lock:
            entry = found_in(self._kept, wanted)
            if entry is None:
                return None
            kept, value, _ = entry
            self._kept.move_to_end(kept)  # by the kept key, which is found by identity
            return value

    def keep(self, key: Hashable, value: Value, weight: int) -> Value:
        """Keep a value, unless another thread has just kept one under the same key; return the one that is kept."""
        new = _Key(key)
        with self._lock:
            known = found_in(self._kept, new)
            if known is not None:
                return known[1]
            self._kept[new] = new, value, weight
            self._weight += weight
            while self._weight > self._most and len(self._kept) > 1:
                _, (_, _, dropped) = self._kept.popitem(last=False)
                self._weight -= dropped
        return value

    def replace(self, key: Hashable, value: Value, weight: int) -> None:
        """Keep a value in the place of what is kept under the key."""
        new = _Key(key)
        with self._lock:
            former = self._kept.pop(new, None)
            if former is not None:
                self._weight -= former[2]
        self.keep(key, value, weight)

    def get(self, key: Hashable, make: Callable[[], Value], weight: int) -> Value:
        """Return the value that is kept under a key, or make it and keep it."""
        value = self.find(key)
        return self.keep(key, make(), weight) if value is None else value

    def __len__(self) -> int:
        """Number of values that are kept."""
        return len(self._kept)
