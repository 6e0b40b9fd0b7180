"""What is lent to the guest is data that it can read: no pointers of the host, no numbers of another byte order."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

import dl
from tests.support.text_library import Pair

numpy: Any = pytest.importorskip("numpy")


class Pointing(ctypes.Structure):
    """Has a pointer of the host, in an array."""

    _fields_ = (("number", ctypes.c_int32), ("texts", ctypes.c_char_p * 2))


class Foreign(ctypes.BigEndianStructure):
    """Has the other byte order."""

    _fields_ = (("number", ctypes.c_int32),)


class Both(ctypes.Union):
    """Whose buffer says nothing of what is in it."""

    _fields_ = (("number", ctypes.c_int32), ("where", ctypes.c_void_p))


def _nothing() -> None:
    pass


BIG: Any = ctypes.c_int32
POINTERS: list[Any] = [
    ctypes.pointer(Pair(1, 2)),
    ctypes.CFUNCTYPE(None)(_nothing),
    ctypes.c_void_p(3),
    ctypes.c_char_p(b"text"),
    ctypes.c_wchar_p("text"),
    ctypes.py_object(3),
    Pointing(),
    (Pointing * 2)(),
    Both(),
    (ctypes.c_void_p * 2)(),
    numpy.array([object()]),
    numpy.zeros(2, [("number", "<i4"), ("thing", "O")]),
]
SWAPPED: list[Any] = [
    Foreign(1),
    BIG.__ctype_be__(1),
    numpy.array([1], ">i4"),
    numpy.zeros(2, [("x", ">f8")]),
]
NUMBERS: list[Any] = [numpy.float32(1), numpy.float64(1), numpy.complex128(1), numpy.bool_(True)]
DATA: list[Any] = [
    Pair(1, 2),
    (Pair * 2)(),
    ctypes.c_int32(5),
    (ctypes.c_double * 3)(),
    numpy.arange(5),
    numpy.zeros(2, [("PXO", "<i4"), ("second", "<f8")]),
    numpy.zeros(2, "<c16"),
    bytearray(b"text"),
]


def _named(value: Any) -> str:
    return f"{type(value).__name__} {getattr(value, 'dtype', '')}"


@pytest.mark.parametrize("value", POINTERS, ids=_named)
def test_pointers_of_the_host_are_refused(lib: dl.Library, value: Any) -> None:
    """The error names the function and the argument, and nothing stays allocated."""
    with pytest.raises(dl.LinkerUsageError, match="^same: argument 0 must have no pointers of the host: "):
        lib.same(value)


@pytest.mark.parametrize("value", SWAPPED, ids=_named)
def test_another_byte_order_is_refused(lib: dl.Library, value: Any) -> None:
    """The guest would read other numbers."""
    with pytest.raises(
        dl.LinkerUsageError, match="^same: argument 0 must be little-endian, as linear memory is"
    ):
        lib.same(value)


@pytest.mark.parametrize("value", NUMBERS, ids=_named)
def test_numbers_of_numpy_are_no_buffers(lib: dl.Library, value: Any) -> None:
    """They are refused for an integer as a float of Python's is, beside an argument that is lent too."""
    with pytest.raises(dl.ValueConversionError, match=r"add \(i32, i32\) -> i32: .*integer"):
        lib.add(1, value)
    with pytest.raises(dl.ValueConversionError, match="integer"):
        lib.add("text", value)
    assert lib.same(numpy.int32(7)) == 7


@pytest.mark.parametrize("value", DATA, ids=_named)
def test_data_is_lent(lib: dl.Library, value: Any) -> None:
    """The guest gets an address for it."""
    assert lib.same(value) > 0


def test_structures_of_the_guest_are_little_endian(linker: dl.Linker) -> None:
    """A view of the memory is checked as what is lent is."""
    with pytest.raises(dl.InvalidRequestError, match=r"be little-endian.*Foreign\.number is not"):
        linker.memory.structure(Foreign, 1024)
