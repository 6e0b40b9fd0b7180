"""`dlrun --map FILE`: a page that shows memory and table of a program while it runs, written anew at each SIGUSR1."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dl.linker import Linker

SIGNAL = signal.SIGUSR1


_early = {"held": False}
"""Whether the signal is held back before the command line is read."""


@contextmanager
def held_back_early() -> Iterator[None]:
    """Hold the signal back while the command line is read, what it needs is imported, and the program is compiled.

    For command lines in which the option may be; `held_back` lets the signal through again if it is one of the program's.
    """
    with held_back(True):
        _early["held"] = True
        try:
            yield
        finally:
            _early["held"] = False


@contextmanager
def held_back(wanted: bool) -> Iterator[None]:
    """Hold the signal back in this thread, and so in all that it starts, so that `live_map` alone takes it.

    Around all that starts threads: the signal ends a process that has one thread which neither holds it back nor handles it.

    Args:
        wanted: whether there is a map; without, the signal has its own effect.
    """
    if not (wanted or _early["held"]):
        yield
        return
    former = signal.pthread_sigmask(signal.SIG_BLOCK if wanted else signal.SIG_UNBLOCK, {SIGNAL})
    try:
        yield
    finally:
        # One that came last would end the process now.
        while wanted and signal.sigtimedwait({SIGNAL}, 0) is not None:
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
    watch = _Watch(linker, target)
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

    def __init__(self, linker: Linker, target: str) -> None:
        from dl.shipping.files import is_special, naming  # noqa: PLC0415  running needs nothing of it

        self._linker = linker
        self._target = target
        self._ended = False
        # A pipe or device gets one page after the other: opened for each, it would wait for a reader of each.
        self._stream: FileIO | None = None
        with naming(target):
            if is_special(target):
                self._stream = FileIO(os.open(target, os.O_WRONLY | os.O_CLOEXEC), "w")
            try:
                self._write()
            except BaseException:
                self._close()
                raise
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
        """Replace the page in one step, so that nobody reads half of it; or write it into what is no file."""
        from dl.shipping.files import naming, replacing  # noqa: PLC0415  as above

        page = memoryview(self._linker.memory_map().to_html().encode())
        if self._stream is None:
            with replacing(self._target) as file:
                file.write(page)
            return
        with naming(self._target):
            while page:
                page = page[self._stream.write(page) :]

    def end(self) -> None:
        """Write the last page, and end the thread."""
        self._ended = True
        if self._thread.ident is not None:
            signal.pthread_kill(self._thread.ident, SIGNAL)
        self._thread.join()
        try:
            self._write()
        finally:
            self._close()

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
