"""Linear memory as the linker sees it: where things go in it, and typed access to it.

Imports nothing of the linker and no engine: a memory is given as callables and a small protocol, so every
part works with, and is tested on, any bytes.
"""

from typing import TYPE_CHECKING, Any

from memory.access import LinearMemory, MemorySource, PinnableSource
from memory.address import ADDRESS_SPACE_BYTES, LOWEST_ADDRESS, MAX_ALIGN_LOG2, PAGE_BYTES, round_up
from memory.allocator import Allocator, Region
from memory.block import Block
from memory.errors import (
    InvalidRegionError,
    InvalidRequestError,
    InvalidStringError,
    LayoutExhaustedError,
    MemoryClosedError,
    MemoryLayoutError,
    MemoryMovesError,
    OutOfBoundsError,
)
from memory.layout import STACK_UNIT_BYTES, MainLayout, main_layout
from memory.requests import unreadable
from memory.uncopied import Uncopied

if TYPE_CHECKING:
    from memory.statistics import AllocatorStatistics


def __getattr__(name: str) -> Any:
    """Import what only statistics need."""
    if name != "AllocatorStatistics":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from memory.statistics import AllocatorStatistics  # noqa: PLC0415  `dataclasses` is slow to import

    return AllocatorStatistics


__all__ = [
    "ADDRESS_SPACE_BYTES",
    "LOWEST_ADDRESS",
    "MAX_ALIGN_LOG2",
    "PAGE_BYTES",
    "STACK_UNIT_BYTES",
    "Allocator",
    "AllocatorStatistics",
    "Block",
    "InvalidRegionError",
    "InvalidRequestError",
    "InvalidStringError",
    "LayoutExhaustedError",
    "LinearMemory",
    "MainLayout",
    "MemoryClosedError",
    "MemoryLayoutError",
    "MemoryMovesError",
    "MemorySource",
    "OutOfBoundsError",
    "PinnableSource",
    "Region",
    "Uncopied",
    "main_layout",
    "round_up",
    "unreadable",
]
