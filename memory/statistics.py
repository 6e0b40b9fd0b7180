"""What an allocator reports about itself."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["AllocatorStatistics"]


@dataclass(frozen=True)
class AllocatorStatistics:
    """A snapshot; pages_grown * page_size == bytes_in_use + bytes_free + bytes_reserved.

    Attributes:
      pages_grown: Wasm pages this allocator has got from the memory.
      bytes_in_use: bytes in regions that are not freed.
      bytes_free: bytes ready to be handed out again.
      regions: how many regions are in use, empty ones not counted.
      largest_free: bytes of the longest free run.
      free_runs: how many free runs there are.
      bytes_reserved: bytes never handed out: the first and last 16 of the address space, if they are ours.
    """

    pages_grown: int
    bytes_in_use: int
    bytes_free: int
    regions: int
    largest_free: int
    free_runs: int
    bytes_reserved: int
