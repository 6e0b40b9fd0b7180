"""Arguments that are made once and passed to native functions many times."""

from __future__ import annotations

import ctypes

from dl.engine.native.arguments import address_argument, size_argument, taking_arguments


def test_addresses_and_sizes_arrive_whole() -> None:
    """Both have 64 bits, also at a second call, and a function of the same name that has `argtypes` keeps them."""
    library = ctypes.CDLL(None)
    library.labs.argtypes = (ctypes.c_long,)
    same = taking_arguments(library, "labs", ctypes.c_long)
    for make in (address_argument, size_argument):
        argument = make((1 << 62) + 5)
        assert [same(argument), same(argument)] == [(1 << 62) + 5] * 2
    assert library.labs(-7) == 7


def test_memory_is_reached_by_an_argument() -> None:
    """An argument refers to the place, not to what was there when it was made."""
    source, target = ctypes.create_string_buffer(b"before", 8), ctypes.create_string_buffer(8)
    places = address_argument(ctypes.addressof(target)), address_argument(ctypes.addressof(source))
    copy = taking_arguments(ctypes.CDLL(None), "memcpy", ctypes.c_void_p)
    source.value = b"after"
    assert copy(*places, size_argument(8)) == ctypes.addressof(target)
    assert target.value == b"after"
