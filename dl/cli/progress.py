"""A line on the terminal when linking takes long, so that a silent command is known to work."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING

from dl.cli.console import print_note

if TYPE_CHECKING:
    from typing_extensions import Self

_SECONDS = 0.5
"""What nobody takes for a hang."""


class SlowNotice:
    """Says once that a program is being compiled, if that takes longer than half a second and somebody is looking.

    Args:
        program: its name.
        kept: whether the compiled code is kept for the next run.
        seconds: after how long.
        watched: whether somebody looks; None for whether standard error is a terminal.
    """

    def __init__(
        self, program: str, *, kept: bool, seconds: float = _SECONDS, watched: bool | None = None
    ) -> None:
        self.told = threading.Event()
        after = "; the code is kept for the next run" if kept else ""
        self._text = f"compiling {program}{after}"
        self._timer: threading.Timer | None = None
        if sys.stderr.isatty() if watched is None else watched:
            self._timer = threading.Timer(seconds, self._tell)
            self._timer.daemon = True

    def _tell(self) -> None:
        print_note(self._text)
        self.told.set()

    def stop(self) -> None:
        """Say nothing from now on: the program is linked."""
        if self._timer is not None:
            self._timer.cancel()

    def __enter__(self) -> Self:
        if self._timer is not None:
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
