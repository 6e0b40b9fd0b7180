"""What a C++ exception that nobody caught says of itself: the type that was thrown, and the text of its `what()`.

The exception's value is the address of its header, as libc++abi lays it out on 32 bits (`cxa_exception.h`, the same in
wasi-sdk and Emscripten); types and bases are read as the Itanium C++ ABI has them. All of it is the guest's memory, which may
hold anything: what does not fit gives no description, and bases that go in circles come to an end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from dl.errors import TrapError
from dl.glue.names import BASE_NAMESPACE, TABLE_NAME
from dl.program.program import Program
from dl.text import type_as_written
from dl.wasm.types import FuncType
from memory import LinearMemory, MemoryLayoutError, Uncopied

if TYPE_CHECKING:
    from dl.engine.protocol import EngineFunction, EngineTable, Store

CPP_EXCEPTION = "__cpp_exception"

_PRIMARY, _DEPENDENT = b"\0++CGNLC", b"\1++CGNLC"
"""Exception classes as they lie in memory: of objects that were thrown, and of those that `std::rethrow_exception` throws."""
_TYPE_BEFORE, _PRIMARY_BEFORE, _HEADER_BYTES = 48, 4, 32
"""Bytes from a header back to the type, and to a dependent exception's object; and those that the object lies behind it."""

_SINGLE_BASE, _SEVERAL_BASES = (
    b"N10__cxxabiv120__si_class_type_infoE",
    b"N10__cxxabiv121__vmi_class_type_infoE",
)
_STD_EXCEPTION = b"St9exception"
_VIRTUAL, _PUBLIC, _OFFSET_SHIFT = 1, 2, 8
_MOST_BASES = 64
_MOST_BYTES = 4096
_WHAT_SLOT = 8
"""Bytes to `what()` in the virtual table of `std::exception`, behind two destructors."""
_METHOD = FuncType(("i32",), ("i32",))


class CxxExceptions(Uncopied):
    """Describes the exceptions of one store. Belongs to the group's thread.

    Args:
        store: where they are thrown.
        program: whose memory they lie in.
    """

    __slots__ = ("_busy", "_program", "_store")

    def __init__(self, store: Store, program: Program) -> None:
        self._store = store
        self._program = program
        self._busy = False

    def described(self, tag: str | None, value: int | None) -> tuple[str, str | None] | None:
        """Return the type of an exception, as its author wrote it, and what it says. `what()` is guest code that runs here.

        Args:
            tag: name of the exception's tag.
            value: its first value.

        Returns:
            None if it is no C++ exception whose layout is known; without a text if it does not derive from
            `std::exception`, or its `what()` fails.
        """
        guest = self._program.linear
        if tag != CPP_EXCEPTION or value is None or guest is None or self._busy:
            return None  # busy: `what()` threw
        try:
            kind = guest.read(value, 8)
            if kind not in (_PRIMARY, _DEPENDENT):
                return None
            thrown = value + _HEADER_BYTES if kind == _PRIMARY else guest.read_u32(value - _PRIMARY_BEFORE)
            information = guest.read_u32(value - _TYPE_BEFORE)
            name = type_as_written(_name(guest, information).decode(errors="replace"))
        except MemoryLayoutError:
            return None
        self._busy = True
        try:
            return name, self._says(guest, information, thrown)
        except (MemoryLayoutError, TrapError):
            return name, None
        finally:
            self._busy = False

    def _says(self, guest: LinearMemory, information: int, thrown: int) -> str | None:
        for base, place in _bases(guest, information, thrown):
            if _name(guest, base) != _STD_EXCEPTION:
                continue
            index = guest.read_u32(guest.read_u32(place) + _WHAT_SLOT)
            table = cast("EngineTable", self._store.external(BASE_NAMESPACE, TABLE_NAME))
            function = cast("EngineFunction | None", table.get(index) if index < table.size() else None)
            if function is None or function.type() != _METHOD:
                return None
            text = function.callable(_METHOD)(place) & 0xFFFFFFFF
            return guest.read_cbytes(text, _MOST_BYTES).decode(errors="replace")
        return None


def _name(guest: LinearMemory, information: int) -> bytes:
    return guest.read_cbytes(guest.read_u32(information + 4), _MOST_BYTES)


def _bases(guest: LinearMemory, information: int, thrown: int) -> Iterator[tuple[int, int]]:
    """Iterate over a class and its public bases, each with the address of that part of an object."""
    left, seen = [(information, thrown)], 0
    while left and seen < _MOST_BASES:
        seen += 1
        information, place = left.pop()
        yield information, place
        # What kind of type information it is says the type information of its own class, in front of its virtual functions.
        kind = _name(guest, guest.read_u32(guest.read_u32(information) - 4))
        if kind == _SINGLE_BASE:
            left.append((guest.read_u32(information + 8), place))
        elif kind == _SEVERAL_BASES:
            for number in range(min(guest.read_u32(information + 12), _MOST_BASES)):
                base, flags = guest.read_struct("<Ii", information + 16 + 8 * number)
                offset = flags >> _OFFSET_SHIFT
                if flags & _VIRTUAL:
                    offset = guest.read_i32(guest.read_u32(place) + offset)
                if flags & _PUBLIC:
                    left.append((base, place + offset))
