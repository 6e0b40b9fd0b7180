"""`dlrun --map FILE`: a page that shows memory and table of a program while it runs, written anew at each SIGUSR1."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dl.linker import Linker

SIGNAL = signal.SIGUSR1


@contextmanager
def held_back(wanted: bool) -> Iterator[None]:
    """Hold the signal back in this thread, and so in all that it starts, so that `live_map` alone takes it.

    Around all that starts threads: the signal ends a process that has one thread which neither holds it back nor handles it.

    Args:
        wanted: whether there is a map; without, nothing is done.
    """
    if not wanted:
        yield
        return
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {SIGNAL})
    try:
        yield
    finally:
        # One that came last would end the process now.
        while signal.sigtimedwait({SIGNAL}, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


@contextmanager
def live_map(linker: Linker, target: str | None) -> Iterator[None]:
    """Write a linker's map at once, at each signal, and at the end of the block; inside `held_back`.

    A thread of its own takes the signal instead of a handler, which would run in the main thread between any two steps of it,
    and could not take the locks that a map needs.

    Args:
        linker: whose map is written.
        target: the page's file; None for no map.

    Raises:
        OSError: the page cannot be written at the beginning or at the end.
    """
    if target is None:
        yield
        return
    watch = _Watch(linker, Path(target))
    try:
        yield
    finally:
        watch.end()


class _Watch:
    """The thread that waits for the signal.

    Args:
        linker: whose map is written.
        target: where to.
    """

    def __init__(self, linker: Linker, target: Path) -> None:
        self._linker = linker
        self._target = target
        self._ended = False
        self._write()
        self._thread = threading.Thread(target=self._serve, name="map", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            signal.sigwait({SIGNAL})
            if self._ended:
                return
            # What cannot be written now may be at the next signal; the program goes on.
            with suppress(OSError):
                self._write()

    def _write(self) -> None:
        """Replace the page in one step, so that nobody reads half of it."""
        new = self._target.with_name(f".{self._target.name}.{os.getpid()}")
        try:
            new.write_text(self._linker.memory_map().to_html(), encoding="utf-8")
            new.replace(self._target)
        finally:
            new.unlink(missing_ok=True)

    def end(self) -> None:
        """Write the last page, and end the thread."""
        self._ended = True
        if self._thread.ident is not None:
            signal.pthread_kill(self._thread.ident, SIGNAL)
        self._thread.join()
        self._write()
