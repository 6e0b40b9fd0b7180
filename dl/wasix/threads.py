"""Threads, futexes, sleep and exit, for the guest.

ABI: WASIX functions of `wasix_32v1` (thread_*, futex_*), `wasi.thread-spawn` of the wasi-threads proposal, and the parts of
preview 1 that end or suspend a thread. Every wait here is one of `threads.Waits`: it delays no link operation, and it can
be interrupted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from dl.engine.preview1 import signature
from dl.errors import DlError, LinkerUsageError, ProgramExited, ResourceLimitError, ThreadExited
from dl.program.host_symbols import SystemFunction
from dl.wasix.abi import Errno
from dl.wasix.signals import SignalArrived
from memory import OutOfBoundsError
from threads import Waiter, WaitResult

if TYPE_CHECKING:
    from dl.wasix.system import System

_OFFSET_STACK, _OFFSET_TLS = 0, 4
_MASK = 0xFFFFFFFF

Result = TypeVar("Result")


def address_checked(function: Callable[..., int]) -> Callable[..., int]:
    """Turn an address outside linear memory into an errno."""

    def call(*arguments: int) -> int:
        try:
            return function(*arguments)
        except OutOfBoundsError:
            return Errno.MEMVIOLATION

    return call


def wasix_functions(system: System) -> dict[str, SystemFunction]:
    """Return the thread functions of `wasix_32v1`."""
    calls = _Calls(system)
    table: dict[str, tuple[str, Callable[..., int | None]]] = {
        "thread_spawn": ("ii:i", calls.thread_spawn),
        "thread_spawn_v2": ("ii:i", calls.thread_spawn),
        "thread_sleep": ("I:i", calls.thread_sleep),
        "thread_id": ("i:i", calls.thread_id),
        "thread_join": ("i:i", calls.thread_join),
        "thread_parallelism": ("i:i", calls.thread_parallelism),
        "thread_exit": ("i", calls.thread_exit),
        "sched_yield": (":i", calls.sched_yield),
        "futex_wait": ("iiii:i", calls.futex_wait),
        "futex_wake": ("ii:i", calls.futex_wake),
        "futex_wake_all": ("ii:i", calls.futex_wake_all),
        "proc_exit2": ("i", calls.proc_exit),
    }
    return {
        name: SystemFunction(
            signature(kind),
            function=address_checked(function) if kind.endswith(":i") else function,  # type: ignore[arg-type]
        )
        for name, (kind, function) in table.items()
    }


def wasi_functions(system: System) -> dict[str, SystemFunction]:
    """Return the one function of the wasi-threads proposal."""
    return {"thread-spawn": SystemFunction(signature("i:i"), function=_Calls(system).wasi_thread_spawn)}


def preview1_functions(system: System) -> dict[str, SystemFunction]:
    """Return the functions of preview 1 that concern threads."""
    calls = _Calls(system)
    return {
        "proc_exit": SystemFunction(signature("i"), function=calls.proc_exit),
        "sched_yield": SystemFunction(signature(":i"), function=calls.sched_yield),
        "thread-spawn": SystemFunction(signature("i:i"), function=calls.wasi_thread_spawn),
    }


class _Calls:
    """The functions; each runs on the calling guest thread, outside guest code."""

    def __init__(self, system: System) -> None:
        self._system = system

    # threads

    def _spawn(self, start: int) -> int:
        """Start a thread; return its number, or minus an errno."""
        start &= _MASK
        system = self._system
        try:
            # The structure that the start function gets begins with the stack's upper end and the block of
            # thread-local storage, in WASIX as in wasi-libc.
            stack = system.memory.read_u32(start + _OFFSET_STACK)
            tls = system.memory.read_u32(start + _OFFSET_TLS)
            return system.spawn_guest(start, stack_pointer=stack, main_tls=tls or None).id
        except OutOfBoundsError:
            return -Errno.MEMVIOLATION
        except ResourceLimitError:
            return -Errno.NOMEM
        except LinkerUsageError:
            return -Errno.NOTCAPABLE
        except (DlError, RuntimeError):
            return -Errno.AGAIN

    def thread_spawn(self, start: int, out: int) -> int:
        self._system.memory.read(out & _MASK, 4)
        number = self._spawn(start)
        if number < 0:
            return -number
        self._system.memory.write_u32(out & _MASK, number)
        return Errno.SUCCESS

    def wasi_thread_spawn(self, start: int) -> int:
        return self._spawn(start)

    def thread_exit(self, _code: int) -> None:
        raise ThreadExited

    def thread_id(self, out: int) -> int:
        self._system.memory.write_u32(out & _MASK, self._system.thread_id())
        return Errno.SUCCESS

    def thread_join(self, number: int) -> int:
        thread = self._system.guest(number)
        if thread is not None:
            self._resuming(thread.ended.wait)
        return Errno.SUCCESS

    def thread_parallelism(self, out: int) -> int:
        self._system.memory.write_u32(out & _MASK, os.cpu_count() or 1)
        return Errno.SUCCESS

    def thread_sleep(self, nanoseconds: int) -> int:
        duration = nanoseconds & 0xFFFFFFFFFFFFFFFF
        if not duration:
            os.sched_yield()
            return Errno.SUCCESS

        def sleep(waiter: Waiter) -> bool:
            self._system.waits.sleep(waiter, duration)
            return True

        return Errno.INTR if self._system.process.signals.interrupted(sleep) is None else Errno.SUCCESS

    def sched_yield(self) -> int:
        os.sched_yield()
        return Errno.SUCCESS

    def proc_exit(self, code: int) -> None:
        """End the program, in all its threads."""
        exited = ProgramExited(code & _MASK)
        self._system.end(exited)
        raise exited

    # futexes

    def futex_wait(self, address: int, expected: int, timeout: int, woken: int) -> int:
        memory = self._system.memory
        address, timeout, woken = address & _MASK, timeout & _MASK, woken & _MASK
        memory.read(woken, 1)
        memory.read(address, 4)
        limit = None
        if timeout:
            some, nanoseconds = memory.read_struct("B7xQ", timeout)
            limit = nanoseconds if some else None
        result = self.wait(address, 4, expected & _MASK, limit)
        memory.write_u8(woken, result is not WaitResult.TIMED_OUT)
        return Errno.SUCCESS

    def futex_wake(self, address: int, woken: int) -> int:
        return self._wake(address, woken, 1)

    def futex_wake_all(self, address: int, woken: int) -> int:
        return self._wake(address, woken, _MASK)

    def _wake(self, address: int, woken: int, count: int) -> int:
        self._system.futexes.wake(address & _MASK, count)
        self._system.memory.write_u8(woken & _MASK, 1)
        return Errno.SUCCESS

    def wait(self, address: int, size: int, expected: int, timeout_ns: int | None) -> WaitResult:
        """Wait at an address while it holds a value of `size` bytes."""
        memory = self._system.memory
        read = memory.read_u32 if size == 4 else memory.read_u64
        futexes = self._system.futexes
        deadline = None if timeout_ns is None else time.monotonic_ns() + timeout_ns

        def wait(waiter: Waiter) -> WaitResult:
            remaining = None if deadline is None else max(deadline - time.monotonic_ns(), 0)
            return futexes.wait(address, lambda: read(address) == expected, remaining, waiter)

        try:
            return self._system.process.signals.wait(wait)
        except SignalArrived:
            self._system.process.signals.deliver()
        # It goes on waiting, as C's mutexes and conditions do. A wake that came while the signal was handled was for
        # this thread, if the value has changed.
        result = self._resuming(wait)
        return WaitResult.WOKEN if result is WaitResult.NOT_EQUAL else result

    def _resuming(self, wait: Callable[[Waiter], Result]) -> Result:
        """Wait, with pauses to handle signals."""
        signals = self._system.process.signals
        while True:
            try:
                return signals.wait(wait)
            except SignalArrived:  # noqa: PERF203  the loop goes round once per signal
                signals.deliver()


def atomic_functions(system: System) -> dict[str, SystemFunction]:
    """Return what stands in for `memory.atomic.wait32`, `wait64` and `notify` in rewritten modules.

    Exact semantics of the instructions (threads proposal): 0 woken, 1 not equal, 2 timed out; a negative timeout is for
    ever. The rewritten code has checked address and alignment.
    """
    calls = _Calls(system)

    def wait(size: int, mask: int) -> Callable[[int, int, int], int]:
        def instruction(address: int, expected: int, timeout: int) -> int:
            limit = None if timeout < 0 else timeout
            return int(calls.wait(address & _MASK, size, expected & mask, limit).value)

        return instruction

    def notify(address: int, count: int) -> int:
        return system.futexes.wake(address & _MASK, count & _MASK)

    return {
        "notify": SystemFunction(signature("ii:i"), function=notify),
        "wait32": SystemFunction(signature("iiI:i"), function=wait(4, _MASK)),
        "wait64": SystemFunction(signature("iII:i"), function=wait(8, 0xFFFFFFFFFFFFFFFF)),
    }
