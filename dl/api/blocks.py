"""Blocks of the guest's memory that Python holds, and arguments that are lent to the guest for one call."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

from dl.checks import octets, taken, whole
from dl.dlfcn import RTLD_DEFAULT
from dl.errors import LinkerUsageError, ResourceLimitError
from memory import ADDRESS_SPACE_BYTES, Block, LinearMemory, Uncopied, unreadable

if TYPE_CHECKING:
    from typing_extensions import Self

    from dl.api.linker_base import LinkerBase
    from dl.linker import Linker

BlockSource = Literal["linker", "program"]
"""Where a block comes from: the linker's own memory, or the `malloc` that the program's C code calls."""

_MOST_ALIGN = 1 << 16
_CTYPES = ctypes.c_int.__mro__[-2]
"""The root of the types of ctypes, which has no name of its own there."""
_MOST_OF_PROGRAM = (1 << 31) - (1 << 17)
"""The most bytes that `malloc` is asked for.

It asks `sbrk` for them, with its own overhead and in whole pages, as a signed number; that of wasi-libc aborts if that is
negative. `malloc` holds its lock then, so that the next call would never return.
"""


class GuestBlock(Uncopied):
    """A block of the guest's memory; made by `Linker.allocate`, given back by `close` or at the end of a `with`.

    Where the guest takes a pointer, the block itself may be given.

    Attributes:
        size: bytes.
    """

    def __init__(self, linker: Linker, address: int, size: int, owner: Block | None) -> None:
        self._linker = linker
        self._address = address
        self._owner = owner
        self.size = size

    @property
    def address(self) -> int:
        """Its first byte.

        Raises:
            LinkerUsageError: it was given back.
        """
        if not self._address:
            raise LinkerUsageError(f"{self!r} was given back")
        return self._address

    @property
    def memory(self) -> LinearMemory:
        """The memory that it is in."""
        return self._linker.memory

    def view(self) -> memoryview:
        """A view of its bytes without a copy, as `LinearMemory.view`.

        Once the block is given back, the view shows what comes there next.
        """
        return self.memory.view(self.address, self.size)

    def read(self) -> bytes:
        """A copy of its bytes."""
        return self.memory.read(self.address, self.size)

    def write(self, data: bytes | bytearray | memoryview, offset: int = 0) -> None:
        """Copy bytes into it.

        Raises:
            LinkerUsageError: they do not fit.
        """
        length = taken(octets, data, "data").nbytes
        taken(whole, offset, "offset")
        if offset < 0 or offset + length > self.size:
            raise LinkerUsageError(f"{length} bytes at {offset} do not fit in {self!r}")
        self.memory.write(self.address + offset, data)

    def close(self) -> None:
        """Give the block back; idempotent. One of the program's `malloc` needs a thread with a group."""
        address, self._address = self._address, 0
        if not address:
            return
        if self._owner is not None:
            side = self._linker.program.side_memory
            if side is not None:
                side.free(self._owner)
        else:
            _allocator(self._linker, "free")(address)

    def __index__(self) -> int:
        return self.address

    def __len__(self) -> int:
        return self.size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        where = f"at {self._address:#x}" if self._address else "(given back)"
        return f"<GuestBlock of {self.size} bytes {where}>"


def _allocator(linker: Linker, name: str) -> Any:
    group = linker.own.view(linker.parts.groups.current())
    return group.dlsym(RTLD_DEFAULT, name)


