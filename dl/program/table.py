"""Table indices: which are taken, and which the linker keeps for itself."""

from __future__ import annotations

import threading

from dl.limits import Limits
from memory import Allocator, LayoutExhaustedError, Region

RESERVED_TABLE_SLOTS = 16
"""Table indices below the main module's: 0 is the null pointer, the rest is the linker's own (futexes)."""


class TableSpace:
    """Which table indices are taken. Unit: table elements. From any thread.

    `_lock` guards all fields; a leaf. Indices are reserved under the link lock too, but given back by whichever thread is the
    last that may use them.

    The table never shrinks, so indices given back are reused, lowest fitting run first.

    Args:
        length: elements of the table to begin with.
        limits: the program's.

    Attributes:
        length: elements that the indices to hand out belong to. The table itself may be shorter, if an engine refused to grow
            it or nobody uses the last ones.
    """

    def __init__(self, length: int, limits: Limits) -> None:
        self._lock = threading.Lock()
        self.length = self._initial = length
        self._limits = limits
        self._ends: dict[int, int] = {}
        self._resting_elements = 0
        self._reach: int | None = length  # None when it must be found again
        self._allocator = Allocator(self._grow, page_size=1, limit_pages=limits.table_elements)

    def _grow(self, elements: int) -> int | None:
        former = self.length
        if former + elements > self._limits.table_elements:
            return None
        self.length += elements
        return former

    def allocate(self, elements: int, align_log2: int, purpose: str) -> Region:
        """Reserve a run of indices.

        Raises:
            ResourceLimitError: the table would exceed `Limits.table_elements`.
        """
        try:
            with self._lock:
                region = self._allocator.allocate(elements, align_log2)
                self._ends[region.address] = region.end
                if self._reach is not None:
                    self._reach = max(self._reach, region.end)
        except LayoutExhaustedError as error:
            raise self._limits.refusal(
                "table_elements",
                purpose,
                f"{elements} table elements at 2**{align_log2} do not fit the table",
            ) from error
        return region

    def reach(self) -> int:
        """Elements that a table must have for all indices handed out.

        Not `length`, which a failed load has raised for good: a table with a maximum could then never serve again.
        """
        with self._lock:
            if self._reach is None:
                self._reach = max(self._initial, *self._ends.values(), 0)
            return self._reach

    def free(self, region: Region, *, rested: bool = False) -> None:
        """Give a run of indices back.

        Args:
            region: the run.
            rested: whether it has rested until now.
        """
        with self._lock:
            self._allocator.free(region)
            if rested:
                self._resting_elements -= region.size
            else:
                self._forget_end(region)

    def rest(self, region: Region) -> None:
        """Let a run of indices rest: it counts as given back, but is not handed out again before `free`."""
        with self._lock:
            self._resting_elements += region.size
            self._forget_end(region)

    def _forget_end(self, region: Region) -> None:
        """Only while holding the lock."""
        if self._ends.pop(region.address, None) == self._reach:
            self._reach = None

    def free_runs(self) -> list[tuple[int, int]]:
        """Return the runs of indices that are ready to be handed out: start and end, by index."""
        with self._lock:
            return self._allocator.free_runs()

    def in_use(self) -> int:
        """Elements handed out and not given back."""
        with self._lock:
            return self._allocator.statistics().bytes_in_use - self._resting_elements
