"""Typed access to linear memory: values, bounds on every side, and memories that grow and move."""

from __future__ import annotations

import ctypes
import math
import struct
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import memory
from memory import (
    InvalidRequestError,
    InvalidStringError,
    LinearMemory,
    MemoryClosedError,
    OutOfBoundsError,
)

SIZE = 256


class HostBytes:
    """A memory in host bytes that grows in place, as a shared one does, or moves, as an unshared one may."""

    def __init__(self, size: int = SIZE, reserve: int = 0) -> None:
        self.buffer = ctypes.create_string_buffer(max(size, reserve, 1))
        self.size = size
        self.asked = 0

    def data_address(self) -> int:
        self.asked += 1
        return ctypes.addressof(self.buffer) if self.size else 0

    def data_size(self) -> int:
        self.asked += 1
        return self.size

    def grow_in_place(self, size: int) -> None:
        assert size <= len(self.buffer)
        self.size = size

    def grow_by_moving(self, size: int) -> None:
        old = self.buffer
        self.buffer = ctypes.create_string_buffer(size)
        ctypes.memmove(self.buffer, old, self.size)
        ctypes.memset(old, 0xEE, self.size)  # whoever still looks here is caught
        self.size = size


@pytest.fixture(name="source")
def _source() -> HostBytes:
    return HostBytes()


@pytest.fixture(name="linear", params=[False, True], ids=["movable", "stable"])
def _linear(source: HostBytes, request: pytest.FixtureRequest) -> memory.LinearMemory:
    return LinearMemory(source, stable_address=request.param)


NUMBERS = [
    ("u8", "<B", 0, 2**8 - 1),
    ("i8", "<b", -(2**7), 2**7 - 1),
    ("u16", "<H", 0, 2**16 - 1),
    ("i16", "<h", -(2**15), 2**15 - 1),
    ("u32", "<I", 0, 2**32 - 1),
    ("i32", "<i", -(2**31), 2**31 - 1),
    ("u64", "<Q", 0, 2**64 - 1),
    ("i64", "<q", -(2**63), 2**63 - 1),
]
TYPES = [*((name, layout) for name, layout, _, _ in NUMBERS), ("f32", "<f"), ("f64", "<d")]


@pytest.mark.parametrize(("name", "layout", "lowest", "highest"), NUMBERS)
def test_integers_are_little_endian_and_keep_their_extremes(
    linear: memory.LinearMemory, name: str, layout: str, lowest: int, highest: int
) -> None:
    """Each integer type reads back what was written, at any address, as little-endian bytes."""
    for address in (0, 1, 3, SIZE - struct.calcsize(layout)):
        for value in (lowest, -1 if lowest else 1, highest):
            getattr(linear, f"write_{name}")(address, value)

            assert getattr(linear, f"read_{name}")(address) == value
            assert linear.read(address, struct.calcsize(layout)) == struct.pack(layout, value)


@pytest.mark.parametrize(("name", "layout", "lowest", "highest"), NUMBERS)
def test_write_of_an_integer_out_of_range_writes_nothing(
    linear: memory.LinearMemory, name: str, layout: str, lowest: int, highest: int
) -> None:
    """A value its type cannot hold is refused and the memory stays as it was."""
    linear.fill(0, 0xAA, SIZE)
    for value in (lowest - 1, highest + 1, 1.5, None):
        with pytest.raises(InvalidRequestError, match=r"^value must "):
            getattr(linear, f"write_{name}")(8, value)

    assert linear.read(0, SIZE) == b"\xaa" * SIZE


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, math.inf, -math.inf, 2.0**-149])
def test_floats_read_back_as_written(linear: memory.LinearMemory, value: float) -> None:
    """Both float types keep sign of zero, infinities and subnormals."""
    linear.write_f32(1, value)
    linear.write_f64(9, value)

    assert struct.pack("<d", linear.read_f32(1)) == struct.pack("<d", value)
    assert struct.pack("<d", linear.read_f64(9)) == struct.pack("<d", value)


def test_floats_keep_nan_and_refuse_overflow(linear: memory.LinearMemory) -> None:
    """A NaN stays one; a finite number too large for 32 bits is refused, not made infinite."""
    linear.write_f32(0, math.nan)
    with pytest.raises(InvalidRequestError):
        linear.write_f32(0, 1e300)

    assert math.isnan(linear.read_f32(0))


