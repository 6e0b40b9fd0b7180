"""The order of memory accesses that the protocol needs beyond what locks give, in one named operation.

The one thing that locks do not give here: a thread writes one variable and then reads another; another thread does the
same with the two exchanged; and at least one of them must see what the other has written (Dekker's argument). A processor
lets a later load overtake an earlier store, so both may read the old values, unless each has a *fence* between the two.

One side of every such pair runs often (each host call) and the other seldom (a barrier, an interrupt). So a fence has a
light side and a heavy side, after Linux's `membarrier` and C++'s proposed `asymmetric_thread_fence`:

| interpreter | light | heavy |
| --- | --- | --- |
| with a GIL | nothing | nothing: every access runs with the GIL held, and handing it over orders memory |
| without, on Linux | nothing | `membarrier`: a full barrier in every running thread of the process |
| without, elsewhere | a lock's acquire and release | the same lock's |

Why a lock suffices, held for nothing: of two threads that pass it, one is second, and the first one's stores before it are
visible to the second one's loads after it.

What the interpreter itself promises without a GIL is less: that a load sees a value that was stored, whole, and that the
object it refers to is initialized (release and acquire). That stores to slots pass the object's lock today, which on x86 is a
full fence, is an accident that nothing here relies on. That two bytecodes of one thread are not exchanged by the compiler is
relied on: between them lies the interpreter's dispatch.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from operator import attrgetter
from typing import Any, Final, Protocol

__all__ = [
    "FREE_THREADED",
    "Fence",
    "Fences",
    "GilFences",
    "LockFence",
    "LockFences",
    "MembarrierFences",
    "fences_of_this_interpreter",
    "pass_heavy",
]


FREE_THREADED: Final = "free-threading" in sys.version
"""Whether this interpreter can run without a GIL. It may switch one on while it imports an extension, so this decides."""


class Fence(Protocol):
    """What the two sides of a pair of variables pass, each between its store and its load.

    For any thread, also in a signal handler that has interrupted either operation.
    """

    def light(self) -> None:
        """Pass on the side that passes often."""
        ...

    def heavy(self) -> None:
        """Pass on the side that passes seldom."""
        ...


class Fenced(Protocol):
    """What has variables on the light side of a fence."""

    fence: Fence


_FENCE_OF: Final = attrgetter("fence")


def pass_heavy(owners: Iterable[Fenced]) -> None:
    """Pass the heavy sides of several objects' fences, each once; most platforms have one for all of them."""
    for fence in set(map(_FENCE_OF, owners)):
        fence.heavy()


class Fences(Protocol):
    """Where fences come from.

    Attributes:
      light_is_free: whether `light` does nothing, so that a path which cannot afford a call may leave it out.
    """

    light_is_free: bool

    def fence(self) -> Fence:
        """Return a fence: a new one, or one that serves all pairs of variables of the process."""
        ...


class GilFences:
    """With a GIL: nothing to do."""

    light_is_free = True

    def fence(self) -> Fence:
        """Return the one fence."""
        return self

    def light(self) -> None:
        """Do nothing."""

    def heavy(self) -> None:
        """Do nothing."""


_EXPEDITED: Final = 1 << 3  # MEMBARRIER_CMD_PRIVATE_EXPEDITED, linux/membarrier.h
_REGISTER: Final = 1 << 4  # MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED
_CALL_NUMBERS: Final = {
    "x86_64": 324,
    "aarch64": 283,
    "riscv64": 283,
    "loongarch64": 283,
    "ppc64le": 365,
    "s390x": 356,
}
"""Of `membarrier`, by what `uname -m` says; for processes of 64 bits."""


class MembarrierFences:
    """Without a GIL, on Linux: the kernel interrupts the processors that run other threads of the process.

    Raises:
      OSError: the kernel has no such call, or a filter of calls forbids it.
    """

    light_is_free = True

    def __init__(self) -> None:
        self._call = _membarrier()
        self._register()

    def fence(self) -> Fence:
        """Return the one fence."""
        return self

    def light(self) -> None:
        """Do nothing."""

    def heavy(self) -> None:
        """Have every thread's earlier stores done, and its later loads not begun, at some moment of this call.

        Raises:
          OSError: the kernel no longer allows it; the protocol cannot go on.
        """
        if self._call(_EXPEDITED):
            self._register()  # in a forked child, if that has not inherited it
            if self._call(_EXPEDITED):
                raise OSError("membarrier was available when the process began and is not any longer")

    def _register(self) -> None:
        if self._call(_REGISTER):
            raise OSError("this system does not allow membarrier")


def _membarrier() -> Callable[[int], int]:
    if sys.platform != "linux" or sys.maxsize < 2**32:
        raise OSError("this system has no membarrier")
    number = _CALL_NUMBERS.get(os.uname().machine)
    if number is None:
        raise OSError("the number of the call membarrier on this machine is not known")
    # Not before: an interpreter with a GIL needs no ctypes here.
    import ctypes  # noqa: PLC0415

    # Without giving the thread state up: a thread that is about to be stopped for a collection answers a little later.
    call: Any = ctypes.PyDLL(None).syscall
    call.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_long]
    call.restype = ctypes.c_long
    return lambda command: int(call(number, command, 0, 0))


class LockFence:
    """Both sides pass one lock.

    Attributes:
      lock: reentrant, because a signal handler may pass it while its thread does. Tests put another one there.
    """

    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock: AbstractContextManager[Any] = threading.RLock()

    def light(self) -> None:
        """Pass the lock."""
        with self.lock:
            pass

    heavy = light


class LockFences:
    """Without a GIL and without `membarrier`: a lock for each fence."""

    light_is_free = False

    def fence(self) -> Fence:
        """Return a new fence: threads of different ones do not wait for each other."""
        return LockFence()


def fences_of_this_interpreter() -> Fences:
    """Return the cheapest fences that this interpreter and this system need."""
    if not FREE_THREADED:
        return GilFences()
    try:
        return MembarrierFences()
    except OSError:
        return LockFences()
