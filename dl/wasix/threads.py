"""Threads, futexes, sleep and exit, for the guest.

ABI: WASIX functions of `wasix_32v1` (thread_*, futex_*), `wasi.thread-spawn` of the wasi-threads proposal, and the functions of
preview 1 that end or suspend a thread. Every wait here is one of `threads.Waits`: it delays no link operation, and it can
be interrupted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from dl.engine.preview1 import PREVIEW1, UNSTABLE, WASIX
from dl.errors import DlError, LinkerUsageError, ProgramExited, ResourceLimitError, ThreadExited
from dl.program.host_symbols import ATOMICS, SystemFunction
from dl.wasix.abi import NAMESPACES, WAITING, WASI_THREADS, Errno
from dl.wasix.adapter import Adapter, running_guest
from dl.wasm.types import FuncType
from memory import LinearMemory, OutOfBoundsError
from threads import FutexTable, SharedFutexes, Waiter, WaitResult

if TYPE_CHECKING:
    from dl.wasix.adapter import Functions
    from dl.wasix.signals import Signals
    from dl.wasix.system import System

_OFFSET_STACK, _OFFSET_TLS = 0, 4
_ALL = 0xFFFFFFFF
_NEGATIVE_I64 = 1 << 63


def thread_functions(system: System, adapter: Adapter) -> dict[str, Functions]:
    """Return the functions that concern threads, by namespace."""
    calls = _Calls(system)
    table: dict[str, Callable[..., int | None]] = {
        "thread_spawn": calls.thread_spawn,
        "thread_spawn_v2": calls.thread_spawn,
        "thread_sleep": calls.thread_sleep,
        "thread_join": calls.thread_join,
        "thread_exit": calls.thread_exit,
        "sched_yield": calls.sched_yield,
        "futex_wait": calls.futex_wait,
        "futex_wake": calls.futex_wake,
        "futex_wake_all": calls.futex_wake_all,
        "proc_exit": calls.proc_exit,
        "proc_exit2": calls.proc_exit,
        "thread-spawn": calls.wasi_thread_spawn,
    }
    functions = {
        namespace: adapter.functions(
            namespace, {name: call for name, call in table.items() if name in NAMESPACES[namespace]}
        )
        for namespace in (WASIX, PREVIEW1, UNSTABLE, WASI_THREADS)
    }
    functions[WASIX] |= adapter.functions(
        WASIX,
        {"thread_id": calls.thread_id, "thread_parallelism": calls.thread_parallelism},
        blocking=False,
    )
    functions[ATOMICS] = adapter.functions(
        ATOMICS, {"notify": calls.notify, "wait32": calls.wait32, "wait64": calls.wait64}
    )
    return functions


def memory_waits(
    system: System, memory: LinearMemory | None, futexes: SharedFutexes, table: FutexTable, address: str
) -> list[SystemFunction]:
    """Return what stands in for `notify`, `wait32` and `wait64` on a memory that is not the program's.

    Args:
        system: the program's.
        memory: the memory; None for one that only the calling thread has, whose waits nobody can wake.
        futexes: the waits at its addresses, of all programs that have it.
        table: the program's own among them.
        address: type of its addresses, "i32" or "i64".
    """
    calls = _MemoryCalls(system, memory, futexes, table)
    adapter = Adapter(system.process.signals)
    functions: dict[str, Callable[..., int | None]] = {
        "notify": calls.notify,
        "wait32": calls.wait32,
        "wait64": calls.wait64,
    }
    return [
        adapter.function(ATOMICS, name, call, kind=FuncType((address, *kind.params[1:]), kind.results))
        for name, call in functions.items()
        for kind in (WAITING[name],)
    ]


class _MemoryCalls:
    """The functions of `memory_waits`."""

    def __init__(
        self, system: System, memory: LinearMemory | None, futexes: SharedFutexes, table: FutexTable
    ) -> None:
        self._system = system
        self._memory = memory
        self._futexes = futexes
        self._table = table

    def wait32(self, address: int, expected: int, timeout: int) -> int:
        """`memory.atomic.wait32`."""
        memory = self._memory
        return self._wait(address, lambda: memory is None or memory.read_u32(address) == expected, timeout)

    def wait64(self, address: int, expected: int, timeout: int) -> int:
        """`memory.atomic.wait64`."""
        memory = self._memory
        return self._wait(address, lambda: memory is None or memory.read_u64(address) == expected, timeout)

    def notify(self, address: int, count: int) -> int:
        """`memory.atomic.notify`."""
        return self._futexes.wake(address, count)

    def _wait(self, address: int, unchanged: Callable[[], bool], timeout: int) -> int:
        signals = self._system.process.signals
        with self._futexes.awaiting_others(self._table):
            return int(_waited(signals, self._table, address, unchanged, _limit(timeout)).value)


class _Calls:
    """The functions; each runs on the calling guest thread, outside guest code."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._signals = system.process.signals

    # threads

    def _spawn(self, start: int) -> int:
        """Start a thread; return its number, or minus an errno."""
        if not self._system.shares_memory:
            return -Errno.NOTCAPABLE
        memory = self._system.memory
        # The structure that the start function gets begins with the stack's upper end and the block of
        # thread-local storage, in WASIX as in wasi-libc.
        try:
            stack = memory.read_u32(start + _OFFSET_STACK)
            tls = memory.read_u32(start + _OFFSET_TLS)
        except OutOfBoundsError:
            return -Errno.MEMVIOLATION
        try:
            with running_guest():
                return self._system.spawn_guest(start, stack_pointer=stack, main_tls=tls or None)
        except ResourceLimitError as error:
            return -Errno.AGAIN if error.limit == "threads" else -Errno.NOMEM
        except LinkerUsageError:
            return -Errno.NOTCAPABLE
        except (DlError, RuntimeError):
            return -Errno.AGAIN

    def thread_spawn(self, start: int, out: int) -> int:
        """`thread_spawn`, `thread_spawn_v2`."""
        self._system.memory.read(out, 4)
        number = self._spawn(start)
        if number < 0:
            return -number
        self._system.memory.write_u32(out, number)
        return Errno.SUCCESS

    def wasi_thread_spawn(self, start: int) -> int:
        """`thread-spawn`; returns the thread's number, or minus an errno."""
        return self._spawn(start)

    def thread_exit(self, _code: int) -> None:
        """`thread_exit`; does not return."""
        raise ThreadExited

    def thread_id(self, out: int) -> int:
        """`thread_id`."""
        self._system.memory.write_u32(out, self._system.thread_id())
        return Errno.SUCCESS

    def thread_join(self, number: int) -> int:
        """`thread_join`; at once for a thread that has ended or never was."""
        thread = self._system.guest(number)
        if thread is not None:
            self._signals.resuming(thread.ended_in_program.wait)
        return Errno.SUCCESS

    def thread_parallelism(self, out: int) -> int:
        """`thread_parallelism`."""
        self._system.memory.write_u32(out, os.cpu_count() or 1)
        return Errno.SUCCESS

    def thread_sleep(self, nanoseconds: int) -> int:
        """`thread_sleep`; 0 yields."""
        if not nanoseconds:
            os.sched_yield()
            return Errno.SUCCESS

        def sleep(waiter: Waiter) -> bool:
            self._system.waits.sleep(waiter, nanoseconds)
            return True

        return Errno.INTR if self._signals.interrupted(sleep) is None else Errno.SUCCESS

    def sched_yield(self) -> int:
        """`sched_yield`."""
        os.sched_yield()
        return Errno.SUCCESS

    def proc_exit(self, code: int) -> None:
        """`proc_exit`, `proc_exit2`: end the program, in all its threads."""
        exited = ProgramExited(self._signals.exit_code(code))
        self._system.end(exited)
        raise exited

    # futexes

    def futex_wait(self, address: int, expected: int, timeout: int, woken: int) -> int:
        """`futex_wait`; the timeout is an `option_timestamp`: a tag of one byte, nanoseconds at byte 8."""
        memory = self._system.memory
        memory.read(woken, 1)
        memory.read(address, 4)
        limit = None
        if timeout:
            some, nanoseconds = memory.read_struct("B7xQ", timeout)
            limit = nanoseconds if some else None
        result = self._wait(address, lambda: memory.read_u32(address) == expected, limit)
        memory.write_u8(woken, result is not WaitResult.TIMED_OUT)
        return Errno.SUCCESS

    def futex_wake(self, address: int, woken: int) -> int:
        """`futex_wake`; `woken` is always 1."""
        return self._wake(address, woken, 1)

    def futex_wake_all(self, address: int, woken: int) -> int:
        """`futex_wake_all`; `woken` is always 1."""
        return self._wake(address, woken, _ALL)

    def _wake(self, address: int, woken: int, count: int) -> int:
        self._system.futexes.wake(address, count)
        self._system.memory.write_u8(woken, 1)
        return Errno.SUCCESS

    # The instructions: 0 woken, 1 not equal, 2 timed out; a negative timeout is no limit (threads proposal). The rewritten
    # code has checked address and alignment.

    def wait32(self, address: int, expected: int, timeout: int) -> int:
        """`memory.atomic.wait32`; the timeout in nanoseconds."""
        memory = self._system.memory
        return int(self._wait(address, lambda: memory.read_u32(address) == expected, _limit(timeout)).value)

    def wait64(self, address: int, expected: int, timeout: int) -> int:
        """`memory.atomic.wait64`; the timeout in nanoseconds."""
        memory = self._system.memory
        return int(self._wait(address, lambda: memory.read_u64(address) == expected, _limit(timeout)).value)

    def notify(self, address: int, count: int) -> int:
        """`memory.atomic.notify`; returns how many threads it woke."""
        return self._system.futexes.wake(address, count)

    def _wait(self, address: int, unchanged: Callable[[], bool], timeout_ns: int | None) -> WaitResult:
        return _waited(self._signals, self._system.futexes, address, unchanged, timeout_ns)


def _waited(
    signals: Signals,
    futexes: FutexTable,
    address: int,
    unchanged: Callable[[], bool],
    timeout_ns: int | None,
) -> WaitResult:
    """Wait at an address while it is unchanged; signals are handled meanwhile."""
    deadline = None if timeout_ns is None else time.monotonic_ns() + timeout_ns

    def wait(waiter: Waiter) -> WaitResult:
        remaining = None if deadline is None else max(deadline - time.monotonic_ns(), 0)
        return futexes.wait(address, unchanged, remaining, waiter)

    result = signals.interrupted(wait)
    if result is not None:
        return result
    # The wait continues after a signal, as C's mutexes and conditions require. If the value has changed meanwhile, this
    # thread was woken while it handled the signal.
    result = signals.resuming(wait)
    return WaitResult.WOKEN if result is WaitResult.NOT_EQUAL else result


def _limit(timeout: int) -> int | None:
    """Return the nanoseconds of a timeout, a signed number as the guest has it; None for a negative one."""
    return None if timeout & _NEGATIVE_I64 else timeout