def allocated(linker: LinkerBase, size: int, align: int, source: BlockSource, purpose: str) -> GuestBlock:
    """Reserve a block; see `Allocation.allocate`.

    Args:
        linker: the program.
        size: bytes.
        align: a power of two.
        source: where from.
        purpose: what the error says there was no room for.
    """
    if not hasattr(size, "__index__") or not 0 < size <= ADDRESS_SPACE_BYTES:
        raise LinkerUsageError(f"size: a block of {size!r} bytes cannot be allocated: 1 to 2**32 can")
    if not hasattr(align, "__index__") or align < 1 or align & (align - 1) or align > _MOST_ALIGN:
        raise LinkerUsageError(f"align: an alignment of {align!r} is no power of two up to {_MOST_ALIGN}")
    owner: Linker = linker  # type: ignore[assignment]  # the only class made of these
    if source == "program":
        if align > 16:
            raise LinkerUsageError(f"the program's malloc aligns to 16 bytes, not {align}")
        address = _allocator(owner, "malloc")(size) & 0xFFFFFFFF if size <= _MOST_OF_PROGRAM else 0
        if not address:
            raise ResourceLimitError(purpose, f"the program's malloc has no {size} bytes")
        owner.memory.fill(address, 0, size)
        return GuestBlock(owner, address, size, None)
    if source != "linker":
        raise LinkerUsageError(f'source must be "linker" or "program", not {source!r}')
    side = linker.program.side_memory
    if side is None:
        raise LinkerUsageError("the program's memory cannot be reached, so nothing can be allocated in it")
    if side.calls_guest:
        linker.parts.groups.current().synchronize()
    block = side.allocate(size, align.bit_length() - 1, purpose)
    return GuestBlock(owner, block.address, size, block)


@contextmanager
def lent_arguments(
    linker: Linker, name: str, arguments: Sequence[Any], positions: Sequence[int]
) -> Iterator[list[Any]]:
    """Put some arguments into the guest's memory for a call; what can be written is read back at its end.

    Args:
        linker: the program.
        name: the function's, for errors.
        arguments: all of them.
        positions: which to lend.
    """
    given = list(arguments)
    back: list[tuple[memoryview, int]] = []
    memory = linker.memory
    with ExitStack() as blocks:
        for position in positions:
            value = given[position]
            if isinstance(value, str):
                value = _encoded(value, name, position)
            octets = memoryview(value)
            unfit = _unfit(value, octets.format)
            if unfit:
                raise LinkerUsageError(f"{name}: argument {position} {unfit}")
            if not octets.c_contiguous:
                raise LinkerUsageError(
                    f"{name}: argument {position} is not contiguous in memory; give a copy of it"
                )
            octets = octets.cast("B") if octets.nbytes else memoryview(b"")
            zero = b"\0" if isinstance(value, bytes) else b""
            block = blocks.enter_context(
                allocated(
                    linker, len(octets) + len(zero) or 1, 16, "linker", f"argument {position} of {name}"
                )
            )
            memory.write(block.address, octets)
            if not octets.readonly:
                back.append((octets, block.address))
            given[position] = block.address
        yield given
        for octets, address in back:
            octets[:] = memory.read(address, len(octets))


_FIELD_NAMES = re.compile(r":[^:]*:")
"""What is no code in a format of a buffer (PEP 3118)."""


def _unfit(value: Any, layout: str) -> str:
    """Return why the guest can do nothing with the bytes of an object; empty if it can."""
    if isinstance(value, _CTYPES):
        wanted = unreadable(type(value))
        direct = isinstance(value, (ctypes.Structure, ctypes.Union, ctypes.Array))
        advice = (
            ""
            if direct or "pointers" not in wanted
            else "; give the structure, the array or the bytes themselves"
        )
        return wanted and f"must {wanted}{advice}"
    codes = _FIELD_NAMES.sub("", layout)
    if any(code in codes for code in "O&PX"):
        return (
            f"must have no pointers of the host: its elements are objects of Python, or pointers ({layout})"
        )
    if ">" in codes or "!" in codes:
        return f"must be little-endian, as linear memory is: its format is {layout}"
    return ""


def _encoded(text: str, name: str, position: int) -> bytes:
    if "\0" in text:
        raise LinkerUsageError(
            f"{name}: argument {position} is text with a zero character, which would end it early; give bytes"
        )
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise LinkerUsageError(f"{name}: argument {position} cannot be written as UTF-8: {error}") from error
