"""A line on the terminal when compiling takes long, so that a silent command is known to work."""

from __future__ import annotations

import os
import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING

from dl.cli.console import print_note
from dl.link.compile import being_compiled

if TYPE_CHECKING:
    from typing_extensions import Self

_SECONDS = 0.5
"""What nobody takes for a hang."""


class SlowNotice:
    """Says once what is being compiled, if a program is not linked after half a second and somebody is looking.

    Nothing is said while nothing is compiled: then it is the program that takes long, in a constructor.

    Args:
        program: its name.
        kept: whether the compiled code is kept for the next run.
        seconds: after how long, and how often it looks from then on.
        watched: whether somebody looks; None for whether standard error is a terminal.
    """

    def __init__(
        self, program: str, *, kept: bool, seconds: float = _SECONDS, watched: bool | None = None
    ) -> None:
        self.told = threading.Event()
        self._program = program
        self._after = "; the code is kept for the next run" if kept else ""
        self._seconds = seconds
        self._linked = threading.Event()
        self._is_watched = sys.stderr.isatty() if watched is None else watched

    def _watch(self) -> None:
        while not self._linked.wait(self._seconds):
            name = next(iter(being_compiled()), None)
            if name is not None:
                whole = os.path.basename(self._program)
                part = os.path.basename(name)
                what = self._program if part == whole else f"{part} for {self._program}"
                print_note(f"compiling {what}{self._after}")
                self.told.set()
                return

    def stop(self) -> None:
        """Say nothing from now on: the program is linked."""
        self._linked.set()

    def __enter__(self) -> Self:
        if self._is_watched:
            threading.Thread(target=self._watch, name="dlrun: notice", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
