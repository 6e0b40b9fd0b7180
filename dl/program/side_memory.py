"""Linear memory for what the linker places: the data of side modules, stacks and thread-local blocks.

Two sources. `GrownMemory` adds pages to the memory and works beside any C library whose heap tolerates that the memory
grows under other hands (wasi-libc, WASIX). `GuestAllocator` asks the main module's own allocator, for C libraries that take
all memory above their heap base for theirs: Emscripten's `sbrk` would hand out pages that somebody else has grown.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Protocol

from dl.errors import ResourceLimitError
from dl.records import dataclass
from memory import Allocator, Block, LayoutExhaustedError, LinearMemory, Region, round_up

_ADDRESS_SPACE = 1 << 32
_MAX_ALIGN_LOG2 = 31

Refusal = Callable[[str, str], ResourceLimitError]
"""Makes an error of what needed memory, and why there is none."""


@dataclass(frozen=True)
class HandedOut:
    """A block that is handed out: its first byte, its size in bytes, and what for."""

    address: int
    size: int
    purpose: str


@dataclass(frozen=True)
class SideMemoryStatistics:
    """What is handed out and not given back: bytes, and regions."""

    bytes_in_use: int
    regions: int


class SideMemory(Protocol):
    """Hands out blocks of linear memory; safe for threads.

    Attributes:
        calls_guest: whether `allocate` and `free` call the main module's allocator: they work from `start` on, only in a thread
            that may enter guest code, and never while an operation is replayed.
    """

    calls_guest: bool

    def allocate(self, size: int, align_log2: int, purpose: str, *, zeroed: bool = True) -> Block:
        """Reserve a block of `size` bytes, at least 1, at a multiple of 2**align_log2; zeroed, or else with whatever is there.

        Raises:
            ResourceLimitError: there is no room; names `purpose`. Nothing was reserved.
        """

    def free(self, block: Block) -> None:
        """Give a block back."""

    def free_later(self, block: Block) -> None:
        """Give a block back from a thread that may not enter guest code; takes no lock but its own."""

    def start(self, malloc: Callable[[int], int], free: Callable[[int], object]) -> None:
        """The main module is initialized: its allocator works from now on."""

    def addresses(self) -> Mapping[str, int]:
        """Return the linker's own symbols that depend on what was handed out before the program runs, bytes."""

    def statistics(self) -> SideMemoryStatistics:
        """Return what is handed out."""

    def blocks(self) -> list[HandedOut]:
        """Return the blocks that are handed out, by address. From any thread."""

    def free_runs(self) -> list[tuple[int, int]]:
        """Return what is ready to be handed out again, start and end, by address. From any thread."""

    def close(self, closed: LinearMemory) -> None:
        """Let go of the memory; a closed one takes its place."""


class GrownMemory:
    """Blocks in pages that the linker grows the memory by.

    Args:
        memory: the program's memory.
        grow: grows it by pages, or returns None.
        limit_pages: what it may grow to; None for no limit.
        refusal: makes the error for memory that cannot grow.

    `_lock` guards the allocator and the list of blocks; the engine's growth, which takes a lock of the engine's, is called
    under it.
    """

    calls_guest = False

    def __init__(
        self,
        memory: LinearMemory,
        grow: Callable[[int], int | None],
        limit_pages: int | None,
        refusal: Refusal = ResourceLimitError,
    ) -> None:
        self._refusal = refusal
        self._memory = memory
        self._lock = threading.Lock()
        self._allocator = Allocator(grow, limit_pages=limit_pages)
        self._used = 0  # end of the highest block ever handed out; guarded by `_lock`
        self._blocks: dict[int, HandedOut] = {}

    def allocate(self, size: int, align_log2: int, purpose: str, *, zeroed: bool = True) -> Block:
        """Reserve a block; see `SideMemory`."""
        try:
            with self._lock:
                region = self._allocator.allocate(size, align_log2)
        except LayoutExhaustedError as error:
            raise self._refusal(purpose, f"no linear memory: {error}") from error
        # What was never handed out lies in pages that were grown for it and is zero; to fill it would make it resident.
        with self._lock:
            used, self._used = self._used, max(self._used, region.end)
            self._blocks[region.address] = HandedOut(region.address, size, purpose)
        if zeroed:
            self._memory.fill(region.address, 0, max(0, min(region.end, used) - region.address))
        return Block(region.address, size, region)

    def free(self, block: Block) -> None:
        """Give a block back; its pages stay in the memory, for later blocks."""
        assert isinstance(block.owner, Region)
        with self._lock:
            self._allocator.free(block.owner)
            self._blocks.pop(block.address, None)

    free_later = free

    def start(self, malloc: Callable[[int], int], free: Callable[[int], object]) -> None:
        """Nothing changes: these blocks are not the main module's."""

    def addresses(self) -> Mapping[str, int]:
        """Return nothing: pages are added above the program's heap."""
        return {}

    def statistics(self) -> SideMemoryStatistics:
        """Return what is handed out."""
        with self._lock:
            now = self._allocator.statistics()
        return SideMemoryStatistics(now.bytes_in_use, now.regions)

    def blocks(self) -> list[HandedOut]:
        """See `SideMemory`."""
        with self._lock:
            return [self._blocks[address] for address in sorted(self._blocks)]

    def free_runs(self) -> list[tuple[int, int]]:
        """See `SideMemory`."""
        with self._lock:
            return self._allocator.free_runs()

    def close(self, closed: LinearMemory) -> None:
        """See `SideMemory`."""
        self._memory = closed


