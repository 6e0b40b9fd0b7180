"""Typed, bounds-checked access to a linear memory from the host.

The bytes are reached directly, at their host address, without a call into the engine. What costs is
finding out whether that address still holds: an unshared memory may move when it grows. So the window onto
the memory is kept, and made anew only when an access does not fit in it or the memory has moved. A memory
whose address is known never to change (every shared one) is not asked at all for an access inside the
window, which makes `read_u32` a fraction of a microsecond; it cannot shrink, so the window never lies.

Nothing here is atomic: while a guest thread writes a value, the host may see half of it. Words that threads
share for synchronisation need the engine's or the futex layer's own means.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from operator import index
from typing import Any, Protocol, SupportsIndex, TypeVar, runtime_checkable

from memory.errors import (
    InvalidRequestError,
    InvalidStringError,
    MemoryClosedError,
    MemoryMovesError,
    OutOfBoundsError,
)
from memory.pages import populate
from memory.requests import aggregate, integer, little_endian
from memory.uncopied import Uncopied

_U8 = struct.Struct("<B")
_I8 = struct.Struct("<b")
_U16 = struct.Struct("<H")
_I16 = struct.Struct("<h")
_U32 = struct.Struct("<I")
_I32 = struct.Struct("<i")
_U64 = struct.Struct("<Q")
_I64 = struct.Struct("<q")
_F32 = struct.Struct("<f")
_F64 = struct.Struct("<d")

# Python's own way to a writable view of foreign bytes; unlike a ctypes array it makes no type per size.
_memoryview_from_address = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int
)(("PyMemoryView_FromMemory", ctypes.pythonapi))
_WRITABLE = 0x200  # PyBUF_WRITE

_HAS_GIL: bool = getattr(sys, "_is_gil_enabled", lambda: True)()
"""Without one, threads must not use one memory view at the same time: CPython 3.13 counts who uses it in steps that are not
whole, and so lets go of it too early."""

_CSTRING_FIRST_LOOK = 256  # bytes; paths and symbol names end within it


class MemorySource(Protocol):
    """A linear memory as the engine has it.

    It must stay alive as long as a `LinearMemory` over it is used and not closed.
    """

    def data_address(self) -> int:
        """Host address of byte 0; it may change when an unshared memory grows."""
        ...

    def data_size(self) -> int:
        """Bytes the memory has now; it never falls."""
        ...


@runtime_checkable
class PinnableSource(Protocol):
    """A linear memory that can be kept where it is."""

    def pin(self) -> object:
        """An object as long as which the bytes stay at their host address, whatever happens to their owner.

        Raises:
          MemoryMovesError: they may move when the memory grows.
        """
        ...


_Aggregate = TypeVar("_Aggregate", bound="ctypes.Structure | ctypes.Union")


class LinearMemory(Uncopied):
    """Reads and writes the bytes of one linear memory.

    Addresses are offsets from byte 0 and lengths are bytes. All numbers are little-endian and need no
    alignment. Every access raises `OutOfBoundsError` unless it lies wholly inside the memory as it is at
    that moment, and `MemoryClosedError` after `close`; then nothing was read or written. Every write raises
    `InvalidRequestError` for a value its type cannot hold, and writes nothing.

    An address is an unsigned int, or what has one (`__index__`: a pointer, a block, a symbol).

    Concurrency:
      with a stable address, any number of threads, while others grow the memory; not atomic. Otherwise
      only threads that cannot run while the memory grows. `close` must not race with an access.

    Args:
      source: the engine's memory; kept alive by this object.
      stable_address: `source.data_address()` never changes, so it need not be asked before each access.
        True for shared memories. Stating it wrongly makes the host read memory it does not own.
    """

    __slots__ = ("_address", "_closed", "_source", "_stable", "_window")

    def __init__(self, source: MemorySource, *, stable_address: bool = False) -> None:
        self._source = source
        self._stable = stable_address
        self._closed = False
        self._address = 0
        # Size and view of the window. One tuple, so that no thread ever pairs one's size with another's view.
        self._window = (0, memoryview(b""))
        self._renew()

    @property
    def size(self) -> int:
        """Bytes the memory has now."""
        return self._renew()[0]

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        if self._closed:
            return "<LinearMemory (closed)>"
        size = self.size
        return f"<LinearMemory of {size // 65536} pages, {size:,} bytes>"

    def _repr_html_(self) -> str:
        """What Jupyter shows."""
        import html  # noqa: PLC0415  only what a notebook shows

        return f"<code>{html.escape(repr(self))}</code>"

    def close(self) -> None:
        """Let go of the memory; every later access raises `MemoryClosedError`. May be called again."""
        self._closed = True
        self._stable = True  # the memory is not asked where it is any more
        self._window = (-1, memoryview(b""))  # no access, not even an empty one, fits in less than nothing

    @staticmethod
    def address(number: int) -> int:
        """The address that an i32 of the guest means: guest functions return them signed, addresses are unsigned.

        Not done by the accessors themselves: they would take the -1 of a failed call for the last byte of 4 GiB.
        """
        number = integer("number", number)
        if not -(1 << 31) <= number < 1 << 32:
            raise InvalidRequestError("number", number, "be one of 32 bits")
        return number & 0xFFFFFFFF

    # Bytes

    def read(self, address: SupportsIndex, length: int) -> bytes:
        """A copy of `length` bytes."""
        view, start = self._reach(address, integer("length", length))
        return view[start : start + length].tobytes()

    def write(self, address: SupportsIndex, data: bytes | bytearray | memoryview) -> None:
        """Copy all of `data`'s bytes into the memory."""
        try:
            octets = memoryview(data).cast("B")
        except TypeError as error:
            raise InvalidRequestError("data", data, f"be bytes in one piece: {error}") from None
        length = len(octets)
        view, start = self._reach(address, length)
        view[start : start + length] = octets

    def fill(self, address: SupportsIndex, value: int, length: int) -> None:
        """Set `length` bytes to `value`, 0 to 255."""
        if not 0 <= integer("value", value) <= 255:
            raise InvalidRequestError("value", value, "be a byte, 0 to 255")
        _, start = self._reach(address, integer("length", length))
        if length:
            populate(self._address + start, length)
            ctypes.memset(self._address + start, value, length)

    # Without a copy

    def borrow(self, address: SupportsIndex, length: int) -> memoryview:
        """A view of `length` bytes for one step of the host, such as a system call that reads or writes them.

        Nothing keeps the memory where it is meanwhile: only for a thread whose guest code waits for that step. See `view` for
        one that may be kept.
        """
        view, start = self._reach(address, integer("length", length))
        return view[start : start + length]

    def view(self, address: SupportsIndex, length: int) -> memoryview:
        """A view of `length` bytes, readable and writable, without a copy; `numpy.frombuffer` takes it.

        It is the same memory that the guest uses: what one writes the other reads, and nothing is atomic. It stays right
        when the memory grows, since the bytes do not move, and keeps its length. When the memory is given up, the bytes stay
        as they are until the last view of them is gone, and so does the memory's address space.

        Raises:
          OutOfBoundsError: the bytes are not all inside the memory as it is now.
          MemoryMovesError: the memory may move when it grows, so that no view could stay right.
          MemoryClosedError: the memory was given up.
        """
        _, start = self._reach(address, integer("length", length))
        source = self._source
        if not isinstance(source, PinnableSource):
            raise MemoryMovesError
        pin = source.pin()
        octets = (ctypes.c_ubyte * length).from_address(source.data_address() + start)
        octets.pin = pin  # type: ignore[attr-defined]  # views refer to the array, and so keep the memory
        return memoryview(octets).cast("B")

    def structure(self, kind: type[_Aggregate], address: SupportsIndex) -> _Aggregate:
        """A structure of ctypes that lies at an address: reading its fields reads the memory, setting them writes it.

        What `view` says about growth and closing holds for it.

        Args:
          kind: a `ctypes.Structure` or `ctypes.Union`. Pointers of the guest are `c_uint32` in it: those of ctypes are the
            host's, of another size.
          address: its first byte; C aligns it to the largest of its fields, which is not checked.

        Raises:
          InvalidRequestError: `kind` has a pointer or an object of the host among its fields.
          OutOfBoundsError: it is not all inside the memory.
          MemoryMovesError: as for `view`.
        """
        untyped = aggregate(kind)
        made: _Aggregate = untyped.from_buffer(self.view(address, ctypes.sizeof(kind)))
        return made

    # Strings

    def read_cbytes(self, address: SupportsIndex, limit: int = 65536) -> bytes:
        """The bytes before the first zero byte; `address` and `limit` as for `read_cstring`."""
        return self._read_terminated(address, limit)

    def read_string(self, address: SupportsIndex, length: int, *, errors: str = "strict") -> str:
        """The UTF-8 string of exactly `length` bytes, zero bytes included.

        Args:
          address: its first byte.
          length: bytes, not characters.
          errors: what to do with bytes that are not UTF-8, as for `bytes.decode`.

        Raises:
          InvalidStringError: the bytes are not UTF-8 and `errors` is "strict".
          OutOfBoundsError: they are not all inside the memory.
        """
        return _decode(self.read(address, length), index(address), errors)

    def read_cstring(self, address: SupportsIndex, limit: int = 65536, *, errors: str = "strict") -> str:
        """The UTF-8 string that ends before the first zero byte.

        Args:
          address: its first byte.
          limit: the most bytes it may have before the zero; a missing terminator costs no more than this.
          errors: what to do with bytes that are not UTF-8, as for `bytes.decode`.

        Raises:
          InvalidStringError: no zero byte follows within `limit` bytes, or the bytes are not UTF-8 and
            `errors` is "strict".
          OutOfBoundsError: the memory ends before a zero byte and within `limit`.
        """
        return _decode(self._read_terminated(address, limit), index(address), errors)

    def _read_terminated(self, at: SupportsIndex, limit: int) -> bytes:
        if integer("limit", limit) < 0:
            raise InvalidRequestError("limit", limit, "not be negative")
        _, address = self._reach(at, 1)
        inside = self.size - address  # bytes up to the memory's end
        most = limit + 1
        look = _CSTRING_FIRST_LOOK
        while True:
            look = min(look, most, inside)
            octets = self.read(address, look)
            end = octets.find(0)
            if end >= 0:
                return octets[:end]
            if look == most:
                raise InvalidStringError(address, most, f"no terminating zero within {limit} bytes")
            if look == inside:
                raise OutOfBoundsError(address, inside + 1, address + inside)
            look *= 8

    # Structures

    def read_struct(self, layout: str, address: SupportsIndex) -> tuple[Any, ...]:
        """The values of a C-like structure, or of an array of numbers, in one go.

        Args:
          layout: a format of Python's struct module without byte order (or "<"). Padding must be spelled
            out ("x"): "IBxxxQ" is `{uint32_t; uint8_t; uint64_t at offset 8}`.
          address: its first byte.
        """
        codec = little_endian(layout)
        return codec.unpack_from(*self._reach(address, codec.size))

    def write_struct(self, layout: str, address: SupportsIndex, *values: Any) -> None:
        """Write a C-like structure in one go; `layout` as for `read_struct`; padding is zeroed."""
        self._store(address, little_endian(layout), *values)

    # Numbers

    def read_u8(self, address: SupportsIndex) -> int:
        """The unsigned 8-bit integer at `address`."""
        value: int = _U8.unpack_from(*self._reach(address, 1))[0]
        return value

    def read_i8(self, address: SupportsIndex) -> int:
        """The signed 8-bit integer at `address`."""
        value: int = _I8.unpack_from(*self._reach(address, 1))[0]
        return value

    def read_u16(self, address: SupportsIndex) -> int:
        """The unsigned 16-bit integer at `address`."""
        value: int = _U16.unpack_from(*self._reach(address, 2))[0]
        return value

    def read_i16(self, address: SupportsIndex) -> int:
        """The signed 16-bit integer at `address`."""
        value: int = _I16.unpack_from(*self._reach(address, 2))[0]
        return value

    def read_u32(self, address: SupportsIndex) -> int:
        """The unsigned 32-bit integer at `address`: pointers, sizes, table indices."""
        value: int = _U32.unpack_from(*self._reach(address, 4))[0]
        return value

    def read_i32(self, address: SupportsIndex) -> int:
        """The signed 32-bit integer at `address`."""
        value: int = _I32.unpack_from(*self._reach(address, 4))[0]
        return value

    def read_u64(self, address: SupportsIndex) -> int:
        """The unsigned 64-bit integer at `address`."""
        value: int = _U64.unpack_from(*self._reach(address, 8))[0]
        return value

    def read_i64(self, address: SupportsIndex) -> int:
        """The signed 64-bit integer at `address`."""
        value: int = _I64.unpack_from(*self._reach(address, 8))[0]
        return value

    def read_f32(self, address: SupportsIndex) -> float:
        """The 32-bit float at `address`; a signalling NaN comes out quiet, so copy bits with `read_u32`."""
        value: float = _F32.unpack_from(*self._reach(address, 4))[0]
        return value

    def read_f64(self, address: SupportsIndex) -> float:
        """The 64-bit float at `address`."""
        value: float = _F64.unpack_from(*self._reach(address, 8))[0]
        return value

    def write_u8(self, address: SupportsIndex, value: int) -> None:
        """Write an unsigned 8-bit integer, 0 to 255."""
        self._store(address, _U8, value)

    def write_i8(self, address: SupportsIndex, value: int) -> None:
        """Write a signed 8-bit integer, -128 to 127."""
        self._store(address, _I8, value)

    def write_u16(self, address: SupportsIndex, value: int) -> None:
        """Write an unsigned 16-bit integer."""
        self._store(address, _U16, value)

    def write_i16(self, address: SupportsIndex, value: int) -> None:
        """Write a signed 16-bit integer."""
        self._store(address, _I16, value)

    def write_u32(self, address: SupportsIndex, value: int) -> None:
        """Write an unsigned 32-bit integer."""
        self._store(address, _U32, value)

    def write_i32(self, address: SupportsIndex, value: int) -> None:
        """Write a signed 32-bit integer."""
        self._store(address, _I32, value)

    def write_u64(self, address: SupportsIndex, value: int) -> None:
        """Write an unsigned 64-bit integer."""
        self._store(address, _U64, value)

    def write_i64(self, address: SupportsIndex, value: int) -> None:
        """Write a signed 64-bit integer."""
        self._store(address, _I64, value)

    def write_f32(self, address: SupportsIndex, value: float) -> None:
        """Write a float rounded to 32 bits; a finite one too large for them is refused."""
        self._store(address, _F32, value)

    def write_f64(self, address: SupportsIndex, value: float) -> None:
        """Write a 64-bit float."""
        self._store(address, _F64, value)

    # The window

    def _reach(self, address: SupportsIndex, length: int) -> tuple[memoryview, int]:
        """A view from byte 0 that covers the access, and the address as a number; the one place where bounds are checked."""
        try:
            start = index(address)
        except TypeError:
            start = integer("address", address)  # says what it is
        if not self._stable and self._source.data_address() != self._address:
            self._renew()
        size, view = self._window
        if start < 0 or length < 0 or start + length > size:
            size, view = self._renew()
            if start < 0 or length < 0 or start + length > size:
                raise OutOfBoundsError(start, length, size)
        if not _HAS_GIL:
            view = _memoryview_from_address(self._address, size, _WRITABLE) if size else view
        return view, start

    def _renew(self) -> tuple[int, memoryview]:
        """Make the window as large as the memory is now, and where it is now.

        Two threads that do this at once may leave the smaller window behind: then somebody makes it again.
        """
        if self._closed:
            raise MemoryClosedError
        address = self._source.data_address()
        size = self._source.data_size()
        window = self._window
        if address != self._address or size != window[0]:
            view = _memoryview_from_address(address, size, _WRITABLE) if size else memoryview(b"")
            window = self._window = (size, view)
            self._address = address
        return window

    def _store(self, address: SupportsIndex, codec: struct.Struct, *values: Any) -> None:
        # Packed apart from the memory: packing in place would leave half a value behind when it fails.
        try:
            data = codec.pack(*values)
        except (struct.error, OverflowError) as error:
            raise InvalidRequestError(
                "value", values[0] if len(values) == 1 else values, str(error)
            ) from error
        length = len(data)
        view, start = self._reach(address, length)
        view[start : start + length] = data


def _decode(octets: bytes, address: int, errors: str) -> str:
    if not isinstance(errors, str):
        raise InvalidRequestError("errors", errors, "be a text, such as 'replace'")
    try:
        return octets.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 at byte {error.start}: {error.reason}"
        raise InvalidStringError(address, len(octets), reason) from error
