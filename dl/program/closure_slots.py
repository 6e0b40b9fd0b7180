"""The pool of table indices whose function is made at run time: closures of the guest, callbacks of the host, dynamic calls.

The indices come from a pool that grows in steps.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from dl.engine.code_cache import Compiler
from dl.glue.trampolines import (
    callback_module,
    closure_module,
    invoker_module,
)
from dl.program.main_module import MainModule
from dl.program.operations import SetSlot
from dl.records import dataclass
from dl.wasm.types import FuncType

if TYPE_CHECKING:
    from dl.engine.protocol import CompiledModule

SLOTS_PER_GROWTH = 100
"""Table elements by which the pool grows (WASIX ABI, `closure_allocate`)."""

_MAX_CODES = 1024
"""Compiled trampolines that a linker keeps: signatures come from the guest, so their number must be bounded."""


@dataclass
class SlotRecord:
    """How an index came to hold what it holds.

    Attributes:
        operation: the last operation on it.
        first: number of the first operation on it that a group may still be at: one that has made it may hold a function there.
        last: number of the last.
    """

    operation: SetSlot
    first: int
    last: int


class ClosureSlots:
    """The pool of table indices, and the code of the trampolines that they hold.

    Changed under the link lock, by `dl.link.slots`. `code_lock` guards the trampolines' code; compiling happens outside it.

    Attributes:
        used: indices handed out.
        records: how the indices came to hold what they hold.
    """

    def __init__(self, compiler: Compiler, main: MainModule) -> None:
        self._compiler = compiler
        self._main = main
        self._pool: set[int] = set()
        self._unused: deque[int] = deque()  # the next to hand out first
        self.used: set[int] = set()
        self.records: dict[int, SlotRecord] = {}
        self._code_lock = threading.Lock()
        self._codes: dict[tuple[str, FuncType], CompiledModule] = {}

    def __contains__(self, address: int) -> bool:
        """Whether a table index belongs to the pool, used or not. From any thread."""
        return address in self._pool

    def shares(self) -> tuple[set[int], set[int]]:
        """Return the indices that are handed out, and those that are not. From any thread."""
        used = self.used.copy()
        return (
            used,
            self._pool.copy() - used,
        )  # not `_unused`: without a GIL a deque cannot be copied while another thread takes

    def all_in_use(self) -> bool:
        """Whether every index is handed out. Under the link lock."""
        return not self._unused

    def in_use(self) -> int:
        """Indices handed out and not given back. From any thread."""
        return len(self.used)

    def add(self, addresses: range) -> None:
        """Add table indices to the pool; the second time does nothing."""
        if addresses[0] not in self._pool:
            self._pool.update(addresses)
            self._unused.extend(addresses)

    def take(self) -> int:
        """Hand out the index that has been free for longest, so that a stale pointer traps for as long as possible."""
        address = self._unused.popleft()
        self.used.add(address)
        return address

    def release(self, address: int) -> None:
        """Take an index back."""
        self.used.remove(address)
        self._unused.append(address)

    def note(self, operation: SetSlot, number: int) -> None:
        """Note what an index holds from now on, by an operation and its number in the log; the second time does nothing."""
        record = self.records.get(operation.address)
        if record is None:
            self.records[operation.address] = SlotRecord(operation, number, number)
        elif record.last != number:
            record.operation, record.last = operation, number

    def closure_code(self, kind: FuncType) -> CompiledModule:
        """Return the trampoline of a closure; its numbers are the backing function's table index and the environment.

        Raises:
            InvalidModuleError: the engine refuses the signature.
        """
        memory = self._main.memory_type
        assert memory is not None
        return self._code("closure", kind, lambda: closure_module(kind, memory, self._main.anchors))

    def invoker_code(self, kind: FuncType) -> CompiledModule | None:
        """Return the trampoline that calls functions of a signature dynamically; None without a memory to lend it."""
        memory = self._main.memory_type
        if memory is None or (memory.limits.shared and not self._main.shares_memory):
            return None
        tests = self._compiler.engine.capabilities.type_tests
        return self._code(
            "invoker", kind, lambda: invoker_module(kind, memory, self._main.anchors, type_tests=tests)
        )

    def callback_code(self, kind: FuncType, dispatcher: str) -> CompiledModule:
        """Return the trampoline that passes its first number on to a host function."""
        return self._code("callback", kind, lambda: callback_module(kind, dispatcher, self._main.anchors))

    def _code(self, purpose: str, kind: FuncType, make: Callable[[], bytes]) -> CompiledModule:
        with self._code_lock:
            known = self._codes.get((purpose, kind))
        if known is None:
            known = self._compiler.compile(make(), f"{purpose} {kind}")
            with self._code_lock:
                if len(self._codes) >= _MAX_CODES:
                    self._codes.clear()
                self._codes[purpose, kind] = known
        return known
