"""The 32-bit linear address space: its numbers, and rounding in it."""

from __future__ import annotations

PAGE_BYTES = 65536
"""Bytes of a Wasm page (core specification, section 4.2.8)."""

ADDRESS_SPACE_BYTES = 1 << 32
"""Bytes a 32-bit linear memory can have."""

MAX_ALIGN_LOG2 = 31
"""The strictest alignment that any address but 0 can have, as an exponent of two."""

LOWEST_ADDRESS = 16
"""Bytes at address 0 that hold no object, so that C's null pointer stays one.

16, the strictest alignment of any C type, so that keeping them unused costs no further alignment.
"""


def round_up(value: int, alignment: int) -> int:
    """The smallest multiple of `alignment` (a power of two) that is not below `value`."""
    return (value + alignment - 1) & -alignment
