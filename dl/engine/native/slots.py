"""The arguments and results of raw calls: slots of 16 bytes, little-endian, each value first in its own.

A view only holds an address, so one view serves all calls whose arguments lie at that address, of any thread: the stacks of
host calls give the same few addresses again and again. That saves making a view for each call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from dl.engine.native.arguments import address_argument, size_argument
from dl.engine.native.values import SLOT_BYTES

_MOST_VIEWS = 1024
"""Views that one function keeps; beyond that it begins anew."""


class NativeSlots:
    """A view of an argument area. See `dl.engine.protocol.Slots`.

    Args:
        address: of the area.
        count: slots in it.

    Attributes:
        address: of the area.
        count: slots in it.
        arguments: the two as native calls take them.
    """

    __slots__ = ("_area", "_words", "_words64", "address", "arguments", "count")

    def __init__(self, address: int, count: int, area: object = None) -> None:
        self.address = address
        self.count = count
        self.arguments = address_argument(address), size_argument(count)
        self._area = area
        self._words = (ctypes.c_uint32 * (4 * count)).from_address(address)
        self._words64 = (ctypes.c_uint64 * (2 * count)).from_address(address)

    def u32(self, position: int) -> int:
        return self._words[4 * position]

    def s32(self, position: int) -> int:
        value = self._words[4 * position]
        return value - 0x1_0000_0000 if value & 0x8000_0000 else value

    def u64(self, position: int) -> int:
        return self._words64[2 * position]

    def s64(self, position: int) -> int:
        value = self._words64[2 * position]
        return value - (1 << 64) if value >> 63 else value

    def set_32(self, position: int, value: int) -> None:
        self._words[4 * position] = value

    def set_64(self, position: int, value: int) -> None:
        self._words64[2 * position] = value


def new_slots(count: int) -> NativeSlots:
    """Return a view of an area of its own, all zeros."""
    area = ctypes.create_string_buffer(max(count, 1) * SLOT_BYTES)
    return NativeSlots(ctypes.addressof(area), max(count, 1), area)


def views(count: int) -> Callable[[int], NativeSlots]:
    """Return a function from the address of an area to its view, for areas of a number of slots."""
    known: dict[int, NativeSlots] = {}

    def view(address: int) -> NativeSlots:
        if len(known) >= _MOST_VIEWS:
            known.clear()
        made = known[address] = NativeSlots(address, count)
        return made

    find = known.get
    return lambda address: find(address) or view(address)
