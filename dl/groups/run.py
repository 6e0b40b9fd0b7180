"""Running the program: its `_start`, and the end of its threads."""

from __future__ import annotations

from dl.errors import LinkerUsageError, ProgramExited, ThreadExited
from dl.groups.entry import Group
from dl.groups.guest_threads import GuestThreads
from dl.program.main_module import START
from dl.program.program import Program
from dl.wasm.types import FuncType
from threads import recording


def run_program(program: Program, guest_threads: GuestThreads, group: Group) -> int:
    """Call the main module's `_start` in a group, and end the threads that the program leaves behind; return its exit code.

    Raises:
        LinkerUsageError: there is no main module, it is no command, or it has run already.
        DlError: the program ended abnormally.
    """
    main = program.main_module
    if main is None:
        raise LinkerUsageError("there is no main module to run")
    if START not in main.wasm.exports:
        raise LinkerUsageError(f"{main.name} exports no _start: it is a library of functions, not a command")
    # WASI lets a command's `_start` be called once. That of a C library traps at a second call, or finds the state of the
    # first run, whose exit has closed its streams and run its destructors.
    if next(program.runs):
        raise LinkerUsageError(f"{main.name} has run already, which a program does once: make another Linker")
    code = 0
    try:
        try:
            with recording.span("guest", "run", main.name):
                group.call_export(main, START, FuncType((), ()))
        except ThreadExited:
            # The program continues without its first thread until its last has ended.
            guest_threads.wait_for_all()
    except ProgramExited as exited:
        code = exited.code
    finally:
        guest_threads.stop_all(ProgramExited(code))
    return code
