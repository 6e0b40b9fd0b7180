"""`--trace`: every link step on standard error, through the loggers `dl.link` and `dl.wasix`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from dl.cli.console import messages, shown

_LOGGER = "dl"


class _OneLine(logging.Formatter):
    """A record as one line that is safe to print."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line: which part of the linker, and what it did."""
        return f"dlrun: {record.name.removeprefix('dl.')}: {shown(record.getMessage())}"


@contextmanager
def tracing(on: bool) -> Iterator[None]:
    """Write every link step to standard error while the block runs."""
    if not on:
        yield
        return
    logger = logging.getLogger(_LOGGER)
    handler: logging.Handler
    if sys.stderr.isatty():
        from rich.highlighter import RegexHighlighter  # noqa: PLC0415  not needed elsewhere
        from rich.logging import RichHandler  # noqa: PLC0415

        handler = RichHandler(
            console=messages(),
            show_time=False,
            show_level=False,
            show_path=False,
            highlighter=RegexHighlighter(),
        )
    else:
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine())
    former = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(former)
