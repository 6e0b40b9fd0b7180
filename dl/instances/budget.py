"""Sizes of memories and tables, and the bytes that all memories of instances and of the host's making take together."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from dl.limits import Limits
from dl.wasm.module import WasmModule

if TYPE_CHECKING:
    from dl.instances.externals import Memory

PAGE_BYTES = 65536


class MemoryBudget:
    """Bounds the bytes of linear memories; the program's own is none of them. From any thread.

    A memory that can grow counts with the size that it has now, if it can be seen: made by the host, or exported. The sizes are
    looked at only once all of them could exceed the bound together. `_lock` guards the other fields; a leaf.

    Args:
        limits: the program's.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._fixed = 0
        self._growing: tuple[Memory, ...] = ()
        self._most = 0

    def take(self, subject: str, size: int) -> None:
        """Count bytes more.

        Args:
            subject: what needs them, for messages.
            size: how many.

        Raises:
            ResourceLimitError: there are too many; nothing is counted.
        """
        bound, growing = self._limits.instance_bytes, self._growing
        possible = self._fixed + self._most + size
        grown = self._most if possible <= bound else sum(memory.size for memory in growing)
        with self._lock:
            if self._fixed + grown + size > bound:
                raise self._limits.refusal(
                    "instance_bytes",
                    subject,
                    f"needs {size} bytes of memory, and instances have {self._fixed + grown}",
                )
            self._fixed += size

    def give_back(self, size: int) -> None:
        """Count bytes less, which were taken."""
        with self._lock:
            self._fixed -= size

    def follow(self, memory: Memory, taken: int) -> None:
        """Count the size of a memory in place of the bytes that were taken for it."""
        kind = memory.type.limits
        most = self._limits.memory_pages if kind.maximum is None else kind.maximum
        most = max(min(most, self._limits.memory_pages), kind.minimum)
        with self._lock:
            if most > kind.minimum:
                self._growing += (memory,)
                self._most += most * PAGE_BYTES
                self._fixed -= taken


def check_sizes(module: WasmModule, name: str, bound: Limits) -> None:
    """Check that no memory or table that a module defines begins larger than one may be.

    Raises:
        ResourceLimitError: one does.
    """
    for memory in module.memories[module.import_counts["memory"] :]:
        if memory.limits.minimum > bound.memory_pages:
            raise bound.refusal("memory_pages", name, f"its memory needs {memory.limits.minimum} pages")
    for table in module.tables[module.import_counts["table"] :]:
        if table.limits.minimum > bound.table_elements:
            raise bound.refusal("table_elements", name, f"its table needs {table.limits.minimum} elements")


def memory_sizes(module: WasmModule, bound: Limits) -> dict[int, int]:
    """Return the bytes that each memory counts with which a module defines, by index.

    One that can grow and is not exported counts with all that it may grow to, since nobody can see how large it is.
    """
    most = bound.memory_pages
    seen = {export.index for export in module.exports.values() if export.kind == "memory"}
    sizes = {}
    for index in range(module.import_counts["memory"], len(module.memories)):
        limits = module.memories[index].limits
        visible = index in seen and not limits.shared
        pages = limits.minimum if visible else min(most, most if limits.maximum is None else limits.maximum)
        sizes[index] = pages * PAGE_BYTES
    return sizes
