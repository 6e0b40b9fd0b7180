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
    ProgramForkedError,
    ReplayFailedError,
)
from threads import (
    CreatingProcess,
    DeadlockError,
    ForkedProcessError,
    InGuestCodeError,
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
        case ForkedProcessError():
            return ProgramForkedError(
                f"the linker belongs to process {error.creator} and cannot be used in process {error.process}, which was "
                "forked from it: make another one there, or start processes with the method 'spawn' or 'forkserver'"
            )
        case InGuestCodeError():
            return LinkerUsageError(
                "guest code cannot be called, and nothing loaded, while this thread is in guest code already: in a signal "
                "handler that Python runs while the guest computes, or in the conversion of an argument; note there what is "
                f"to be done, and do it when the call has returned ({error})"
            )
        case ProtocolError():
            return InternalError(str(error))
        case _:
            return error


def check_process(process: CreatingProcess) -> None:
    """Refuse to work in a forked child.

    Raises:
        ProgramForkedError: the caller runs in one.
    """
    try:
        process.check()
    except ForkedProcessError as error:
        raise dl_error(error) from None


def raises_dl_errors(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Make a function of the API raise the linker's errors."""

    @wraps(function)
    def call(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
        try:
            return function(*arguments, **options)
        except ThreadsError as error:
            raise dl_error(error) from error.__cause__

    return call
