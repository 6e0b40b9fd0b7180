"""The set of free runs: disjoint, never adjacent, found by address or by length.

Two sorted lists hold the same runs: by address, to find a freed run's neighbours; by length, so that the
first run that is long enough is the best fit. Both are plain lists with bisection: inserting moves
pointers, which for the thousands of runs a linker can have is faster than any tree written in Python.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from memory.address import round_up


class FreeRuns:
    """Free runs of one address space; any integer unit.

    Invariant: the same runs are in both lists; no run is empty; between two runs lies at least one unit
    that is not free (else they would be one run).
    """

    __slots__ = ("_by_length", "_end_of", "_starts", "total")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._end_of: dict[int, int] = {}
        self._by_length: list[tuple[int, int]] = []
        self.total = 0
        """Units free in all runs together."""

    def __len__(self) -> int:
        """How many runs there are."""
        return len(self._starts)

    @property
    def largest(self) -> int:
        """Length of the longest run; 0 if there is none."""
        return self._by_length[-1][0] if self._by_length else 0

    def runs(self) -> list[tuple[int, int]]:
        """All runs as (start, end), by address."""
        return [(start, self._end_of[start]) for start in self._starts]

    def start_of_run_ending_at(self, end: int) -> int:
        """Where the free run that ends at `end` begins; `end` itself if none ends there."""
        index = bisect_left(self._starts, end) - 1
        if index >= 0 and self._end_of[self._starts[index]] == end:
            return self._starts[index]
        return end

    def add(self, start: int, end: int) -> None:
        """Make start..end free and join it with the runs it touches; it must not overlap one."""
        if start == end:
            return
        index = bisect_left(self._starts, start)
        assert index == len(self._starts) or end <= self._starts[index], "overlaps the next free run"
        if index < len(self._starts) and self._starts[index] == end:
            end = self._remove(end)
        below = self.start_of_run_ending_at(start)
        assert index == 0 or self._end_of[self._starts[index - 1]] <= start, "overlaps the free run below"
        if below != start:
            self._remove(below)
            start = below
        self._insert(start, end)

    def take(self, size: int, alignment: int) -> int | None:
        """Take `size` units out of the shortest run that can hold them at this alignment.

        What is left of the run on either side stays free, so alignment costs no memory. Of equally long
        runs the lowest is taken, and in it the lowest address: the outcome depends on the calls only.

        Args:
          size: units, at least 1.
          alignment: a power of two.

        Returns:
          The start of what was taken, or None (and nothing has changed) if no run can hold it.
        """
        for index in range(bisect_left(self._by_length, (size, 0)), len(self._by_length)):
            length, start = self._by_length[index]
            taken = round_up(start, alignment)
            end = start + length
            if taken + size <= end:
                self._remove(start)
                if start < taken:
                    self._insert(start, taken)
                if taken + size < end:
                    self._insert(taken + size, end)
                return taken
        return None

    def _insert(self, start: int, end: int) -> None:
        insort(self._starts, start)
        insort(self._by_length, (end - start, start))
        self._end_of[start] = end
        self.total += end - start

    def _remove(self, start: int) -> int:
        end = self._end_of.pop(start)
        del self._starts[bisect_left(self._starts, start)]
        del self._by_length[bisect_left(self._by_length, (end - start, start))]
        self.total -= end - start
        return end
