"""The allocator for what the linker places in linear memory: side modules' data, TLS blocks, stacks.

The problem. A side module wants `memory_size` bytes at 2**`memory_alignment` (dylink.0, MEM_INFO) before
any of its code has run, at any time, while the guest's own allocator works on the same memory. The memory
can only grow, at its end, in whole pages, and others grow it too: the guest's `sbrk` is `memory.grow`. So
new pages land wherever the end happens to be, and two growths of ours need not be adjacent.

Ways rejected.
* The guest's `malloc`. A group may have been interrupted inside it, and a load would then run guest code
  that waits for a lock the interrupted thread holds. It also does not exist before libc is loaded.
* A bump pointer over a reserved range: the range must be guessed before the program is known, and
  `dlclose` could never give anything back. Wasmer's allocator, whose shape this one has (whole pages from
  growth, best fit in what is left over; `lib/wasix/src/state/linker/memory_allocator.rs`), never frees.
* Growing by only what is missing behind a free run at the end of memory. Somebody else may grow in
  between; then the pages land elsewhere, do not suffice, and a second growth is needed. So the first
  question is always for pages that suffice wherever they land. Only when that is refused, close to the
  limit, do we look at where the end is and ask for just what is missing there.
* Bookkeeping inside linear memory (headers before blocks): a guest that overruns a buffer would corrupt
  the linker. Everything is kept on the host's side.

Invariants.
* Every byte of every page we grew is in exactly one of: a region in use, a free run, the reserved edges.
  Hence pages_grown * page_size == bytes_in_use + bytes_free + bytes_reserved, at all times.
* No two free runs touch (`free_runs.py`). So when all is freed, there are as many runs as there are
  stretches of pages that somebody else's growth keeps apart, and no fewer bytes than were grown.
* Nothing is changed before the last step that can fail. The one exception is growth itself, which no
  memory can undo: pages that turn out not to help stay in the free runs.

What it does not do. It never gives pages back to the engine (no Wasm memory can shrink), does not move
regions, and knows only 32-bit memories.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from memory.address import ADDRESS_SPACE_BYTES, LOWEST_ADDRESS, MAX_ALIGN_LOG2, PAGE_BYTES, round_up
from memory.errors import InvalidRegionError, InvalidRequestError, LayoutExhaustedError, MemoryLayoutError
from memory.free_runs import FreeRuns

if TYPE_CHECKING:
    from memory.statistics import AllocatorStatistics

# A region that ended at 2**32 would have a one-past-the-end pointer that is 0 in an i32: keep clear of it.
_HIGHEST_END = ADDRESS_SPACE_BYTES - LOWEST_ADDRESS


class Region(NamedTuple):
    """A run of linear memory in use.

    Attributes:
      address: its first byte, a multiple of 2**align_log2; 0 only for the empty region.
      size: bytes.
      align_log2: the alignment it was asked for with, as an exponent of two.
    """

    address: int
    size: int
    align_log2: int = 0

    @property
    def end(self) -> int:
        """The first byte behind the region."""
        return self.address + self.size


class Allocator:
    """Places regions in pages that it grows a linear memory by, and takes them back.

    Concurrency:
      no lock of its own: the linker's lock guards it, which every link operation holds anyway. `grow` is
      called under that lock and must not call back into the allocator. Other threads may grow the same
      memory at any moment, without any lock.

    Args:
      grow: grows the memory by that many pages and returns its old size in pages, or None when refused,
        as `memory.grow` does; `grow(0)` reports the size. What it raises passes through, and the
        allocator is as before.
      page_size: bytes of a page, a power of two up to 65,536.
      limit_pages: pages the memory may have at most (its declared maximum), if known: requests over it
        are refused without asking. Never more than the 32-bit address space.
    """

    def __init__(
        self,
        grow: Callable[[int], int | None],
        *,
        page_size: int = PAGE_BYTES,
        limit_pages: int | None = None,
    ) -> None:
        if not 1 <= page_size <= PAGE_BYTES or page_size & (page_size - 1):
            raise InvalidRequestError(
                "page_size", page_size, f"be a power of two from 1 to {PAGE_BYTES} bytes"
            )
        if limit_pages is not None and limit_pages < 0:
            raise InvalidRequestError("limit_pages", limit_pages, "not be negative")
        self._grow = grow
        self._page_size = page_size
        address_space_pages = ADDRESS_SPACE_BYTES // page_size
        self._limit_pages = (
            address_space_pages if limit_pages is None else min(limit_pages, address_space_pages)
        )
        # All of these are guarded by the linker's lock.
        self._free = FreeRuns()
        self._used: dict[int, Region] = {}
        self._bytes_in_use = 0
        self._pages_grown = 0
        self._bytes_reserved = 0
        # Invariant: the memory's end is at or above this, because no memory shrinks.
        self._known_end = 0

    def free_runs(self) -> list[tuple[int, int]]:
        """Return the runs that are ready to be handed out: start and end, by address."""
        return self._free.runs()

    def allocate(self, size: int, align_log2: int) -> Region:
        """Reserve one run of linear memory.

        The contents are whatever was there: zeros in fresh pages, a former owner's bytes in reused ones.
        Zeroing is the caller's duty, because only the caller knows what a data segment will overwrite.

        Args:
          size: bytes, 0 to 2**32; 0 gives the empty region at address 0 and takes nothing.
          align_log2: alignment exponent, 0 to 31; may exceed a page.

        Returns:
          A region no other region in use overlaps, inside pages this allocator has grown.

        Raises:
          InvalidRequestError: `size` or `align_log2` is negative.
          LayoutExhaustedError: no run fits below the limit (then the memory was not touched), or the
            memory refused to grow. No region was reserved.
        """
        if size < 0:
            raise InvalidRequestError("size", size, "not be negative")
        if align_log2 < 0:
            raise InvalidRequestError("align_log2", align_log2, "not be negative")
        if align_log2 > MAX_ALIGN_LOG2:
            # No exponent is too large to be named in a file; 1 << align_log2 must not be computed for it.
            raise self._exhausted(
                size, align_log2, f"a 32-bit memory has no address aligned above 2**{MAX_ALIGN_LOG2}"
            )
        if size == 0:
            return Region(0, 0)
        address = self._free.take(size, 1 << align_log2)
        if address is None:
            address = self._take_from_growth(size, align_log2)
        region = Region(address, size, align_log2)
        self._used[address] = region
        self._bytes_in_use += size
        return region

    def free(self, region: Region) -> None:
        """Give a region back; it joins the free runs it touches.

        Args:
          region: the very object that `allocate` returned. An equal one does not do: after the bytes have
            been handed out again, a stale region can be equal to the new owner's. Freeing an empty region
            does nothing, any number of times.

        Raises:
          InvalidRegionError: it was freed before or is not from this allocator; nothing was changed.
        """
        if region.size == 0 and region.address == 0:
            return
        if self._used.get(region.address) is not region:
            raise InvalidRegionError(region.address, region.size)
        del self._used[region.address]
        self._bytes_in_use -= region.size
        self._free.add(region.address, region.end)

    def statistics(self) -> AllocatorStatistics:
        """What is grown, used and free now; two equal snapshots around a failed load prove a rollback."""
        from memory.statistics import AllocatorStatistics  # noqa: PLC0415  `dataclasses` is slow to import

        return AllocatorStatistics(
            pages_grown=self._pages_grown,
            bytes_in_use=self._bytes_in_use,
            bytes_free=self._free.total,
            regions=len(self._used),
            largest_free=self._free.largest,
            free_runs=len(self._free),
            bytes_reserved=self._bytes_reserved,
        )

    def _take_from_growth(self, size: int, align_log2: int) -> int:
        """Take bytes that no free run holds: grow the memory for them, in at most two steps (see above)."""
        alignment = 1 << align_log2
        if self._pages_missing(self._known_end, size, alignment) is None:
            raise self._exhausted(
                size, align_log2, f"no such run ends below the limit of {self._limit_pages} pages"
            )
        # Pages begin at a multiple of the page size; a stricter alignment is reached within this slack.
        slack = max(alignment - self._page_size, 0)
        pages = self._pages(size + slack)
        if self._add_pages(pages):
            address = self._free.take(size, alignment)
            if address is not None:
                return address
            # A reserved edge was in them, so they were a few bytes short; what is missing follows.
        end_pages = self._grow(0)
        if end_pages is not None:
            missing = self._pages_missing(end_pages * self._page_size, size, alignment)
            if missing is not None and self._add_pages(missing):
                address = self._free.take(size, alignment)
                if address is not None:
                    return address
                # Somebody else grew the memory since we looked; what we got stays free.
        raise self._exhausted(size, align_log2, f"the memory refused to grow by {pages} pages")

    def _pages_missing(self, end: int, size: int, alignment: int) -> int | None:
        """Pages to add to a memory of `end` bytes so that the region fits at its end; None if over the limit.

        A free run at the end counts. Where the region would end never falls when `end` rises, so None for the
        lowest end that the memory can have is None for ever.
        """
        start = max(self._free.start_of_run_ending_at(end), LOWEST_ADDRESS)
        region_end = round_up(start, alignment) + size
        if region_end > min(self._limit_pages * self._page_size, _HIGHEST_END):
            return None
        return self._pages(region_end - end)

    def _add_pages(self, pages: int) -> bool:
        """Grow the memory and put the new pages among the free runs; whether it grew."""
        if self._known_end // self._page_size + pages > self._limit_pages:
            return False
        old_pages = self._grow(pages)
        if old_pages is None:
            return False
        start = old_pages * self._page_size
        end = start + pages * self._page_size
        if start < self._known_end or end > ADDRESS_SPACE_BYTES:
            # Believing it would hand out bytes twice.
            raise MemoryLayoutError(
                f"growing the memory by {pages} pages returned {old_pages} pages as its old size, "
                f"but it had {self._known_end // self._page_size} before and can have {self._limit_pages}"
            )
        self._known_end = end
        self._pages_grown += pages
        usable_start = min(max(start, LOWEST_ADDRESS), end)
        usable_end = max(min(end, _HIGHEST_END), usable_start)
        self._bytes_reserved += (end - start) - (usable_end - usable_start)
        self._free.add(usable_start, usable_end)
        return True

    def _pages(self, size: int) -> int:
        return -(-size // self._page_size)

    def _exhausted(self, size: int, align_log2: int, reason: str) -> LayoutExhaustedError:
        return LayoutExhaustedError(size, align_log2, self._limit_pages, reason)
