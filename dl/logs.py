"""Loggers that cost nothing until somebody imports `logging`.

Importing it takes as long as a tenth of the linker, and a program that nobody watches logs nothing. Who listens to a logger has
imported `logging` to do so: until then there is nobody to hear what is of less weight than a warning.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

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


class Hearing:
    """Whether anybody listens to a logger, for one thread that asks all the time.

    `logging` keeps for each logger what it has found out about each level, and empties that whenever a level is set. It is
    read here by a method of that dictionary which is this object's own: without a GIL, threads that use one object, if
    only to read it, wait for each other to count their references to it, and `get` locks its dictionary there.

    Args:
        log: the logger.
    """

    __slots__ = ("_is_imported", "_known", "_log")

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._is_imported = sys.modules.__contains__
        self._known: Callable[[int], bool] | None = None

    def of(self, level: int) -> bool:
        """Return whether somebody listens to what has a level; the same as the logger's `isEnabledFor`."""
        known = self._known
        if known is None:
            if not self._is_imported("logging"):
                return False
            # Not documented, so it may be missing one day; then the logger is asked each time.
            kept: dict[int, bool] = getattr(self._log, "_cache", {})
            known = self._known = kept.__getitem__
        try:
            return known(level) and self._log.isEnabledFor(level)
        except KeyError:
            return self._log.isEnabledFor(level)
