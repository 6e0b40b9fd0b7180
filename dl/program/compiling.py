"""One compilation of one content at a time: threads that load the same library at once compile it once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakValueDictionary

from threads import recording


class _Content:
    """Alive as long as a thread compiles or waits. Reentrant, for a signal handler that loads what its own thread compiles."""

    def __init__(self) -> None:
        self.lock = threading.RLock()


class Compiling:
    """Lets one thread of a program at a time compile a module of one content; the next one finds the code made.

    Compiling takes several times the module's bytes, which a guest could multiply by its threads otherwise.

    `_lock` guards `_contents`; a leaf.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._contents: WeakValueDictionary[bytes, _Content] = WeakValueDictionary()

    @contextmanager
    def one(self, digest: bytes) -> Iterator[None]:
        """Keep other threads from compiling the same content until the `with` ends; wait for one that does.

        Args:
            digest: of the content.
        """
        with self._lock:
            content = self._contents.get(digest)
            if content is None:
                content = self._contents[digest] = _Content()
        began = time.monotonic_ns() if recording.recorders else 0
        with content.lock:
            if began:
                recording.since(began, "load", "wait for a compilation", "")
            yield
