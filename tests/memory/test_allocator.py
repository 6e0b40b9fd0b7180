"""The side-module memory allocator: placement, freeing, limits, and the invariants over random use."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from memory import (
    LOWEST_ADDRESS,
    PAGE_BYTES,
    Allocator,
    AllocatorStatistics,
    InvalidRegionError,
    InvalidRequestError,
    LayoutExhaustedError,
    MemoryLayoutError,
    Region,
)


class Pages:
    """A memory reduced to its size, growing as `memory.grow` does; remembers who grew what."""

    def __init__(self, pages: int = 0, maximum: int = 65536) -> None:
        self.pages = pages
        self.maximum = maximum
        self.calls: list[int] = []
        self.ours: list[tuple[int, int]] = []
        self.between = 0  # pages somebody else grows right after our next look at the size

    def grow(self, pages: int) -> int | None:
        self.calls.append(pages)
        old = self.pages
        if old + pages > self.maximum:
            return None
        self.pages += pages
        if pages:
            self.ours.append((old, self.pages))
        else:
            self.pages, self.between = self.pages + self.between, 0
        return old

    def grow_by_somebody_else(self, pages: int) -> bool:
        if self.pages + pages > self.maximum:
            return False
        self.pages += pages
        return True


def test_allocate_when_nothing_is_free_grows_by_the_pages_needed() -> None:
    """A first request grows whole pages and begins at the memory's old end."""
    pages = Pages(5)
    region = Allocator(pages.grow).allocate(PAGE_BYTES + 1, 4)

    assert Region(5 * PAGE_BYTES, PAGE_BYTES + 1, 4) == region
    assert pages.calls == [2]


def test_allocate_when_the_rest_of_a_page_suffices_does_not_grow() -> None:
    """What an earlier request left over of its page serves the next one."""
    pages = Pages(1)
    allocator = Allocator(pages.grow)
    first = allocator.allocate(1000, 0)
    second = allocator.allocate(3000, 4)

    assert first.address == PAGE_BYTES
    assert second.address == PAGE_BYTES + 1008
    assert pages.calls == [1]


def test_allocate_when_several_runs_fit_takes_the_shortest() -> None:
    """Best fit: the shortest run that holds the request, not the first one."""
    allocator = Allocator(Pages(1).grow)
    regions = [allocator.allocate(size, 0) for size in (500, 10, 100, 10, 300, 10)]
    for region in regions[::2]:
        allocator.free(region)

    assert regions[2].address == allocator.allocate(90, 0).address
    assert regions[4].address == allocator.allocate(200, 0).address
    assert regions[0].address == allocator.allocate(400, 0).address


def test_allocate_when_the_shortest_run_is_misaligned_takes_the_next() -> None:
    """A run long enough but without an aligned place in it is passed over."""
    allocator = Allocator(Pages(1).grow)
    odd = allocator.allocate(1, 0)
    short = allocator.allocate(70, 0)
    allocator.allocate(57, 0)
    long = allocator.allocate(200, 0)
    allocator.allocate(1, 0)
    allocator.free(short)
    allocator.free(long)

    assert odd.address + 128 == allocator.allocate(64, 6).address == long.address


def test_allocate_when_growth_is_adjacent_joins_the_rest_of_the_page_before() -> None:
    """A request may begin in the rest of an old page and end in a new one."""
    pages = Pages(1)
    allocator = Allocator(pages.grow)
    allocator.allocate(PAGE_BYTES - 1024, 0)
    region = allocator.allocate(PAGE_BYTES, 0)

    assert region.address == 2 * PAGE_BYTES - 1024
    assert allocator.statistics().bytes_free == 1024


def test_allocate_when_somebody_else_grew_in_between_stays_in_its_own_pages() -> None:
    """Pages that the guest grew between two of our growths are never handed out."""
    pages = Pages(1)
    allocator = Allocator(pages.grow)
    allocator.allocate(PAGE_BYTES - 1024, 0)
    pages.grow_by_somebody_else(3)
    region = allocator.allocate(PAGE_BYTES, 0)

    assert region.address == 5 * PAGE_BYTES
    assert allocator.statistics().largest_free == 1024