@pytest.mark.parametrize(("name", "layout"), TYPES)
def test_numbers_outside_the_memory_are_refused(linear: memory.LinearMemory, name: str, layout: str) -> None:
    """A number lies wholly inside: not before byte 0, not a byte past the end, not where addresses wrap."""
    width = struct.calcsize(layout)
    linear.fill(0, 0xAA, SIZE)
    for address in (-1, -width, SIZE - width + 1, SIZE, 2**32 - 1, 2**32, 2**64 - 1, 2**70):
        with pytest.raises(OutOfBoundsError) as caught:
            getattr(linear, f"read_{name}")(address)
        assert caught.value.args == (address, width, SIZE)
        with pytest.raises(OutOfBoundsError):
            getattr(linear, f"write_{name}")(address, 1)

    assert linear.read(0, SIZE) == b"\xaa" * SIZE


@pytest.mark.parametrize(
    ("address", "length"),
    [(-1, 1), (-1, 0), (0, -1), (5, -5), (0, SIZE + 1), (SIZE, 1), (SIZE + 1, 0), (2**64 - 1, 2), (1, 2**64)],
)
def test_bytes_outside_the_memory_are_refused(linear: memory.LinearMemory, address: int, length: int) -> None:
    """A range must lie wholly inside, be it read, filled or decoded; an error says what was asked for."""
    for access in (
        lambda: linear.read(address, length),
        lambda: linear.fill(address, 1, length),
        lambda: linear.read_string(address, length),
    ):
        with pytest.raises(OutOfBoundsError) as caught:
            access()
        assert caught.value.args == (address, length, SIZE)

    assert linear.read(0, SIZE) == bytes(SIZE)


def test_write_past_the_end_writes_nothing(linear: memory.LinearMemory) -> None:
    """Data that would overhang the end is refused whole, not cut."""
    for address in (SIZE - 3, -4, 2**32 - 2):
        with pytest.raises(OutOfBoundsError, match="access of 4 bytes"):
            linear.write(address, b"abcd")

    assert linear.read(0, SIZE) == bytes(SIZE)


def test_ranges_that_touch_the_ends_are_inside(linear: memory.LinearMemory) -> None:
    """The whole memory, its last byte, and nothing at its end are all valid ranges."""
    linear.write(0, bytes(range(SIZE)))

    assert linear.read(0, SIZE) == bytes(range(SIZE))
    assert linear.read(SIZE - 1, 1) == b"\xff"
    assert linear.read(SIZE, 0) == b""
    linear.write(SIZE, b"")
    linear.fill(SIZE, 0, 0)


@pytest.mark.parametrize("data", [bytearray(b"abcd"), memoryview(b"abcd"), struct.pack("<I", 0x64636261)])
def test_write_takes_any_bytes_like_object(linear: memory.LinearMemory, data: Any) -> None:
    """Whatever exposes bytes can be written."""
    linear.write(7, data)

    assert linear.read(6, 6) == b"\0abcd\0"


def test_write_of_wider_items_writes_their_bytes(linear: memory.LinearMemory) -> None:
    """A view of wider items is written byte by byte, and measured in bytes."""
    items = memoryview(struct.pack("<3I", 1, 2, 3)).cast("I")
    linear.write(0, items)

    assert linear.read_struct("3I", 0) == (1, 2, 3)
    with pytest.raises(OutOfBoundsError):
        linear.write(SIZE - 4, items)


def test_fill_sets_exactly_its_range(linear: memory.LinearMemory) -> None:
    """Fill touches its bytes and neither neighbour."""
    linear.fill(10, 0xFF, 20)

    assert linear.read(0, 40) == bytes(10) + b"\xff" * 20 + bytes(10)


@pytest.mark.parametrize("value", [-1, 256])
def test_fill_with_what_is_no_byte_is_refused(linear: memory.LinearMemory, value: int) -> None:
    """A fill value is a byte; others are not cut to one."""
    with pytest.raises(InvalidRequestError, match=rf"^value must be a byte, 0 to 255 \(got {value}\)$"):
        linear.fill(0, value, 4)

    assert linear.read(0, 4) == bytes(4)


def test_strings_are_utf8(linear: memory.LinearMemory) -> None:
    """Strings of given length keep zero bytes; C strings end before the first."""
    octets = "größe\0日本".encode()
    linear.write(4, octets)

    assert linear.read_string(4, len(octets)) == "größe\0日本"
    assert linear.read_cstring(4) == "größe"
    assert linear.read_cstring(0) == ""


