"""Exceptions of `threads`, translated into `DlError`s where the API begins."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from dl.errors import (
    GroupEndedError,
    InternalError,
    LinkerUsageError,
    ProgramDeadlockedError,
    ReplayFailedError,
)
from threads import (
    DeadlockError,
    ForkedProcessError,
    FreeThreadedError,
    ProtocolError,
    ReplayError,
    ReplicaClosedError,
    ThreadsError,
)

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def dl_error(error: ThreadsError) -> Exception:
    """Return the linker's error for one of `threads`; what a caller interrupts a thread with is its own and stays."""
    match error:
        case DeadlockError():
            return ProgramDeadlockedError(error.threads)
        case ReplayError():
            return ReplayFailedError(error.replica, error.cause)
        case ReplicaClosedError():
            return GroupEndedError(error.replica, error.reason)
        case FreeThreadedError() | ForkedProcessError():
            return LinkerUsageError(str(error))
        case ProtocolError():
            return InternalError(str(error))
        case _:
            return error


def raises_dl_errors(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Make a function of the API raise the linker's errors."""

    @wraps(function)
    def call(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
        try:
            return function(*arguments, **options)
        except ThreadsError as error:
            raise dl_error(error) from error.__cause__

    return call
