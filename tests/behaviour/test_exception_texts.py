"""What the error for an uncaught C++ exception says of memory that is no C++ exception, or a hostile one.

What it says of exceptions of real C++ is in `tests/build/test_thrown.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
import wasmtime

import dl
from dl.text import class_as_written, type_as_written

GUEST = b"\0++CGNLC"
SINGLE, SEVERAL = b"N10__cxxabiv120__si_class_type_infoE", b"N10__cxxabiv121__vmi_class_type_infoE"
LIBRARY = """
(module (@dylink.0 (mem-info (memory 0 0) (table 4 0)))
  (import "env" "__cpp_exception" (tag $cpp (param i32)))
  (import "env" "__table_base" (global $table i32))
  (import "env" "__indirect_function_table" (table 4 funcref))
  (elem (global.get $table) $same $traps $throws $other)
  (func $same (param i32) (result i32) (i32.add (local.get 0) (i32.const 64)))
  (func $traps (param i32) (result i32) unreachable)
  (func $throws (param i32) (result i32) (throw $cpp (local.get 0)))
  (func $other (param i64) (result i32) (i32.const 0))
  (func (export "table") (result i32) (global.get $table))
  (func (export "throw") (param i32) (throw $cpp (local.get 0))))
"""
"""A library that throws what it is told. Functions that may be a `what()`: text behind the object, trap, throw, no method."""
TEXT, TRAPS, THROWS, OTHER = range(4)
BYTES = 1024


class World:
    """A program whose memory a test fills, and throws."""

    def __init__(self) -> None:
        self.linker = dl.Linker(
            None,
            memory=dl.MemoryType(1, 64, shared=True),
            libraries={"guest.so": bytes(wasmtime.wat2wasm(LIBRARY))},
        )
        self.library = self.linker.main_group.library("guest.so")
        self.start = int(self.linker.allocate(BYTES))
        self.end = self.start

    def put(self, data: bytes) -> int:
        """Put bytes into memory; return where."""
        at, self.end = self.end, self.end + len(data) + -len(data) % 8
        assert self.end <= self.start + BYTES
        self.linker.memory.write(at, data)
        return at

    def words(self, *numbers: int) -> int:
        """Put numbers of 32 bits into memory; return where."""
        return self.put(struct.pack(f"<{len(numbers)}I", *numbers))

    def information(self, name: bytes, kind: bytes, *more: int) -> int:
        """Put type information into memory."""
        meta = self.words(0, self.put(kind + b"\0"))
        return self.words(self.words(0, meta) + 8, self.put(name + b"\0"), *more)

    def thrown(self, information: int, method: int, says: bytes = b"") -> dl.UncaughtExceptionError:
        """Throw an object of a type whose third virtual function is at a table index; return the error."""
        functions = self.words(0, 0, method)
        self.words(information, *[0] * 11)
        header = self.put(GUEST + bytes(24))
        self.words(functions, *[0] * 15)
        self.put(says + b"\0")
        return self.throw(header)

    def throw(self, value: int) -> dl.UncaughtExceptionError:
        """Throw a value; return the error."""
        with pytest.raises(dl.UncaughtExceptionError) as caught:
            self.library["throw"](value)
        return caught.value

    def method(self, which: int) -> int:
        """Return the table index of one of the library's functions."""
        return int(self.library["table"]()) + which


@pytest.fixture(name="world")
def _world() -> Iterator[World]:
    world = World()
    with world.linker:
        yield world


def derived(world: World) -> int:
    """Put type information of a class that derives from `std::exception` into memory."""
    base = world.information(b"St9exception", b"N10__cxxabiv117__class_type_infoE")
    return world.information(b"N4mine5ErrorE", SINGLE, base)


def test_a_description_has_type_and_text(world: World) -> None:
    """The error says the type, and calls `what()` by the virtual table of the object."""
    error = world.thrown(derived(world), world.method(TEXT), b"out of \x1b[31mred\xff")

    assert (error.type_name, error.what) == ("mine::Error", "out of \x1b[31mred\ufffd")
    assert error.reason == "uncaught exception of type mine::Error: out of \\x1b[31mred\ufffd"


@pytest.mark.parametrize("which", [TRAPS, THROWS, OTHER, 1 << 20])
def test_a_what_that_fails_leaves_the_type(world: World, which: int) -> None:
    """A `what()` that traps, throws, has another signature or is not there takes nothing from the rest of the error."""
    error = world.thrown(derived(world), world.method(which))

    assert (error.type_name, error.what) == ("mine::Error", None)
    assert world.library["table"]() == world.method(0)  # the group works on


def test_bases_in_circles_end(world: World) -> None:
    """A class that is its own base, twice, is no way to keep the linker busy."""
    name = world.put(b"4Loop\0")
    meta = world.words(0, world.put(SEVERAL + b"\0"))
    at = world.end + 16
    information = world.words(world.words(0, meta) + 8, name, 0, 1 << 31, *[at + 64, 2] * 8)
    loop = world.words(world.linker.memory.read_u32(information), name, 0, 1 << 31, *[information, 2] * 2)
    world.linker.memory.write(information + 16, struct.pack("<II", loop, 2))
    error = world.thrown(information, world.method(TEXT))

    assert (error.type_name, error.what) == ("Loop", None)


@pytest.mark.parametrize("value", [0, 8, 0xFFFFFFF8, 0xFFFFFFFF])
def test_what_is_no_exception_keeps_its_value(world: World, value: int) -> None:
    """A value that points to nothing of C++, or nowhere, is told as a number."""
    error = world.throw(value)

    assert error.type_name is None
    assert error.reason == f"uncaught exception with tag __cpp_exception (its first value is {value:#x})"


@pytest.mark.parametrize("information", [0xFFFFFFFF, 0x7FFFFFFF])
def test_type_information_outside_memory_is_none(world: World, information: int) -> None:
    """A header whose type information lies nowhere is told as a number."""
    assert world.thrown(information, world.method(TEXT)).type_name is None


@pytest.mark.parametrize(
    ("mangled", "written"),
    [
        ("St13runtime_error", "std::runtime_error"),
        ("5Plain", "Plain"),
        ("N4mine5ErrorE", "mine::Error"),
        ("NSt3__112bad_any_castE", "std::__1::bad_any_cast"),
        ("9Short", "9Short"),
        ("N4mine5Error", "N4mine5Error"),
        ("PKc", "PKc"),
        ("", ""),
    ],
)
def test_names_of_classes_need_no_library(mangled: str, written: str) -> None:
    """Names of classes are read without the demangler; what is none stays as it is, with and without it."""
    assert class_as_written(mangled) == written
    assert type_as_written(mangled) in {written, "char const*", "std::__1::bad_any_cast"}


def test_a_short_name_that_means_gigabytes_stays_as_it_is() -> None:
    """A mangled name whose parts repeat each other is not written out, whatever it says; an ordinary one is."""
    pytest.importorskip("pydemumble")
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    hostile = (
        "1AI1B1BE"
        + "".join(f"S_IS{d}_S{d}_E" for d in digits[1:])
        + "".join(f"S_IS1{d}_S1{d}_E" for d in digits)
    )

    assert type_as_written(hostile) == hostile
    assert type_as_written("St6vectorISsSaISsEE") == "std::vector<std::string, std::allocator<std::string>>"
