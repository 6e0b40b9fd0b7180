"""Exceptions of host functions on their way through the guest.

A host function that raises has the engine unwind the guest by an ending of the engine's own, a trap or an error. The exception
itself waits here, under the raising thread's identity, and the innermost call into the guest of that thread, the one it
interrupts, takes it: the same object, any `BaseException`. No lock is needed, because a thread only touches its own entry.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident

from dl.engine.native.entry import entry

_PENDING: dict[int, BaseException] = {}
"""By thread identity. Invariant: an entry exists only between a host function's return with an ending and the return of the
innermost guest call of the same thread."""


@entry
def interrupt_guest(error: BaseException, make_ending: Callable[[], int]) -> int:
    """Send an exception to the calling thread's innermost guest call.

    Args:
        error: the exception.
        make_ending: makes the native ending that unwinds the guest, which the callback is to return.
    """
    try:
        _PENDING[get_ident()] = error
        return make_ending()
    except BaseException as later:  # noqa: BLE001  a signal's: it replaces the other, as in any `except`
        later.__context__ = error
        _PENDING[get_ident()] = later
        return make_ending()


def take_pending() -> BaseException | None:
    """Take the exception that is on its way to the calling thread's innermost guest call, if there is one."""
    return _PENDING.pop(get_ident(), None)


def is_pending() -> bool:
    """Whether an exception is on its way to the calling thread's innermost guest call."""
    return get_ident() in _PENDING