def test_allocate_with_alignment_over_a_page_keeps_the_slack() -> None:
    """Over-growing for a strict alignment loses nothing: the slack serves later requests."""
    pages = Pages(1)
    allocator = Allocator(pages.grow)
    region = allocator.allocate(100, 18)
    statistics = allocator.statistics()
    grown = sum(pages.calls)

    assert region.address == 4 * PAGE_BYTES
    assert pages.calls == [4]
    assert statistics.bytes_free == 4 * PAGE_BYTES - 100
    assert allocator.allocate(3 * PAGE_BYTES, 16).address == PAGE_BYTES
    assert grown == sum(pages.calls)


def test_allocate_close_to_the_limit_asks_for_only_what_is_missing() -> None:
    """When pages for any landing place are refused, those missing at the real end are enough."""
    pages = Pages(2, maximum=4)
    region = Allocator(pages.grow).allocate(2 * PAGE_BYTES, 17)

    assert region.address == 2 * PAGE_BYTES
    assert pages.calls == [3, 0, 2]


def test_allocate_close_to_the_limit_counts_the_free_end_of_memory() -> None:
    """The free rest of the last page counts when a whole new request no longer fits behind it."""
    pages = Pages(1, maximum=3)
    allocator = Allocator(pages.grow)
    allocator.allocate(1000, 0)
    region = allocator.allocate(PAGE_BYTES + 40_000, 3)

    assert region.address == PAGE_BYTES + 1000
    assert pages.pages == 3


def test_allocate_when_somebody_grows_during_the_exact_attempt_fails_and_loses_nothing() -> None:
    """A race at the limit is an error that leaves the pages it got ready for use."""
    pages = Pages(4, maximum=8)
    allocator = Allocator(pages.grow)
    pages.between = 1
    with pytest.raises(LayoutExhaustedError, match="the memory refused to grow by 5 pages"):
        allocator.allocate(2 * PAGE_BYTES, 18)
    statistics = allocator.statistics()

    assert pages.calls == [5, 0, 2]
    assert AllocatorStatistics(2, 0, 2 * PAGE_BYTES, 0, 2 * PAGE_BYTES, 1, 0) == statistics
    assert allocator.allocate(2 * PAGE_BYTES, 16).address == 5 * PAGE_BYTES


def test_allocate_in_an_empty_memory_leaves_the_null_pointer_alone() -> None:
    """Address 0 is never handed out, even when page 0 is ours, and a whole page still fits."""
    pages = Pages(0)
    allocator = Allocator(pages.grow)
    region = allocator.allocate(PAGE_BYTES, 0)
    statistics = allocator.statistics()

    assert region.address == LOWEST_ADDRESS
    assert statistics.pages_grown == 2
    assert statistics.bytes_reserved == LOWEST_ADDRESS
    assert statistics.bytes_in_use + statistics.bytes_free + statistics.bytes_reserved == 2 * PAGE_BYTES


def test_allocate_at_the_top_never_ends_at_two_to_the_32() -> None:
    """A region's end is a valid 32-bit address, so its one-past-the-end pointer is not null."""
    allocator = Allocator(Pages(65535).grow)
    with pytest.raises(LayoutExhaustedError):
        allocator.allocate(PAGE_BYTES, 0)
    region = allocator.allocate(PAGE_BYTES - 16, 0)

    assert region.end == 2**32 - 16


def test_allocate_nothing_takes_nothing() -> None:
    """Size 0 is the empty region at address 0, grows nothing, and can be freed at will."""
    pages = Pages(1)
    allocator = Allocator(pages.grow)
    region = allocator.allocate(0, 12)
    allocator.free(region)
    allocator.free(region)

    assert Region(0, 0) == region
    assert pages.calls == []
    assert AllocatorStatistics(0, 0, 0, 0, 0, 0, 0) == allocator.statistics()


