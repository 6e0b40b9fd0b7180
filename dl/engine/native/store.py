"""The rules of a native store: one thread at a time, not closed under its own guest code, endings of calls.

A store counts the calls under way, so it can refuse to be closed under its own guest code, and to be used by a second thread
meanwhile. Both would otherwise be a use of freed or contended memory.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from threading import get_ident

from dl.engine.native import stacks
from dl.engine.native.pending import take_pending
from dl.errors import EngineError
from memory import Uncopied

DEFERRED = 1
"""Stands for an ending, which is a pointer, when a call is to end with a deferred exception."""


class NativeStore(Uncopied, ABC):
    """What calls into the guest need of a store; each engine says how its native objects are used and freed.

    Args:
        max_stack: bytes of native stack that a thread's calls into the guest may use.

    Raises:
        EngineError: the calling thread's stack is too small for guest code.

    Attributes:
        thread: the thread that used the store last, as `threading.get_ident` numbers it; -1 once the store is closed.
            Whoever runs guest code first compares it with its own and calls `enter_thread` if it differs.
        running: calls into the guest that are under way, one inside the other. Whoever runs guest code keeps it.
        trap: where a call puts an ending.
        trap_address: address of `trap`.
        deferred: exceptions that end the innermost guest call soon, because nothing could unwind it when they were raised.
    """

    def __init__(self, max_stack: int) -> None:
        stacks.check_this_thread(max_stack)
        self._max_stack = max_stack
        self.thread = get_ident()
        self.running = 0
        self.trap = ctypes.c_void_p()
        self.trap_address = ctypes.addressof(self.trap)
        self.deferred: list[BaseException] = []

    @abstractmethod
    def context(self) -> int:
        """Return what native functions take for the store.

        Raises:
            EngineError: the store is closed.
        """

    def enter_thread(self) -> None:
        """Make the calling thread the one that uses the store.

        Raises:
            EngineError: the store is closed, runs guest code of another thread, or the thread's stack is too small.
        """
        self.context()
        if self.running:
            raise EngineError("the store runs guest code in another thread; it serves one thread at a time")
        stacks.check_this_thread(self._max_stack)
        self.thread = get_ident()

    def begin_closing(self) -> None:
        """Say that the store is no thread's any more.

        Raises:
            EngineError: guest code runs in it.
        """
        if self.running:
            raise EngineError(
                "the store runs guest code; it can be closed when the call into the guest has ended"
            )
        self.thread = -1

    @abstractmethod
    def raise_ending(self, error: int | None) -> None:
        """Raise what a guest call ended with, if it did not return: `error` and `trap` are the native endings."""

    @abstractmethod
    def free_ending(self, error: int | None, trap: int | None) -> None:
        """Free native endings."""

    def discard_ending(self, interruption: BaseException) -> None:
        """Forget what a guest call ended with, because Python code was interrupted as the call returned."""
        self.deferred.clear()
        trap = self.trap.value if self.trap.value != DEFERRED else None
        self.trap.value = None
        self.free_ending(None, trap)
        interruption.__context__ = take_pending() or interruption.__context__

    def take_trap(self, error: int | None) -> int | None:
        """Return the ending that a call left in `trap`; raise the deferred exception that made the call end, if any."""
        # The engine leaves the stand-in where it is when the next check for interruption ended the call.
        trap = self.trap.value if self.trap.value != DEFERRED else None
        self.trap.value = None
        if self.deferred:
            deferred = self.deferred.pop()
            self.deferred.clear()
            self.free_ending(error, trap)
            take_pending()
            raise deferred
        return trap
