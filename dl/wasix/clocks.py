"""`clock_time_get` and `clock_res_get`: ours, since the engine's WASI has no clocks of CPU time.

Where it can, `dl.glue.forwarder` asks the engine for the others. Its monotonic clock begins just before ours, so what waits
until a time by ours does not return before it by the engine's.

Numbers of the clocks: the witx definition `clockid`. All times are nanoseconds. The monotonic clock and the CPU time of the
process begin with the program, as those of a process of its own would.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from dl.wasix.abi import Errno, ErrnoError

if TYPE_CHECKING:
    from dl.wasix.system import System
    from memory import LinearMemory

REALTIME, MONOTONIC, PROCESS_CPU_TIME, THREAD_CPU_TIME = range(4)

_RESOLUTIONS_SECONDS = {
    REALTIME: time.get_clock_info("time").resolution,
    MONOTONIC: time.get_clock_info("monotonic").resolution,
    PROCESS_CPU_TIME: time.get_clock_info("process_time").resolution,
    THREAD_CPU_TIME: time.get_clock_info("thread_time").resolution,
}


class Clocks:
    """The clocks of one program.

    The CPU time of the process is that of the host's process since the program began: it also counts what other threads of
    the host have used.
    """

    def __init__(self, system: System) -> None:
        self._system = system
        self._memory: LinearMemory | None = None
        self._used = time.process_time_ns()
        self._now: dict[int, Callable[[], int]] = {
            REALTIME: time.time_ns,
            MONOTONIC: system.monotonic_ns,
            PROCESS_CPU_TIME: lambda: time.process_time_ns() - self._used,
            THREAD_CPU_TIME: time.thread_time_ns,
        }

    def now(self, clock: int) -> int:
        """Return a clock's time.

        Raises:
            ErrnoError: INVAL, there is no such clock.
        """
        read = self._now.get(clock)
        if read is None:
            raise ErrnoError(Errno.INVAL)
        return read()

    def clock_time_get(self, clock: int, _precision: int, out: int) -> int:
        """`clock_time_get`."""
        now = self.now(clock)
        self._write(out, now)
        return Errno.SUCCESS

    @staticmethod
    def resolutions() -> tuple[int, ...]:
        """Return the resolutions of the clocks, nanoseconds, by their numbers; each at least 1."""
        return tuple(max(1, round(seconds * 1e9)) for seconds in _RESOLUTIONS_SECONDS.values())

    def clock_res_get(self, clock: int, out: int) -> int:
        """`clock_res_get`."""
        if clock not in _RESOLUTIONS_SECONDS:
            return Errno.INVAL
        self._write(out, self.resolutions()[clock])
        return Errno.SUCCESS

    def _write(self, out: int, value: int) -> None:
        if self._memory is None:
            if self._system.wasi is None:
                # The start function of a main module that defines the memory: nothing of it can be reached yet.
                raise ErrnoError(Errno.NOTSUP)
            self._memory = self._system.memory
        self._memory.write_u64(out, value)