@pytest.mark.parametrize(
    ("size", "align_log2"),
    [(2**32, 0), (2**32 + 1, 0), (2**40, 3), (2**31 + 1, 31), (1, 32), (0, 32), (16, 2**40), (2**32 - 16, 0)],
)
def test_allocate_what_can_never_fit_is_refused_before_growing(size: int, align_log2: int) -> None:
    """Lying sizes and alignments are refused without touching the memory, whatever their magnitude."""
    pages = Pages(1)
    allocator = Allocator(pages.grow)
    with pytest.raises(LayoutExhaustedError, match=r"nothing was reserved$") as caught:
        allocator.allocate(size, align_log2)

    assert (size, align_log2, 65536) == (
        caught.value.requested_bytes,
        caught.value.align_log2,
        caught.value.limit_pages,
    )
    assert 1 << min(align_log2, 32) == caught.value.alignment
    assert pages.calls == []
    assert allocator.statistics().pages_grown == 0


def test_allocate_over_a_declared_maximum_is_refused_before_growing() -> None:
    """With the memory's maximum known, a request over it never reaches the memory."""
    pages = Pages(1)
    allocator = Allocator(pages.grow, limit_pages=10)
    with pytest.raises(LayoutExhaustedError) as caught:
        allocator.allocate(10 * PAGE_BYTES, 0)

    assert str(caught.value) == (
        "cannot place 655360 bytes aligned to 2**0: no such run ends below the limit of 10 pages; "
        "nothing was reserved"
    )
    assert pages.calls == []


def test_allocate_when_growth_is_refused_changes_nothing() -> None:
    """A refused growth leaves the allocator as it was, and smaller requests still work."""
    pages = Pages(1, maximum=2)
    allocator = Allocator(pages.grow)
    allocator.allocate(60_000, 0)
    before = allocator.statistics()
    with pytest.raises(LayoutExhaustedError, match="the memory refused to grow by 1 pages"):
        allocator.allocate(60_000, 0)

    assert before == allocator.statistics()
    assert allocator.allocate(5000, 0).address == 2 * PAGE_BYTES - 5536


def test_allocate_when_grow_raises_changes_nothing() -> None:
    """An exception of the memory passes through and leaves the allocator as it was."""

    def grow(pages: int) -> int | None:
        raise KeyError(pages)

    allocator = Allocator(grow)
    with pytest.raises(KeyError):
        allocator.allocate(1, 0)

    assert AllocatorStatistics(0, 0, 0, 0, 0, 0, 0) == allocator.statistics()


@pytest.mark.parametrize("answer", [0, 65536])
def test_allocate_when_the_memory_lies_about_its_old_size_is_an_error(answer: int) -> None:
    """Pages that are ours already, or outside the address space, are not believed."""
    answers = iter([1, answer])
    allocator = Allocator(lambda _pages: next(answers))
    allocator.allocate(PAGE_BYTES, 0)
    before = allocator.statistics()
    with pytest.raises(MemoryLayoutError, match="returned"):
        allocator.allocate(PAGE_BYTES, 0)

    assert before == allocator.statistics()


@pytest.mark.parametrize(("size", "align_log2", "text"), [(-1, 0, "size"), (1, -1, "align_log2")])
def test_allocate_with_a_negative_argument_names_it(size: int, align_log2: int, text: str) -> None:
    """A negative size or exponent is a caller's mistake and says which."""
    with pytest.raises(InvalidRequestError, match=rf"^{text} must not be negative \(got -1\)$"):
        Allocator(Pages().grow).allocate(size, align_log2)


@pytest.mark.parametrize("page_size", [0, -1, 3, 131072])
def test_allocator_with_an_impossible_page_size_is_refused(page_size: int) -> None:
    """A page size is a power of two up to 65,536."""
    with pytest.raises(InvalidRequestError, match="page_size"):
        Allocator(Pages().grow, page_size=page_size)


