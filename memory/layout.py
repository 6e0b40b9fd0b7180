"""Where the parts of a position-independent main module go in memory and table.

    0 ... memory_base ... data_end ... stack_low ... stack_high = heap_base ...
          [ data         ]            [ stack, grows down ]       [ heap, grows up ]

The rules are WASIX's, as Wasmer's linker has them (`lib/wasix/src/state/linker/linker_state.rs`): the stack
directly behind the data, its start rounded up to 1,024 bytes, and the heap behind it. A stack that
overflows therefore runs into the data; a program that wants a guard page asks for another layout of itself.
"""

from __future__ import annotations

from typing import NamedTuple

from memory.address import ADDRESS_SPACE_BYTES, LOWEST_ADDRESS, MAX_ALIGN_LOG2, PAGE_BYTES, round_up
from memory.errors import InvalidRequestError, LayoutExhaustedError

STACK_UNIT_BYTES = 1024
"""WASIX: a stack begins at a multiple of this and its size is one; so it is 16-aligned, as the C ABI asks."""

_FIRST_TABLE_INDEX = 1  # index 0 is C's null function pointer
_LIMIT_PAGES = ADDRESS_SPACE_BYTES // PAGE_BYTES


class MainLayout(NamedTuple):
    """The main module's layout; addresses in bytes, the table's in elements.

    Attributes:
      memory_base: value of `env.__memory_base`; first byte of the data, aligned as it asks; at least 16.
      data_end: first byte behind the data.
      stack_low: value of `GOT.mem.__stack_low`; lowest byte of the stack.
      stack_high: value of `GOT.mem.__stack_high` and first value of `env.__stack_pointer`.
      heap_base: value of `GOT.mem.__heap_base`; equal to `stack_high`.
      table_base: value of `env.__table_base`; at least 1, a multiple of the table alignment.
      minimum_pages: pages the memory must have before the module is instantiated: all up to `heap_base`.
    """

    memory_base: int
    data_end: int
    stack_low: int
    stack_high: int
    heap_base: int
    table_base: int
    minimum_pages: int


def main_layout(
    *,
    memory_size: int,
    memory_align_log2: int,
    stack_size: int,
    table_size: int = 0,
    table_align_log2: int = 0,
) -> MainLayout:
    """Lay out a main module from its dylink.0 MEM_INFO and the stack it is to get.

    Args:
      memory_size: bytes of its data, 0 or more.
      memory_align_log2: the data's alignment, as an exponent of two, 0 to 31.
      stack_size: bytes, a positive multiple of 1,024.
      table_size: table elements it fills, 0 or more.
      table_align_log2: their alignment in elements, as an exponent of two, 0 to 31.

    Returns:
      The layout; nothing is reserved by computing it.

    Raises:
      InvalidRequestError: a size or exponent is negative, or the stack size is not as above.
      LayoutExhaustedError: data, stack or table elements would not end below 2**32.
    """
    for parameter, value in (
        ("memory_size", memory_size),
        ("memory_align_log2", memory_align_log2),
        ("table_size", table_size),
        ("table_align_log2", table_align_log2),
    ):
        if value < 0:
            raise InvalidRequestError(parameter, value, "not be negative")
    if stack_size <= 0 or stack_size % STACK_UNIT_BYTES:
        raise InvalidRequestError(
            "stack_size", stack_size, f"be a positive multiple of {STACK_UNIT_BYTES} bytes"
        )
    # First, so that no power of a hostile exponent is ever computed.
    if memory_align_log2 > MAX_ALIGN_LOG2:
        reason = f"a 32-bit memory has no address aligned above 2**{MAX_ALIGN_LOG2}"
        raise LayoutExhaustedError(memory_size, memory_align_log2, _LIMIT_PAGES, reason)
    if table_align_log2 > MAX_ALIGN_LOG2:
        reason = f"a table has no index aligned above 2**{MAX_ALIGN_LOG2}"
        raise LayoutExhaustedError(0, table_align_log2, _LIMIT_PAGES, reason, table_size)

    memory_base = max(1 << memory_align_log2, LOWEST_ADDRESS)
    data_end = memory_base + memory_size
    stack_low = round_up(data_end, STACK_UNIT_BYTES)
    stack_high = stack_low + stack_size
    if stack_high >= ADDRESS_SPACE_BYTES:
        reason = f"data and a stack of {stack_size} bytes would end at {stack_high:#x}, not below 2**32"
        raise LayoutExhaustedError(memory_size, memory_align_log2, _LIMIT_PAGES, reason)
    table_base = round_up(_FIRST_TABLE_INDEX, 1 << table_align_log2)
    if table_base + table_size >= ADDRESS_SPACE_BYTES:
        reason = f"from index {table_base} they would end at {table_base + table_size}, not below 2**32"
        raise LayoutExhaustedError(0, table_align_log2, _LIMIT_PAGES, reason, table_size)
    return MainLayout(
        memory_base=memory_base,
        data_end=data_end,
        stack_low=stack_low,
        stack_high=stack_high,
        heap_base=stack_high,
        table_base=table_base,
        minimum_pages=round_up(stack_high, PAGE_BYTES) // PAGE_BYTES,
    )
