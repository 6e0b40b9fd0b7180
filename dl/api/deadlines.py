"""Bounds on the time that a call into the guest may take.

A bounded call has a thread of its own that watches it. The bound is kept at the guest's next safe point: code that computes is
interrupted, a wait is ended, and a host function that is under way is let finish first.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dl.checks import is_time, shortened
from dl.errors import GuestTimeoutError, LinkerUsageError, ResourceLimitError
from dl.groups.entry import Group
from threads import uninterrupted

if TYPE_CHECKING:
    from dl.api.linker_base import LinkerBase

_GLANCE_SECONDS = 0.002
"""The shortest time after which processor time is looked at again."""
_LONGEST_WAIT_SECONDS = 86400.0
"""What is longer is waited for in parts: a platform has a longest time that a lock can wait."""


@contextmanager
def bounded(
    linker: LinkerBase, group: Group, name: str, timeout: float | None, cpu_time: float | None
) -> Iterator[None]:
    """Bound what the calling thread does in its group for a `with`.

    Args:
        linker: the program.
        group: the calling thread's.
        name: what runs, for the error.
        timeout: seconds; None or infinity for no bound.
        cpu_time: seconds of the calling thread's processor time; None or infinity for no bound.

    Raises:
        GuestTimeoutError: a bound was passed.
        LinkerUsageError: a bound is negative, not a number, or too large for a float; or guest code of this program cannot be
            interrupted.
        ResourceLimitError: the host has no thread to watch the call.
    """
    group.check_owner()
    given: tuple[tuple[str, Any], ...] = (("timeout", timeout), ("cpu_time", cpu_time))
    for what, bound in given:
        if bound is not None and not (is_time(bound) and bound >= 0):
            raise LinkerUsageError(f"{what} must be a number of seconds, not {shortened(bound)}")
    timeout, cpu_time = (None if bound == math.inf else bound for bound in (timeout, cpu_time))
    if timeout is None and cpu_time is None:
        yield
        return
    if not linker.engine.capabilities.interrupts:
        raise LinkerUsageError(
            f"{name} cannot be bounded: guest code of this program cannot be interrupted; make the Linker with interrupts=True"
        )
    passed: list[GuestTimeoutError] = []
    ended = threading.Event()
    start = time.monotonic()
    clock = time.pthread_getcpuclockid(threading.get_ident()) if cpu_time is not None else None
    cpu_start = time.clock_gettime(clock) if clock is not None else 0.0

    def stop(bound: float, what: str) -> None:
        passed.append(GuestTimeoutError(name, bound, what))
        group.replica.interrupt_with(passed[0])

    def watch() -> None:
        while True:
            waits = []
            if timeout is not None:
                left = start + timeout - time.monotonic()
                if left <= 0:
                    return stop(timeout, "seconds")
                waits.append(left)
            if cpu_time is not None and clock is not None:
                left = cpu_time - (time.clock_gettime(clock) - cpu_start)
                if left <= 0:
                    return stop(cpu_time, "seconds of processor time")
                waits.append(max(left, _GLANCE_SECONDS))
            if ended.wait(min(*waits, _LONGEST_WAIT_SECONDS)):
                return None

    watcher = threading.Thread(target=watch, name=f"bound of {name}", daemon=True)
    try:
        try:
            with uninterrupted():  # so that it is known whether there is a thread
                watcher.start()
        except RuntimeError as error:
            raise ResourceLimitError(name, f"the host starts no thread to watch it: {error}") from error
        yield
    finally:
        # Until the watcher has ended, and is taken back, it could still stop whatever this thread calls next.
        with uninterrupted():
            ended.set()
            if watcher.ident is not None:
                watcher.join()
            if passed:
                group.replica.withdraw(passed[0])
