"""`dlrun`: the linker's command line. The only part of the package that prints.

Its first step is here, before the rest of it is imported: SIGUSR1 asks a process with `--map` for a page, and ends it until the
signal is held back.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["main", "process"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    Args:
        arguments: the words after the command's name; None for those of this process.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if any(word.partition("=")[0] == "--map" for word in words):
        from dl.cli.live_map import held_back_early  # noqa: PLC0415  seldom asked for

        with held_back_early():
            return _run(words)
    return _run(words)


def _run(words: list[str]) -> int:
    from dl.cli.app import run  # noqa: PLC0415  after the signal is held back

    return run(words)


def process() -> NoReturn:
    """Run the command line of this process, and end it with the exit code."""
    from dl.cli.whole_process import run_process  # noqa: PLC0415  only a process of its own needs it

    run_process(main)
