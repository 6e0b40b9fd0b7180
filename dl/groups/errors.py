"""Errors of the protocol between threads, as the linker's own: the border that none of `threads` crosses unnamed."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from dl.errors import GroupEndedError, ProgramDeadlockedError, ReplayFailedError
from threads import DeadlockError, ReplayError, ReplicaClosedError, ThreadsError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def dl_error(error: ThreadsError) -> Exception:
    """Return the linker's error for one of `threads`; what a caller interrupts a thread with is its own and stays."""
    if isinstance(error, DeadlockError):
        return ProgramDeadlockedError(error.threads)
    if isinstance(error, ReplayError):
        return ReplayFailedError(error.replica, error.cause)
    if isinstance(error, ReplicaClosedError):
        return GroupEndedError(error.replica, error.reason)
    return error


def raises_dl_errors(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Have a function of the API raise the linker's errors."""

    @wraps(function)
    def call(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
        try:
            return function(*arguments, **options)
        except ThreadsError as error:
            raise dl_error(error) from error.__cause__

    return call