def test_strings_that_are_not_utf8_are_a_typed_error(linear: memory.LinearMemory) -> None:
    """Undecodable bytes are an error that says where, unless the caller chose how to decode them."""
    linear.write(0, b"ab\xff\0")
    with pytest.raises(InvalidStringError, match="no string in the 4 bytes at 0x0: not UTF-8 at byte 2"):
        linear.read_string(0, 4)
    with pytest.raises(InvalidStringError, match="no string in the 3 bytes at 0x0: not UTF-8 at byte 2"):
        linear.read_cstring(0)

    assert linear.read_cstring(0, errors="surrogateescape") == "ab\udcff"
    assert linear.read_string(0, 3, errors="replace") == "ab�"


@pytest.mark.parametrize("length", [0, 1, 255, 256, 257, 2047, 2048, 2049, 20_000])
def test_read_cstring_finds_the_end_at_any_distance(length: int) -> None:
    """However the search is cut into steps, the string is whole and ends at its zero, also the last byte."""
    linear = LinearMemory(HostBytes(length + 4))
    linear.fill(3, ord("x"), length)

    assert linear.read_cstring(3) == "x" * length
    assert linear.read_cstring(3, limit=length) == "x" * length
    if length:
        with pytest.raises(InvalidStringError, match=rf"no terminating zero within {length - 1} bytes$"):
            linear.read_cstring(3, limit=length - 1)


@pytest.mark.parametrize("length", [1, 255, 256, 257, 3000])
def test_read_cstring_without_an_end_stops_at_the_memory(length: int) -> None:
    """A string that runs into the memory's end is out of bounds, and so is one that begins there."""
    linear = LinearMemory(HostBytes(length))
    linear.fill(0, ord("x"), length)
    with pytest.raises(OutOfBoundsError) as caught:
        linear.read_cstring(0)
    assert caught.value.args == (0, length + 1, length)
    for address in (length, length + 1, -1):
        with pytest.raises(OutOfBoundsError):
            linear.read_cstring(address)
    with pytest.raises(InvalidRequestError, match=r"^limit must not be negative"):
        linear.read_cstring(0, limit=-1)


def test_structs_are_read_and_written_in_one_go(linear: memory.LinearMemory) -> None:
    """A C-like structure has no padding but what is spelled out."""
    linear.fill(0, 0xAA, SIZE)
    linear.write_struct("IBxxxQ", 3, 7, 255, 2**63)

    assert linear.read(3, 16) == struct.pack("<IBxxxQ", 7, 255, 2**63)
    assert linear.read_struct("IBxxxQ", 3) == (7, 255, 2**63)
    assert linear.read_struct("<I", 3) == (7,)
    assert linear.read_struct("", SIZE) == ()


def test_write_struct_that_fails_writes_nothing(linear: memory.LinearMemory) -> None:
    """A bad value, a missing one, or a structure past the end leaves the memory as it was."""
    with pytest.raises(InvalidRequestError):
        linear.write_struct("II", 0, 1, 2**32)
    with pytest.raises(InvalidRequestError):
        linear.write_struct("II", 0, 1)
    for address in (SIZE - 7, -8):
        with pytest.raises(OutOfBoundsError):
            linear.write_struct("II", address, 1, 2)
        with pytest.raises(OutOfBoundsError):
            linear.read_struct("II", address)

    assert linear.read(0, SIZE) == bytes(SIZE)


@pytest.mark.parametrize("layout", [">I", "!I", "@I", "=I", "?!", "I P"])
def test_struct_layouts_that_linear_memory_cannot_have_are_refused(
    linear: memory.LinearMemory, layout: str
) -> None:
    """Only little-endian formats with standard sizes describe linear memory."""
    with pytest.raises(InvalidRequestError, match=r"^layout must be "):
        linear.read_struct(layout, 0)


@pytest.mark.parametrize("stable", [False, True])
def test_memory_that_grew_in_place_is_reached_whole(stable: bool) -> None:
    """New bytes can be reached as soon as the memory has them, and not before."""
    source = HostBytes(100, reserve=1000)
    linear = LinearMemory(source, stable_address=stable)
    with pytest.raises(OutOfBoundsError):
        linear.read_u8(100)
    source.grow_in_place(1000)
    linear.write_u32(996, 5)

    assert linear.read_u32(996) == 5
    assert linear.size == 1000
    with pytest.raises(OutOfBoundsError):
        linear.read_u32(997)


def test_memory_that_moved_is_followed() -> None:
    """After a move every access goes to the new place, inside the old size too."""
    source = HostBytes(100)
    linear = LinearMemory(source)
    linear.write_u32(0, 1)
    linear.write(10, b"text\0")
    source.grow_by_moving(5000)

    assert linear.read_u32(0) == 1
    source.grow_by_moving(6000)
    assert linear.read_cstring(10) == "text"
    source.grow_by_moving(7000)
    linear.fill(0, 7, 4)
    assert source.buffer.raw[:4] == b"\7\7\7\7"
    source.grow_by_moving(8000)
    linear.write_u8(1, 9)
    assert source.buffer.raw[:4] == b"\7\x09\7\7"
    assert linear.size == 8000


