"""Loggers that cost nothing until somebody imports `logging`.

Importing it takes as long as a tenth of the linker, and a program that nobody watches logs nothing. Who listens to a logger has
imported `logging` to do so: until then there is nobody to hear what is of less weight than a warning.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    import logging

DEBUG: Final = 10
"""The level of the same name in `logging`."""


class _Quiet:
    """Stands for a logger from before `logging` was imported."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._logger: logging.Logger | None = None

    def _found(self) -> logging.Logger | None:
        """Return the logger, if `logging` is imported by now."""
        if self._logger is None and "logging" in sys.modules:
            self._logger = self._imported()
        return self._logger

    def _imported(self) -> logging.Logger:
        import logging  # noqa: PLC0415  what this file is there to avoid

        return logging.getLogger(self._name)

    def debug(self, message: str, *values: Any, **options: Any) -> None:
        if self._found() is not None:
            self._imported().debug(message, *values, stacklevel=2, **options)

    def info(self, message: str, *values: Any, **options: Any) -> None:
        if self._found() is not None:
            self._imported().info(message, *values, stacklevel=2, **options)

    def warning(self, message: str, *values: Any, **options: Any) -> None:
        """Pass a warning on, or print it, as `logging` does where nobody listens.

        Without importing it, which a process that has given its rights away may no longer be able to.
        """
        if self._found() is not None:
            self._imported().warning(message, *values, stacklevel=2, **options)
        elif sys.stderr is not None:
            sys.stderr.write(f"{message % values if values else message}\n")

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802  the name of `logging`
        found = self._found()
        return found is not None and found.isEnabledFor(level)

    def __getattr__(self, name: str) -> Any:
        """Whatever else is asked of a logger is asked of the real one."""
        return getattr(self._imported(), name)


def logger(name: str) -> logging.Logger:
    """Return the logger of a name, as `logging.getLogger` does, or one that becomes it when `logging` is imported."""
    quiet = _Quiet(name)
    return quiet._found() or cast("logging.Logger", quiet)  # noqa: SLF001  of this file