def test_allocator_with_a_negative_limit_is_refused() -> None:
    """A limit is a number of pages."""
    with pytest.raises(InvalidRequestError, match="limit_pages"):
        Allocator(Pages().grow, limit_pages=-1)


def test_free_twice_is_an_error_that_changes_nothing() -> None:
    """A second free is refused, also when the bytes belong to somebody else by now."""
    allocator = Allocator(Pages(1).grow)
    stale = allocator.allocate(64, 3)
    allocator.free(stale)
    with pytest.raises(InvalidRegionError):
        allocator.free(stale)
    owner = allocator.allocate(64, 3)
    before = allocator.statistics()
    assert stale == owner
    with pytest.raises(InvalidRegionError) as caught:
        allocator.free(stale)

    assert (stale.address, stale.size) == (caught.value.address, caught.value.size)
    assert before == allocator.statistics()
    allocator.free(owner)


def test_free_of_a_foreign_region_is_an_error_that_changes_nothing() -> None:
    """A region of another allocator, or a made-up one, is refused."""
    allocator = Allocator(Pages(1).grow)
    region = allocator.allocate(64, 3)
    before = allocator.statistics()
    foreign = Allocator(Pages(1).grow).allocate(64, 3)
    for wrong in (foreign, Region(region.address + 8, 8), Region(region.address, 32, 3), Region(1, 0)):
        with pytest.raises(InvalidRegionError):
            allocator.free(wrong)

    assert before == allocator.statistics()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1)])
def test_free_in_any_order_joins_neighbours(order: tuple[int, int, int]) -> None:
    """Freed neighbours become one run, whichever was freed first."""
    allocator = Allocator(Pages(1).grow)
    regions = [allocator.allocate(size, 0) for size in (100, 200, 300)]
    for index in order:
        allocator.free(regions[index])
    statistics = allocator.statistics()

    assert (
        statistics.bytes_free,
        statistics.largest_free,
        statistics.free_runs,
        statistics.regions,
    ) == (PAGE_BYTES, PAGE_BYTES, 1, 0)


def test_allocate_and_free_in_a_loop_does_not_grow_for_ever() -> None:
    """Opening and closing the same libraries a thousand times takes no more memory than once."""
    pages = Pages(1)
    allocator = Allocator(pages.grow)
    for _ in range(1000):
        regions = [allocator.allocate(size, 4) for size in (40_000, 70_000, 10, 130_000)]
        for region in regions:
            allocator.free(region)

    assert allocator.statistics().pages_grown <= 5


PAGE = 64  # small pages make every boundary near


