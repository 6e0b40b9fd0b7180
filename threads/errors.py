"""What can go wrong between threads.

ThreadsError
 +-- ReplayError           a follower could not replay an operation: its group ends, alone
 +-- ReplicaClosedError    the replica never joined, or has left: the thread can run no more guest code
 +-- BarrierTimeoutError   some replicas did not come to a barrier in time: nothing was committed
 +-- Interrupted           what to interrupt a thread with when there is nothing more exact to say
 +-- DeadlockError         every thread waits, and nothing is left to wake one
 +-- ForkedProcessError    the program was started in another process, whose threads did not come along
 +-- ProtocolError         the caller broke a rule of this package: file a bug
      +-- InGuestCodeError  what a thread in guest code cannot do: a signal handler did it, or a host call without `enter_host`
"""

from __future__ import annotations

__all__ = [
    "BarrierTimeoutError",
    "DeadlockError",
    "ForkedProcessError",
    "InGuestCodeError",
    "Interrupted",
    "ProtocolError",
    "ReplayError",
    "ReplicaClosedError",
    "ThreadsError",
]


class ThreadsError(Exception):
    """The root of this package's errors."""


class ReplayError(ThreadsError):
    """A follower failed to replay a committed operation, so its group differs from all others and has ended.

    Attributes:
      replica: name of the group's replica.
      sequence: the operation's number in the log, from 1.
      cause: what the replay raised; also the error's `__cause__`.
    """

    def __init__(self, replica: str, sequence: int, cause: BaseException) -> None:
        super().__init__(replica, sequence, cause)
        self.replica = replica
        self.sequence = sequence
        self.cause = cause

    def __str__(self) -> str:
        kind = type(self.cause).__name__
        return f"{self.replica!r} cannot replay operation {self.sequence}: {kind}: {self.cause}"


class ReplicaClosedError(ThreadsError):
    """The replica is no member of a rendezvous, so its thread may not run guest code.

    Attributes:
      replica: its name.
      reason: why: it never joined, it left, or a replay failed.
    """

    def __init__(self, replica: str, reason: str) -> None:
        super().__init__(replica, reason)
        self.replica = replica
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.replica!r} cannot enter guest code: {self.reason}"


class BarrierTimeoutError(ThreadsError):
    """A barrier gave up: replicas stayed in guest code and reached no safe point. Nothing was committed.

    Attributes:
      replicas: names of those that did not come, in the order they joined.
      seconds: how long the barrier waited.
    """

    def __init__(self, replicas: tuple[str, ...], seconds: float) -> None:
        super().__init__(replicas, seconds)
        self.replicas = replicas
        self.seconds = seconds

    def __str__(self) -> str:
        names = ", ".join(repr(name) for name in self.replicas)
        return f"no safe point reached within {self.seconds:g} s by {names}"


class Interrupted(ThreadsError):  # noqa: N818 - as KeyboardInterrupt: it names an event, not a fault
    """A thread's guest call was cancelled; a plain thing to pass to `Replica.interrupt_with`."""

    def __init__(self, reason: str = "interrupted") -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class DeadlockError(ThreadsError):
    """Every thread of the program waits without a time limit, and nothing is left that could wake one.

    Attributes:
      threads: each thread's name and what it waits for, in the order the threads started.
    """

    def __init__(self, threads: tuple[tuple[str, str], ...]) -> None:
        super().__init__(threads)
        self.threads = threads

    def __str__(self) -> str:
        waits = "; ".join(f"{name!r} waits for {what}" for name, what in self.threads)
        return f"deadlock: nothing is left to wake any thread: {waits}"


class ForkedProcessError(ThreadsError):
    """A program was used in a child process made by `os.fork`; its threads and their locks stayed in the parent.

    Attributes:
      creator: number of the process that made it.
      process: number of the process that used it.
    """

    def __init__(self, creator: int, process: int) -> None:
        super().__init__(creator, process)
        self.creator = creator
        self.process = process

    def __str__(self) -> str:
        return (
            f"the program belongs to process {self.creator} and cannot be used in process {self.process}, which was forked "
            "from it: link it anew there, or start processes with the method 'spawn' or 'forkserver'"
        )


class ProtocolError(ThreadsError):
    """A caller broke a rule stated in this package's documentation; the message names it. File a bug."""


class InGuestCodeError(ProtocolError):
    """The thread is in guest code, where what it asks for cannot be done.

    Python code gets there in a handler of a signal that comes while the guest computes, or where an argument is converted for
    the engine; a host call that did not call `enter_host` looks the same.
    """
