"""Blocks of thread-local storage, made before a group needs them.

A group gets its block of a module while it replays the module's load, possibly in a thread that was interrupted inside the
program's own `malloc`. To call that allocator there would wait for a lock that the thread itself has. So where blocks come from
it, they are made earlier, outside every replay, and a replay only takes one.

Invariant: of every module that is open here there are at least as many blocks, in stock or in use, as there are groups, those
included that are just being made. A load commits, and a group is counted, under the link lock: each sees the other.
"""

from __future__ import annotations

import threading

from dl.dlfcn import ModuleHandle
from dl.glue.placement import ThreadLocalModule
from dl.program.side_memory import SideMemory
from dl.records import dataclass, field
from memory import Block

_PURPOSE = "thread-local storage"


@dataclass
class _Stock:
    """The blocks of one module: those in stock, and how many there are in all."""

    module: ThreadLocalModule
    made: int = 0
    free: list[Block] = field(default_factory=list)


class ThreadLocalReserve:
    """The reserve of one program.

    `_lock` guards the fields; a leaf.

    Args:
        side_memory: where blocks come from; its allocator calls guest code.
    """

    def __init__(self, side_memory: SideMemory) -> None:
        self._side_memory = side_memory
        self._lock = threading.Lock()
        self._groups = 1  # the main group
        self._stocks: dict[ModuleHandle, _Stock] = {}

    def open(self, module: ThreadLocalModule) -> None:
        """Keep blocks of a module from now on."""
        with self._lock:
            if module.size and module.handle not in self._stocks:
                self._stocks[module.handle] = _Stock(module)

    def close(self, handle: ModuleHandle) -> None:
        """Keep none of a module any longer; idempotent, from any thread."""
        with self._lock:
            stock = self._stocks.pop(handle, None)
        for block in stock.free if stock is not None else ():
            self._side_memory.free_later(block)

    def add_group(self) -> None:
        """Count a group that is about to be made; under the link lock. `fill` follows without it."""
        with self._lock:
            self._groups += 1

    def remove_group(self) -> None:
        """Count a group no longer, all of whose blocks were given back."""
        with self._lock:
            self._groups -= 1

    def suffices(self) -> bool:
        """Return whether there are enough blocks for all groups."""
        return self._lacking() is None

    def fill(self) -> None:
        """Make the blocks that are missing; in a thread that may enter guest code, outside replays and the link lock.

        Raises:
            ResourceLimitError: there is no memory for them.
        """
        while True:
            module = self._lacking()
            if module is None:
                return
            block = self._side_memory.allocate(module.size, module.align_log2, _PURPOSE)
            with self._lock:
                stock = self._stocks.get(module.handle)
                if stock is not None:
                    stock.made += 1
                    stock.free.append(block)
            if stock is None:
                self._side_memory.free_later(block)

    def _lacking(self) -> ThreadLocalModule | None:
        with self._lock:
            for stock in self._stocks.values():
                if stock.made < self._groups:
                    return stock.module
        return None

    def take(self, handle: ModuleHandle) -> Block | None:
        """Return a block of a module; None if nothing is kept of it."""
        with self._lock:
            stock = self._stocks.get(handle)
            return stock.free.pop() if stock is not None and stock.free else None

    def give_back(self, handle: ModuleHandle, block: Block) -> None:
        """Give a block back, from any thread, also in a replay."""
        with self._lock:
            stock = self._stocks.get(handle)
            if stock is not None:
                stock.free.append(block)
        if stock is None:
            self._side_memory.free_later(block)
