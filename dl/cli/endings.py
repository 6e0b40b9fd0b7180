"""How dlrun ends: exit codes, and one line for every error.

=====  ==================================================================
code   meaning
=====  ==================================================================
0-255  what the program returned, modulo 256
1      what was to be built cannot be; dlrun deps, explain and inspect: what was asked for is not there
2      the command line is wrong, or there is no such engine
124    the program was stopped by --timeout
127    the program could not be linked, or called what nothing provides
130    interrupted (Ctrl-C)
143    terminated (SIGTERM)
74     the output cannot be written
134    the program trapped or aborted, or all its threads wait for each other
141    nobody reads the output any more
70     dlrun itself failed
=====  ==================================================================
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from dl.cli.console import print_error, print_note
from dl.errors import (
    BuildError,
    DlError,
    EngineNotFoundError,
    GuestTimeoutError,
    LinkError,
    ProgramDeadlockedError,
    ProgramExited,
    TrapError,
    UncaughtExceptionError,
)
from dl.text import runs

if TYPE_CHECKING:
    import click

NOT_BUILT = 1
TIMED_OUT = 124
"""As `timeout` of coreutils has it."""
USAGE, NOT_LINKED, INTERRUPTED, TRAPPED = 2, 127, 130, 134
TERMINATED = 143
"""Ended by SIGTERM, as a shell has it."""
NOT_FOUND = 1
"""What was asked for is not there, or what was looked for is: for scripts, as `grep` has it."""
INPUT_OUTPUT = 74
"""Output that cannot be written: EX_IOERR of sysexits.h."""
FAILED = 70
"""dlrun itself failed: EX_SOFTWARE of sysexits.h."""
BROKEN_PIPE = 141
"""Nobody reads the output: what a shell reports for SIGPIPE."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends the guest like a Ctrl-C, so that a timeline, a trace or a profile is written to its end."""


def program_code(code: int) -> int:
    """Return what the process returns for a program's exit code."""
    return code & 0xFF


def trap_behind(error: BaseException) -> TrapError | None:
    """Return the trap that an error is or comes from; None if there is none."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, TrapError):
            return seen
        seen = seen.__cause__
    return None


def report(error: BaseException) -> int:
    """Say on standard error what went wrong; return the exit code.

    `DLRUN_TRACEBACK=1` in the environment shows where in Python it was raised.
    """
    try:
        return _report(error)
    except BrokenPipeError:
        return _nobody_reads()


def _report(error: BaseException) -> int:
    if os.environ.get("DLRUN_TRACEBACK") == "1":
        import traceback  # noqa: PLC0415  seldom asked for

        traceback.print_exception(error)
    if isinstance(error, ProgramExited):
        return program_code(error.code)
    import click  # noqa: PLC0415  slow, and most programs end by themselves

    if isinstance(error, click.ClickException):
        _report_usage(error)
        return USAGE
    if isinstance(error, EngineNotFoundError):
        print_error(error)
        return USAGE
    if isinstance(error, GuestTimeoutError):
        print_error(error)
        return TIMED_OUT
    if isinstance(error, BuildError):
        print_error(error)
        return NOT_BUILT
    if isinstance(error, Terminated):
        print_error("terminated")
        return TERMINATED
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        print_error("interrupted")
        return INTERRUPTED
    # One that names a file is of a pipe that an option names, and standard output may still have its reader.
    if isinstance(error, BrokenPipeError) and error.filename is None:
        return _nobody_reads()
    if isinstance(error, ProgramDeadlockedError):
        print_error(error)
        return TRAPPED
    trap = trap_behind(error)
    if trap is not None:
        _report_trap(error, trap)
        return TRAPPED
    if isinstance(error, DlError):
        # A bare LinkError is a file that cannot be read; what it would have been linked to does not matter.
        print_error(f"{error.module}: {error.reason}" if type(error) is LinkError else error)
        return NOT_LINKED
    if isinstance(error, OSError):
        print_error(failure_text(error))
        return INPUT_OUTPUT
    if isinstance(error, ImportError):
        from dl.conflicts import ImportNameError, explained  # noqa: PLC0415  only where something is wrong

        error = explained(error)
        if isinstance(error, ImportNameError):
            print_error(error)
            return FAILED
    print_error(f"{type(error).__name__}: {error}")
    print_note("not an error of the program; DLRUN_TRACEBACK=1 shows where it came from")
    return FAILED


def failure_text(error: OSError) -> str:
    """Return what is said of a file that cannot be written or read."""
    named = isinstance(error.filename, (str, bytes))  # a number where a descriptor was opened
    where = f" {os.fsdecode(error.filename)}" if named else ""
    return f"cannot write or read{where}: {error.strerror or error}"


def _nobody_reads() -> int:
    # What is still buffered cannot be written either; without this the interpreter would say so at its end.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return BROKEN_PIPE


def _report_usage(error: click.ClickException) -> None:
    import click  # noqa: PLC0415  as above

    context = getattr(error, "ctx", None)  # of a UsageError
    if context is not None and type(error).__name__ == "NoArgsIsHelpError":  # which click has since 8.2
        click.echo(context.get_help(), err=True)
        return
    message = error.format_message().strip()
    message = message[:1].lower() + message[1:].rstrip(".")
    command = context.command_path.removesuffix(" run") if context else "dlrun"
    print_error(f"{message} (try '{command} --help')")


def _report_trap(error: BaseException, trap: TrapError) -> None:
    threw = isinstance(trap, UncaughtExceptionError) and trap.type_name is not None
    own = f"terminating due to {trap.reason}" if threw else f"guest trapped: {trap.reason}"
    print_error(own if error is trap else str(error).replace(str(trap), trap.reason))
    for frame in runs([f"{frame} ({frame.source})" if frame.source else frame for frame in trap.frames]):
        print_note(f"at {frame}", style="dim")
