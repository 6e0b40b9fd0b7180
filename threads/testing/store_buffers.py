"""A memory in which other threads see a thread's stores late; for `threads.testing.scheduler`.

Each thread has a buffer. A store to one of `ATTRIBUTES`, and the release of a lock, goes into the buffer of its thread, and
to the object only when the buffer is drained, in order (total store order, as of x86). A thread sees its own stores at once.
A buffer is drained when its thread waits, passes a fence, or ends; as far as a lock's release when another thread waits for
that lock; and otherwise whenever the schedule says so. So taking and releasing a lock is no fence. That is weaker than x86,
where both are, and as weak as what locks promise.

What it does not model: loads that are done early, and stores of one thread that others see in another order.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from threads.log import OperationLog
from threads.rendezvous import Rendezvous
from threads.replica import Replica
from threads.turn import Turn
from threads.waiter import Waiter

__all__ = ["ATTRIBUTES", "StoreBuffer", "in_place", "this_thread"]

ATTRIBUTES: Final[tuple[tuple[type, tuple[str, ...]], ...]] = (
    (Replica, ("state", "applied", "sequence", "replaying", "_closed")),
    (Rendezvous, ("version", "_ended", "_instigator", "_awaited")),
    (Waiter, ("alarm", "bell", "_ended", "_shields")),
    (OperationLog, ("_committed",)),
    (Turn, ("holder", "_thread", "_ended")),
)
"""What is stored late, of each class."""

_CONTAINERS: Final[tuple[tuple[type, str], ...]] = ((Waiter, "_pending"),)
"""Dictionaries to which is added late."""

_here = threading.local()  # .buffer: of this thread


class StoreBuffer:
    """The stores of one thread that others do not see yet."""

    def __init__(self) -> None:
        self._stores: deque[tuple[object, object, Any, Callable[[], object]]] = deque()

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._stores)

    def put(self, owner: object, place: object, value: Any, perform: Callable[[], object]) -> None:
        """Store later: `perform` does it."""
        self._stores.append((owner, place, value, perform))

    def newest(self, owner: object, place: object) -> list[Any]:
        """Return the value that this thread has stored last, in a list; empty if all its stores are done."""
        for earlier, where, value, _ in reversed(self._stores):
            if earlier is owner and where is place:
                return [value]
        return []

    def has(self, owner: object, place: object) -> bool:
        """Return whether a store to a place waits."""
        return bool(self.newest(owner, place))

    def take_back(self, owner: object, place: object) -> bool:
        """Forget the newest store to a place, if one waits; returns whether one did."""
        for i in range(len(self._stores) - 1, -1, -1):
            earlier, where, _, _ = self._stores[i]
            if earlier is owner and where is place:
                del self._stores[i]
                return True
        return False

    def drain_until_done(self, owner: object, place: object) -> None:
        """Do the oldest stores, as far as the first one to a place."""
        while True:
            earlier, where, _, perform = self._stores.popleft()
            perform()
            if earlier is owner and where is place:
                return

    def drain_one(self) -> None:
        """Do the oldest store."""
        self._stores.popleft()[3]()

    def drain(self) -> None:
        """Do all of them."""
        while self._stores:
            self.drain_one()


class _Late:
    """An attribute whose stores go through the buffer of their thread."""

    def __init__(self, slot: Any) -> None:
        self._slot = slot

    def __get__(self, owner: object, _kind: type | None = None) -> Any:
        buffer: StoreBuffer | None = getattr(_here, "buffer", None)
        newest = [] if buffer is None else buffer.newest(owner, self)
        return newest[0] if newest else self._slot.__get__(owner)

    def __set__(self, owner: object, value: Any) -> None:
        buffer: StoreBuffer | None = getattr(_here, "buffer", None)
        if buffer is None:
            self._slot.__set__(owner, value)
        else:
            buffer.put(owner, self, value, lambda: self._slot.__set__(owner, value))


class _LateDict(dict[object, Any]):
    """A container to which another thread adds; whoever takes from it holds its lock, and so has done all its stores."""

    def __setitem__(self, key: object, value: Any) -> None:
        buffer: StoreBuffer | None = getattr(_here, "buffer", None)
        if buffer is None:
            super().__setitem__(key, value)
        else:
            put = super().__setitem__
            buffer.put(self, self, value, lambda: put(key, value))

    def __len__(self) -> int:
        buffer: StoreBuffer | None = getattr(_here, "buffer", None)
        return super().__len__() + (0 if buffer is None else len(buffer.newest(self, self)))

    def pop(self, key: object, default: Any = None) -> Any:
        _drain_here()
        return super().pop(key, default)

    def copy(self) -> dict[object, Any]:
        _drain_here()
        return super().copy()


class _LateContainer:
    """An attribute that holds a container, which is made one to which others are seen to add late."""

    def __init__(self, slot: Any) -> None:
        self._slot = slot

    def __get__(self, owner: object, _kind: type | None = None) -> Any:
        return self._slot.__get__(owner)

    def __set__(self, owner: object, value: dict[object, Any]) -> None:
        self._slot.__set__(owner, _LateDict(value))


def _drain_here() -> None:
    buffer: StoreBuffer | None = getattr(_here, "buffer", None)
    if buffer is not None:
        buffer.drain()


@contextlib.contextmanager
def this_thread(buffer: StoreBuffer) -> Iterator[None]:
    """Have the calling thread's stores go through a buffer while the `with` lasts."""
    _here.buffer = buffer
    try:
        yield
    finally:
        _here.buffer = None
        buffer.drain()


@contextlib.contextmanager
def in_place() -> Iterator[None]:
    """Make `this_thread` work: change the classes of `threads`; around one run."""
    slots = [(kind, name, vars(kind)[name]) for kind, names in ATTRIBUTES for name in names]
    containers = [(kind, name, vars(kind)[name]) for kind, name in _CONTAINERS]
    try:
        for kind, name, slot in slots:
            setattr(kind, name, _Late(slot))
        for kind, name, slot in containers:
            setattr(kind, name, _LateContainer(slot))
        yield
    finally:
        for kind, name, slot in slots + containers:
            setattr(kind, name, slot)
