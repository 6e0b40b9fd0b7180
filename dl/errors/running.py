"""How guest code ends that does not return."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from typing import TypeAlias

from dl.errors.base import DlError
from dl.errors.frames import Frame
from dl.text import runs, shown


class TrapError(DlError):
    """Guest code trapped.

    Attributes:
        reason: the trap in words, such as `unreachable`.
        code: the engine's trap code; None when the engine gives none.
        frames: the guest's stack, innermost first: `Frame`s, which are `module!function` texts, and know their source lines.
    """

    def __init__(self, reason: str, code: int | None = None, frames: Sequence[str] = ()) -> None:
        super().__init__(reason, code, frames)
        self.reason = reason
        self.code = code
        self.frames = tuple(Frame.of(frame) for frame in frames)

    def __str__(self) -> str:
        described = runs([frame.described for frame in self.frames])
        at = f" (in {' < '.join(described[:8])})" if self.frames else ""
        return f"guest trapped: {self.reason}{at}"


class StalePointerError(TrapError):
    """Guest code called a function pointer into a library that was closed.

    Attributes:
        library: name of the library that was there.
        handle: the handle that it had.
    """

    def __init__(
        self, library: str, handle: int, code: int | None = None, frames: Sequence[str] = ()
    ) -> None:
        super().__init__(
            f"call of a function pointer into {shown(library)}, which was closed (it was module {handle})",
            code,
            frames,
        )
        self.args = (library, handle, code, frames)
        self.library = library
        self.handle = handle


class UncaughtExceptionError(TrapError):
    """Guest code threw a WebAssembly exception that none of the guest code in the call caught.

    It ends the call as a trap does: no guest code further out can catch it.

    Attributes:
        tag: name of the exception's tag, `__cpp_exception` or `__c_longjmp` for C++ and `longjmp`; None for a tag that
            no module exports.
        value: its first value if that is an i32, unsigned: with the two tags, an address in linear memory; None otherwise.
        type_name: the type of a C++ exception, as its author wrote it; None if it is no such exception, or not known.
        what: what a C++ exception that derives from `std::exception` says of itself, at most 4,096 bytes; None otherwise.
    """

    def __init__(
        self,
        tag: str | None,
        value: int | None,
        code: int | None = None,
        frames: Sequence[str] = (),
        type_name: str | None = None,
        what: str | None = None,
    ) -> None:
        if type_name is None:
            named = f" with tag {tag}" if tag else ""
            carries = "" if value is None else f" (its first value is {value:#x})"
        else:
            named, carries = f" of type {shown(type_name)}", "" if what is None else f": {shown(what)}"
        super().__init__(f"uncaught exception{named}{carries}", code, frames)
        self.args = (tag, value, code, frames, type_name, what)
        self.tag = tag
        self.value = value
        self.type_name = type_name
        self.what = what


DescribeException: TypeAlias = Callable[[str | None, int | None], tuple[str, str | None] | None]
"""Returns the type of an exception and what it says, from its tag's name and its first value; None if neither is known."""


class ProgramExited(DlError):  # noqa: N818  an ending asked for, not a fault
    """The guest ended the program.

    Attributes:
        code: its exit code.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code

    def __str__(self) -> str:
        return f"program exited with code {self.code}"


class ThreadExited(DlError):  # noqa: N818  an ending asked for, not a fault
    """The guest ended the calling thread."""

    def __str__(self) -> str:
        return "thread exited"


class GuestThreadError(DlError):
    """A thread that the guest started ended abnormally, and the program with it.

    Attributes:
        thread: its name.
        cause: what ended it.
    """

    def __init__(self, thread: str, cause: BaseException) -> None:
        super().__init__(thread, cause)
        self.thread = thread
        self.cause = cause
        self.__cause__ = cause

    def __str__(self) -> str:
        return f"{self.thread}: {self.cause}"


class ProgramDeadlockedError(DlError):
    """All threads of the program wait, and nothing is left that could wake one.

    Attributes:
        threads: name of each thread, and what it waits for.
    """

    def __init__(self, threads: Sequence[tuple[str, str]]) -> None:
        super().__init__(threads)
        self.threads = tuple(threads)

    def __str__(self) -> str:
        return "deadlock: " + "; ".join(f"{name} waits for {what}" for name, what in self.threads)


class GroupEndedError(DlError):
    """The thread's instance group can run no more guest code; the program's other threads can.

    Attributes:
        thread: name of the group's thread.
        reason: why, lower case.
    """

    def __init__(self, thread: str, reason: str) -> None:
        super().__init__(thread, reason)
        self.thread = thread
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.thread}: its instance group has ended: {self.reason}"


class ReplayFailedError(GroupEndedError):
    """The group could not make a link operation that another thread has committed, so it alone has ended.

    Attributes:
        cause: what went wrong, such as memory or table that cannot grow.
    """

    def __init__(self, thread: str, cause: BaseException) -> None:
        super().__init__(thread, f"it cannot follow a link operation: {cause}")
        self.args = (thread, cause)
        self.cause = cause
        self.__cause__ = cause


class GuestTimeoutError(DlError, TimeoutError):
    """A call into the guest was stopped because it took longer than it may; the group can be used further.

    Attributes:
        function: what was called.
        limit: the bound.
        unit: what the bound counts: seconds, or seconds of processor time.
    """

    def __init__(self, function: str, limit: float, unit: str) -> None:
        super().__init__(function, limit, unit)
        self.function = function
        self.limit = limit
        self.unit = unit

    def __str__(self) -> str:
        return f"{shown(self.function)} was stopped: it took longer than {self.limit:g} {self.unit}"


class WorkerLostError(DlError):
    """The process that ran a function died, or was killed with its pool; nobody knows how far the function came.

    Attributes:
        task: name of the function.
        process: number of the process; 0 if none was there any more.
        exit_code: its exit code; negative for the signal that ended it; None if that is not known.
    """

    def __init__(self, task: str, process: int, exit_code: int | None) -> None:
        super().__init__(task, process, exit_code)
        self.task = task
        self.process = process
        self.exit_code = exit_code

    def __str__(self) -> str:
        if self.exit_code is None:
            how = "was ended"
        elif self.exit_code < 0:
            how = f"was ended by {_signal_name(-self.exit_code)}"
        else:
            how = f"ended with code {self.exit_code}"
        return f"process {self.process} {how} while it ran {shown(self.task)}"


class PoolFullError(DlError):
    """A pool of programs takes no request: as many run as may, and as many wait.

    Attributes:
        running: how many run.
        waiting: how many wait.
    """

    def __init__(self, running: int, waiting: int) -> None:
        super().__init__(running, waiting)
        self.running = running
        self.waiting = waiting

    def __str__(self) -> str:
        return f"the pool takes no request: {self.running} run, and {self.waiting} wait"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
