"""A rendezvous on real threads for tests: groups that record what they make, and guest code in Python."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import threads
from threads import Rendezvous, Replica, uninterrupted
from threads.switching import HURRIED_SECONDS, SWITCH_INTERVAL

DEADLINE = 30.0  # seconds: far more than anything here takes; only a failing test ever waits so long


def free(lock: Any) -> bool:
    """Return whether the calling thread can take a lock: it does not hold it, though another may for a moment."""
    with uninterrupted():  # a signal between these two would leave it held
        taken = lock.acquire(timeout=20)
        if taken:
            lock.release()
    return bool(taken)


class Program:
    """A rendezvous whose interrupt is heard at once, and groups that record what they apply."""

    def __init__(self, on_interrupt: Callable[[], object] = lambda: None) -> None:
        self.bumps = 0
        self.on_interrupt = on_interrupt
        self.rendezvous: Rendezvous[str] = Rendezvous(self.interrupt)

    def interrupt(self) -> None:
        assert free(self.rendezvous._lock)
        self.bumps += 1
        self.on_interrupt()

    def group(self, name: str = "group", applied: int = 0) -> Group:
        return Group(self, name, applied)

    def commit(
        self,
        operation: str,
        group: Group | None = None,
        *,
        replaces: Mapping[int, str | None] | None = None,
        only_after: int | None = None,
    ) -> int:
        replica = None if group is None else group.replica
        with self.rendezvous.instigate(replica):
            if group is not None:
                group.made.append(operation)
            return self.rendezvous.commit(replica, operation, replaces=replaces or {}, only_after=only_after)

    @property
    def operations(self) -> list[str]:
        return [operation for _, operation in self.rendezvous.log.since(0)]


class Group:
    """An instance group that records its operations; guest code is Python between `enter_guest` and `leave_guest`."""

    def __init__(self, program: Program, name: str, applied: int) -> None:
        self.program = program
        self.made: list[str] = program.operations[:applied]
        self.replica: Replica[str] = Replica(name, self.apply)
        self.on_apply: Callable[[int], object] = lambda _: None
        program.rendezvous.join(self.replica, applied)

    def apply(self, sequence: int, operation: str) -> None:
        assert free(self.program.rendezvous._lock)
        assert sequence == len(self.made) + 1
        self.on_apply(sequence)
        self.made.append(operation)

    @contextlib.contextmanager
    def guest(self) -> Iterator[None]:
        outer = self.replica.enter_guest()
        try:
            yield
        finally:
            self.replica.leave_guest(outer)

    def spin(self, until: Callable[[], bool], started: threading.Event | None = None) -> None:
        """Guest code that computes; its epoch check is every round."""
        with self.guest():
            if started is not None:
                started.set()
            while not until():
                assert len(self.made) == self.program.rendezvous.committed
                self.replica.safe_point()


@contextlib.contextmanager
def running(*targets: Callable[[], object]) -> Iterator[None]:
    """Run functions on threads while the body runs; afterwards all must end, and none may have raised."""
    failures: list[BaseException] = []

    def guarded(target: Callable[[], object]) -> None:
        try:
            target()
        except BaseException as error:  # noqa: BLE001 - raised again below, in the test's thread
            failures.append(error)

    started = [threading.Thread(target=guarded, args=(target,), daemon=True) for target in targets]
    for thread in started:
        thread.start()
    try:
        yield
    finally:
        for thread in started:
            thread.join(DEADLINE)
    assert not failures, failures
    assert not any(thread.is_alive() for thread in started)


def until(condition: Callable[[], object]) -> None:
    """Wait until another thread has come to where the test wants it; what it waits in has no event to offer."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0)


# What a signal handler may do, at every line. A trace function stands in for it: it acts just before the n-th line
# of the protocol's own code, in the thread that runs it.


class AtLine:
    """Acts once, before the n-th line of `threads/` that the body executes."""

    def __init__(self, number: int, action: Callable[[], object], skip: Callable[[FrameType], bool]) -> None:
        self.number = number
        self.action = action
        self.skip = skip
        self.count = 0

    def __enter__(self) -> AtLine:  # noqa: PYI034 - `Self` needs 3.11
        self._previous = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._previous)

    @property
    def acted(self) -> bool:
        return self.count >= self.number

    def _trace(self, frame: FrameType, _event: str, _argument: object) -> Any:
        if os.path.dirname(frame.f_code.co_filename) != os.path.dirname(threads.__file__):
            return None
        return self._local

    def _local(self, frame: FrameType, event: str, _argument: object) -> Any:
        if event == "line" and not self.acted and not self.skip(frame):
            self.count += 1
            if self.count == self.number:
                sys.settrace(None)
                self.action()
        return self._local


class AtLook:
    """Acts once, at the n-th place of `threads/` where the interpreter looks for signals: a start, or after a native call."""

    def __init__(self, number: int, action: Callable[[], object]) -> None:
        self.number = number
        self.action = action
        self.count = 0

    def __enter__(self) -> AtLook:  # noqa: PYI034 - `Self` needs 3.11
        sys.setprofile(self._look)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    @property
    def acted(self) -> bool:
        return self.count >= self.number

    def _look(self, frame: FrameType, event: str, _argument: object) -> None:
        in_threads = os.path.dirname(frame.f_code.co_filename) == os.path.dirname(threads.__file__)
        if in_threads and event in {"call", "c_return"} and not self.acted:
            self.count += 1
            if self.acted:
                sys.setprofile(None)
                self.action()


def hurried() -> bool:
    """Whether somebody still waits for threads, so that Python lets them take turns sooner."""
    return abs(sys.getswitchinterval() - HURRIED_SECONDS) < 1e-6


def is_locked(lock: object) -> bool:
    """Whether somebody has a lock of the platform; those of builds without a GIL have no method that says so."""
    return repr(lock).startswith("<locked ")


def held(program: Program) -> bool:
    rendezvous = program.rendezvous
    locks: tuple[Any, ...] = (rendezvous._lock, rendezvous._turn._lock, SWITCH_INTERVAL._lock)
    return any(map(is_locked, locks))
