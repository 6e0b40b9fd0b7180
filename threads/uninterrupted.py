"""Ctrl-C, held back while something must not stop half-way.

Python runs the handler of SIGINT in the main thread, between two bytecodes, and its usual handler raises. One such exception
is an event like any other: what was under way fails and is undone. But people press Ctrl-C several times, and a
process group's leader may send several within a millisecond; the second exception then hits the undoing of the first.
An `except` or a `finally` cannot exclude that, since nothing it does comes before its own first bytecode.

So while a guard is active, SIGINT has a handler of ours, which calls the one that was there, now or later. There are
two kinds:

  * `uninterrupted()` holds everything back until its end;
  * `unwound_whole()` holds back only while an exception is being handled inside of it (in an `except`, a `finally`, or an
    `__exit__` that got one), and in the `__exit__` methods named by `protect`. The interpreter marks an exception as handled
    before the first bytecode of its handler, so there is no gap; and code that is merely computing can be interrupted.

What is held back is not lost, nor late: the former handler is called once for all of it, and may raise, at the end of what
it was held back for: at the guard's end, or where a function named by `protect` returns to code that can be interrupted,
which may wait for ever. The entry of a guard is such a function.

What this does not cover:
  * other ways to raise between two bytecodes: handlers of other signals, `PyThreadState_SetAsyncExc`, trace functions. They
    are for the same reason no business of a library; a program should not raise from them;
  * CPython 3.10 may run a handler between the end of a `with` that went well and its `__exit__`, or hold one back that
    comes between the last look of a protected function and its return. Later versions do neither: they look for signals
    only where a function starts, after a call of one that is not Python's, and where a loop goes round;
  * the first bytecodes of entering a guard, before the handler is in place: nothing has been done yet that would
    have to be undone;
  * a handler that is not Python's (SIG_DFL, SIG_IGN, one that C code has installed): it raises nothing;
  * a handler that the guarded code itself installs: from then on that one counts.

In threads other than the main one a guard does nothing: no handler ever runs there.
"""

from __future__ import annotations

import sys
import threading

# `signal` wraps these two in enumerations, for ten times the cost.
from _signal import SIGINT, getsignal  # type: ignore[import-not-found]
from _signal import signal as install
from _thread import get_ident
from collections.abc import Callable
from functools import update_wrapper
from types import CodeType, FrameType, FunctionType, TracebackType
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

__all__ = ["Guard", "protect", "uninterrupted", "unwound_whole"]

# All of this is the main thread's, so it needs no lock; a handler may run between any two lines.
_guards: list[Guard] = []  # active, the innermost last
_former: Any = None  # SIGINT's handler before the outermost guard
_protected: set[CodeType] = set()


class Guard:
    """Holds back SIGINT for a `with`; see the module. For one `with` at a time; guards nest."""

    __slots__ = ("_baseline", "_held", "_holds", "_pending")

    def __init__(self, *, holds: bool) -> None:
        self._holds = holds  # whatever the body does
        self._held = holds  # or because it is entered where an outer guard holds
        self._baseline: BaseException | None = None  # what was being handled at entry
        self._pending = False

    def __enter__(self) -> Guard:  # noqa: PYI034 - `Self` needs 3.11
        if get_ident() == threading.main_thread().ident:
            _install(self)
            try:
                _deliver(sys._getframe(1))  # noqa: SLF001
            except BaseException:
                _uninstall(self)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self in _guards:
            _uninstall(self)

    def holds_back_now(self) -> bool:
        """Return whether it holds back throughout, or because an exception is being handled."""
        if self._held:
            return True
        handled = sys.exc_info()[1]
        return handled is not None and handled is not self._baseline

    def holds_back(self, frame: FrameType | None) -> bool:
        """Return whether a signal that arrives in a frame of the body is held back."""
        if self.holds_back_now():
            return True
        while frame is not None:
            if frame.f_code in _protected:
                return True
            frame = frame.f_back
        return False


def uninterrupted() -> Guard:
    """Hold SIGINT back until the end of the `with`: for undoing something, or for steps that belong together.

    What the body waits for must come in bounded time. It has no effect on `Waiter.interrupt`; see `Waiter.shielded`.
    """
    return Guard(holds=True)


def unwound_whole() -> Guard:
    """Hold SIGINT back only while an exception is being handled in the `with`, so that its undoing is not cut short."""
    return Guard(holds=False)


def protect(function: Function) -> Function:
    """Make active guards hold SIGINT back in a function, from its first bytecode to its return: for `__exit__` methods.

    One that came meanwhile is delivered when it returns. When it raises, that is an exception which somebody handles.
    """

    def whole(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        _deliver(sys._getframe(1))  # noqa: SLF001
        return result

    _protect(whole)
    return update_wrapper(whole, function)  # type: ignore[return-value]


def _protect(function: Function) -> Function:
    """Make active guards hold SIGINT back in a function, which delivers what came meanwhile itself."""
    assert isinstance(function, FunctionType)
    _protected.add(function.__code__)
    return function


_protect(Guard.__enter__)
_protect(Guard.__exit__)


@_protect
def _install(guard: Guard) -> None:
    global _former  # noqa: PLW0603 - there is one SIGINT in a process
    current = getsignal(SIGINT)
    if current is not _on_sigint:
        if not callable(current):  # SIG_DFL, SIG_IGN, or one that is not Python's
            return
        _guards.clear()  # of guards whose body has replaced the handler
        _former = current
    if _guards:
        # Protected functions on the stack hold back by themselves, for as long as they are there: whoever looks then sees them.
        # To look at each frame here would take a microsecond for each ten callers.
        guard._held = guard._holds or _guards[-1].holds_back_now()  # noqa: SLF001 - one class
    guard._baseline = sys.exc_info()[1]  # noqa: SLF001
    _guards.append(guard)  # first, so that the handler has a place to note what it holds back
    for outer in _guards[-2:-1]:
        if outer._pending and not guard._held:  # noqa: SLF001
            outer._pending, guard._pending = False, True  # noqa: SLF001  for whom it is delivered
    if current is not _on_sigint:
        install(SIGINT, _on_sigint)


@_protect
def _uninstall(guard: Guard) -> None:
    if guard is _guards[0]:
        # The handler first: as long as it is ours, it has a guard to note things at.
        if getsignal(SIGINT) is _on_sigint:
            install(SIGINT, _former)
        _guards.clear()
        if guard._pending:  # noqa: SLF001 - one class
            _former(SIGINT, sys._getframe(2))  # noqa: SLF001
        return
    while _guards.pop() is not guard:
        pass  # one whose end was cut off
    if guard._pending:  # noqa: SLF001
        _guards[-1]._pending = True  # noqa: SLF001
    _deliver(sys._getframe(2))  # noqa: SLF001


@_protect
def _deliver(frame: FrameType | None) -> None:
    """Call the former handler for what the innermost guard has noted, if it holds nothing back where a frame is."""
    while _guards and _guards[-1]._pending and not _guards[-1].holds_back(frame):  # noqa: SLF001
        _guards[-1]._pending = False  # noqa: SLF001
        _former(SIGINT, frame)


@_protect
def _on_sigint(number: int, frame: FrameType | None) -> None:
    if _guards and _guards[-1].holds_back(frame):
        _guards[-1]._pending = True  # noqa: SLF001 - one class
    else:
        _former(number, frame)
