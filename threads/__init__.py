"""Instance-group replication: many OS threads, each with its own group, stay one program while it links.

`rendezvous` and `replica` are the barrier, `log` what passes through it, `grace` what is given back afterwards; `waits` and
`futex` are what threads wait in; `uninterrupted` holds Ctrl-C back; `testing` explores how all of it interleaves. Nothing
here knows of WebAssembly: it gets callables. All public names are here, but for `threads.async_host`, which imports anyio,
and `threads.testing`.
"""

from typing import TYPE_CHECKING, Any

from threads import recording
from threads.errors import (
    BarrierTimeoutError,
    DeadlockError,
    ForkedProcessError,
    InGuestCodeError,
    Interrupted,
    ProtocolError,
    ReplayError,
    ReplicaClosedError,
    ThreadsError,
)
from threads.fences import FREE_THREADED
from threads.futex import FutexTable, SharedFutexes
from threads.instigation import Instigation
from threads.interpreter import is_main_interpreter
from threads.log import OperationLog
from threads.nudger import Nudger
from threads.parallel import Count, ParallelRendezvous, new_count
from threads.platform import SYSTEM, Platform
from threads.process import CreatingProcess
from threads.rendezvous import CLOSED, ENDED, Rendezvous
from threads.replica import DETACHED, GUEST, HOST, STALE, Replica, Versioned
from threads.tables import found_in
from threads.uninterrupted import Guard, protect, uninterrupted, unwound_whole
from threads.waiter import Waiter
from threads.waits import Event, WaitQueue, WaitResult, Waits, unpark_all

if TYPE_CHECKING:
    from threads.statistics import RendezvousStatistics


def __getattr__(name: str) -> Any:
    """Import what only statistics need."""
    if name != "RendezvousStatistics":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from threads.statistics import RendezvousStatistics  # noqa: PLC0415  `dataclasses` is slow to import

    return RendezvousStatistics


__all__ = [
    "CLOSED",
    "DETACHED",
    "ENDED",
    "FREE_THREADED",
    "GUEST",
    "HOST",
    "STALE",
    "SYSTEM",
    "BarrierTimeoutError",
    "Count",
    "CreatingProcess",
    "DeadlockError",
    "Event",
    "ForkedProcessError",
    "FutexTable",
    "Guard",
    "InGuestCodeError",
    "Instigation",
    "Interrupted",
    "Nudger",
    "OperationLog",
    "ParallelRendezvous",
    "Platform",
    "ProtocolError",
    "Rendezvous",
    "RendezvousStatistics",
    "ReplayError",
    "Replica",
    "ReplicaClosedError",
    "SharedFutexes",
    "ThreadsError",
    "Versioned",
    "WaitQueue",
    "WaitResult",
    "Waiter",
    "Waits",
    "found_in",
    "is_main_interpreter",
    "new_count",
    "protect",
    "recording",
    "uninterrupted",
    "unpark_all",
    "unwound_whole",
]
