"""The console of rich, but for what it does when nobody reads."""

from __future__ import annotations

from rich.console import Console


class PlainConsole(Console):
    """A console that leaves it to the command what a broken pipe means."""

    def on_broken_pipe(self) -> None:
        """Raise the error that is being handled, where rich ends the process."""
        raise  # noqa: PLE0704  called by rich from its handler of BrokenPipeError