def test_memory_that_is_stable_is_not_asked_for_accesses_inside_it() -> None:
    """With a stable address, an access inside the known size makes no call at all."""
    source = HostBytes()
    linear = LinearMemory(source, stable_address=True)
    asked = source.asked
    linear.write_u32(0, linear.read_u32(4))
    linear.read(0, SIZE)
    linear.fill(0, 0, SIZE)

    assert source.asked == asked


@pytest.mark.parametrize("stable", [False, True])
def test_memory_of_no_pages_can_grow(stable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty memory has nothing to read, and works once it has grown."""
    source = HostBytes(0, reserve=10)
    if stable:
        monkeypatch.setattr(source, "data_address", lambda: ctypes.addressof(source.buffer))
    linear = LinearMemory(source, stable_address=stable)

    assert linear.size == 0
    assert linear.read(0, 0) == b""
    with pytest.raises(OutOfBoundsError):
        linear.read_u8(0)
    source.grow_in_place(10)
    assert linear.read_u8(9) == 0


def test_memory_that_is_closed_refuses_everything(linear: memory.LinearMemory) -> None:
    """After close no access reaches the bytes, not even an empty one."""
    linear.close()
    linear.close()
    for access in (
        lambda: linear.read(0, 0),
        lambda: linear.read(-1, 1),
        lambda: linear.read_u32(0),
        lambda: linear.write(0, b""),
        lambda: linear.write_u8(0, 1),
        lambda: linear.fill(0, 0, 0),
        lambda: linear.read_cstring(0),
        lambda: linear.size,
    ):
        with pytest.raises(MemoryClosedError, match=r"^the linear memory is closed$"):
            access()


def test_memory_that_grows_while_threads_access_it_stays_consistent() -> None:
    """Threads that reach for new bytes while others make the window anew never fail inside the memory."""
    top = 1 << 16
    source = HostBytes(64, reserve=top)
    linear = LinearMemory(source, stable_address=True)
    start = threading.Barrier(5)
    failures: list[BaseException] = []

    def reach() -> None:
        start.wait(10)
        try:
            while (size := source.size) < top:
                linear.write_u32(size - 4, linear.read_u32(size - 4))
                linear.fill(size - 8, 0, 8)
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=reach) for _ in range(4)]
    for thread in threads:
        thread.start()
    start.wait(10)
    for size in range(64, top + 1, 16):
        source.grow_in_place(size)
        linear.read_u8(size - 1)
    for thread in threads:
        thread.join(30)

    assert failures == []
    assert not any(thread.is_alive() for thread in threads)


@given(
    address=st.one_of(st.integers(-10, SIZE + 10), st.integers(-(2**70), 2**70)),
    data=st.binary(max_size=SIZE + 10),
    stable=st.booleans(),
)
def test_write_then_read_agrees_with_a_bytearray(address: int, data: bytes, stable: bool) -> None:
    """A write lands exactly where a plain byte array would have it, or nowhere if it does not fit."""
    linear = LinearMemory(HostBytes(), stable_address=stable)
    linear.fill(0, 0x55, SIZE)
    model = bytearray(b"\x55" * SIZE)
    if address >= 0 and address + len(data) <= SIZE:
        linear.write(address, data)
        model[address : address + len(data)] = data
        assert linear.read(address, len(data)) == data
    else:
        with pytest.raises(OutOfBoundsError):
            linear.write(address, data)

    assert linear.read(0, SIZE) == bytes(model)


class _Place:
    """Something that lies in a memory, as a pointer or a block does."""

    def __index__(self) -> int:
        return 16


def test_what_has_an_address_stands_for_it(linear: memory.LinearMemory) -> None:
    """Every accessor takes an object that has `__index__`, and an address that is no whole number is refused."""
    place = _Place()
    linear.write(place, b"abc\0")
    assert linear.read(place, 3) == b"abc"
    assert linear.read_cstring(place) == linear.read_string(place, 3) == "abc"
    linear.write_u32(place, 7)
    assert linear.read_u32(place) == linear.read_struct("I", place)[0] == 7
    linear.write_struct("BB", place, 1, 2)
    linear.fill(place, 9, 1)
    assert linear.read(16, 2) == b"\x09\x02"
    not_whole: Any = 16.0
    with pytest.raises(memory.InvalidRequestError, match="address must be an integer"):
        linear.read_u8(not_whole)