class AllocatorMachine(RuleBasedStateMachine):
    """Random allocations, frees and foreign growth, checked against a plain list of what is in use."""

    @initialize(
        start=st.integers(0, 20),
        maximum=st.one_of(st.integers(1, 200), st.just(1 << 26)),
        page_size=st.sampled_from([1, PAGE, PAGE_BYTES]),
        limit_known=st.booleans(),
    )
    def set_up(self, start: int, maximum: int, page_size: int, limit_known: bool) -> None:
        self.page_size = page_size
        maximum = min(max(start, maximum), 2**32 // page_size)
        self.pages = Pages(start, maximum)
        limit_pages = maximum if limit_known else None
        self.allocator = Allocator(self.pages.grow, page_size=page_size, limit_pages=limit_pages)
        self.used: list[Region] = []

    @rule(
        size=st.one_of(st.integers(0, 5 * PAGE), st.integers(0, 2**33), st.integers(1, 8).map(PAGE.__mul__)),
        align_log2=st.one_of(st.integers(0, 8), st.integers(0, 33)),
        between=st.integers(0, 2),
    )
    def allocate(self, size: int, align_log2: int, between: int) -> None:
        before = self.allocator.statistics()
        self.pages.between = between if self.pages.pages + between <= self.pages.maximum else 0
        try:
            region = self.allocator.allocate(size, align_log2)
        except LayoutExhaustedError:
            after = self.allocator.statistics()
            assert (before.bytes_in_use, before.regions) == (after.bytes_in_use, after.regions)
            if not between:
                aligned = -(-max(16, self.end_of_free_tail()) // (1 << align_log2)) * (1 << align_log2)
                top = min(self.pages.maximum * self.page_size, 2**32 - 16)
                assert align_log2 > 31 or aligned + size > top, "refused although it fits at the end"
        else:
            assert size == region.size
            if size:
                assert align_log2 == region.align_log2
                self.used.append(region)
            else:
                assert Region(0, 0) == region

    def end_of_free_tail(self) -> int:
        """Where a region at the memory's end could begin: behind the last byte there that is not free."""
        end = self.pages.pages * self.page_size
        begins = [0, *(region.end for region in self.used)]
        runs = self.allocator._free.runs()
        if runs and runs[-1][1] == end:
            return runs[-1][0]
        assert end >= max(begins)
        return end

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        region = self.used.pop(data.draw(st.integers(0, len(self.used) - 1)))
        self.allocator.free(region)
        before = self.allocator.statistics()
        with pytest.raises(InvalidRegionError):
            self.allocator.free(region)
        assert before == self.allocator.statistics()

    @rule(pages=st.integers(1, 3))
    def somebody_else_grows(self, pages: int) -> None:
        self.pages.grow_by_somebody_else(pages)

    @rule()
    def free_everything(self) -> None:
        while self.used:
            self.allocator.free(self.used.pop())
        statistics = self.allocator.statistics()
        assert len(self.stretches()) == statistics.free_runs
        longest = max((end - start for start, end in self.stretches()), default=0)
        assert longest == statistics.largest_free
        assert statistics.pages_grown * self.page_size == statistics.bytes_free + statistics.bytes_reserved

    def stretches(self) -> list[tuple[int, int]]:
        """The usable bytes we grew, as maximal stretches."""
        joined: list[tuple[int, int]] = []
        for first, last in self.pages.ours:
            start = max(first * self.page_size, 16)
            end = min(last * self.page_size, 2**32 - 16)
            if start >= end:
                continue
            if joined and joined[-1][1] == start:
                joined[-1] = (joined[-1][0], end)
            else:
                joined.append((start, end))
        return joined

    @invariant()
    def nothing_overlaps_or_is_lost(self) -> None:
        if not hasattr(self, "allocator"):
            return
        stretches = self.stretches()
        runs = self.allocator._free.runs()
        pieces = sorted([(region.address, region.end) for region in self.used] + runs)
        for (_, end), (start, _) in itertools.pairwise(pieces):
            assert end <= start, "overlap"
        for region in self.used:
            assert region.address % (1 << region.align_log2) == 0
        for start, end in pieces:
            assert any(low <= start and end <= high for low, high in stretches), "outside our pages"
        for (_, end), (start, _) in itertools.pairwise(runs):
            assert end < start, "two free runs touch"
        statistics = self.allocator.statistics()
        assert sum(end - start for start, end in stretches) == statistics.bytes_in_use + statistics.bytes_free
        assert sum(end - start for start, end in pieces) == statistics.bytes_in_use + statistics.bytes_free
        grown = sum(last - first for first, last in self.pages.ours)
        assert grown == statistics.pages_grown
        assert grown * self.page_size == (
            statistics.bytes_in_use + statistics.bytes_free + statistics.bytes_reserved
        )
        assert len(self.used) == statistics.regions
        assert sum(region.size for region in self.used) == statistics.bytes_in_use
        assert max((end - start for start, end in runs), default=0) == statistics.largest_free


AllocatorMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, derandomize=True)


class TestAllocatorOverRandomUse(AllocatorMachine.TestCase):  # type: ignore[valid-type, misc]
    """Random use amid foreign growth overlaps nothing, keeps alignment, stays in its pages, loses nothing."""