class GuestAllocator:
    """Blocks from the main module's `malloc` and `free`, which have no alignment of their own above 8 or 16 bytes.

    Until the main module is initialized nothing of it may be called; blocks asked for before come from a bump pointer at
    the future heap base (as Emscripten places load-time libraries), and stay for good.

    Args:
        memory: the program's memory.
        heap_base: address from which blocks are taken before `start`, bytes.
        ensure_size: makes the memory reach an address, or returns False.
        refusal: makes the error for memory that cannot grow.

    `_lock` guards the figures and the blocks to be freed; a leaf.
    """

    calls_guest = True

    def __init__(
        self,
        memory: LinearMemory,
        heap_base: int,
        ensure_size: Callable[[int], bool],
        refusal: Refusal = ResourceLimitError,
    ) -> None:
        self._refusal = refusal
        self._memory = memory
        self._ensure_size = ensure_size
        self.heap_base = heap_base
        self._lock = threading.Lock()
        self._bytes = self._regions = 0
        self._to_free: list[Block] = []
        self._blocks: dict[int, HandedOut] = {}
        self._malloc: Callable[[int], int] | None = None
        self._free: Callable[[int], object] | None = None

    def start(self, malloc: Callable[[int], int], free: Callable[[int], object]) -> None:
        """Use the guest's allocator from now on: the main module is initialized."""
        self._malloc, self._free = malloc, free

    def addresses(self) -> Mapping[str, int]:
        """Return where the heap starts: above the blocks that were handed out before it was used."""
        return {"__heap_base": self.heap_base}

    def allocate(self, size: int, align_log2: int, purpose: str, *, zeroed: bool = True) -> Block:
        """Reserve a block; see `SideMemory`. May call the guest's `malloc`, and `free` for what was given back later."""
        with self._lock:
            to_free, self._to_free = self._to_free, []
        for block in to_free:
            self.free(block)
        alignment = 1 << min(align_log2, _MAX_ALIGN_LOG2)
        if size + alignment > _ADDRESS_SPACE or align_log2 > _MAX_ALIGN_LOG2:
            raise ResourceLimitError(purpose, f"{size} bytes at 2**{align_log2} do not fit a 32-bit memory")
        if self._malloc is None:
            address = round_up(self.heap_base, alignment)
            end = round_up(address + size, 16)
            if not self._ensure_size(end):
                raise self._refusal(purpose, f"linear memory cannot grow to {end} bytes")
            self.heap_base = end
            return self._handed_out(Block(address, size, None), purpose)
        start = self._malloc(size + alignment) & 0xFFFFFFFF
        if not start:
            raise self._refusal(purpose, f"the program's malloc has no {size + alignment} bytes")
        address = round_up(start, alignment)
        if address + size > self._memory.size:
            raise ResourceLimitError(
                purpose, f"the program's malloc returned {start:#x}, which is not in its memory"
            )
        if zeroed:
            self._memory.fill(address, 0, size)
        return self._handed_out(Block(address, size, start), purpose)

    def free(self, block: Block) -> None:
        """Give a block back to the guest's allocator; one from before it ran stays for good."""
        if isinstance(block.owner, int) and self._free is not None:
            self._free(block.owner)
        with self._lock:
            self._bytes -= block.size
            self._regions -= 1
            self._blocks.pop(block.address, None)

    def free_later(self, block: Block) -> None:
        """Give a block back with the next `allocate`."""
        with self._lock:
            self._to_free.append(block)

    def _handed_out(self, block: Block, purpose: str) -> Block:
        with self._lock:
            self._blocks[block.address] = HandedOut(block.address, block.size, purpose)
            self._bytes += block.size
            self._regions += 1
        return block

    def statistics(self) -> SideMemoryStatistics:
        """Return what is handed out."""
        with self._lock:
            return SideMemoryStatistics(self._bytes, self._regions)

    def blocks(self) -> list[HandedOut]:
        """See `SideMemory`."""
        with self._lock:
            return [self._blocks[address] for address in sorted(self._blocks)]

    def free_runs(self) -> list[tuple[int, int]]:
        """Return nothing: what is free is the program's heap."""
        return []

    def close(self, closed: LinearMemory) -> None:
        """See `SideMemory`."""
        self._memory = closed
