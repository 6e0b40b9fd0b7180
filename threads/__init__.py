"""Instance-group replication: many OS threads, each with its own group, stay one program while it links.

`rendezvous` and `replica` are the barrier, `log` what passes through it; `waits` and `futex` are what threads wait
in; `testing` explores how all of it interleaves. Nothing here knows of WebAssembly: it gets callables.
"""

from threads.errors import (
    BarrierTimeoutError,
    DeadlockError,
    Interrupted,
    ProtocolError,
    ReplayError,
    ReplicaClosedError,
    ThreadsError,
)
from threads.futex import FutexTable
from threads.log import OperationLog
from threads.rendezvous import CLOSED, ENDED, Rendezvous
from threads.replica import DETACHED, GUEST, HOST, STALE, Replica
from threads.statistics import RendezvousStatistics
from threads.waiter import Waiter
from threads.waits import Event, WaitResult, Waits

__all__ = [
    "CLOSED",
    "DETACHED",
    "ENDED",
    "GUEST",
    "HOST",
    "STALE",
    "BarrierTimeoutError",
    "DeadlockError",
    "Event",
    "FutexTable",
    "Interrupted",
    "OperationLog",
    "ProtocolError",
    "Rendezvous",
    "RendezvousStatistics",
    "ReplayError",
    "Replica",
    "ReplicaClosedError",
    "ThreadsError",
    "WaitResult",
    "Waiter",
    "Waits",
]
