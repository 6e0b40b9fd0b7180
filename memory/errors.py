"""Errors of the memory package; a leaf, so that every other file of it may import this one.

    MemoryLayoutError                    root: catch this to catch all of them
    ├── LayoutExhaustedError             no room below the limit; nothing was reserved
    ├── InvalidRequestError (ValueError) an argument no memory could serve: negative, not of its kind
    ├── InvalidRegionError  (ValueError) freed twice, or never handed out by this allocator
    ├── OutOfBoundsError    (IndexError) an access that reaches past the memory; nothing was read or written
    ├── InvalidStringError  (ValueError) the bytes are there but are not the string that was asked for
    ├── MemoryMovesError    (BufferError) a view of a memory that may move when it grows
    └── MemoryClosedError                the memory behind a `LinearMemory` was given up by its owner

Every class keeps its data in `args` and in fields of the same order; the text is made from them.
"""

from __future__ import annotations


class MemoryLayoutError(Exception):
    """Root of all errors of the memory package."""


class LayoutExhaustedError(MemoryLayoutError):
    """A run of memory or of table elements does not fit below its limit; nothing was reserved.

    Attributes:
      requested_bytes: bytes asked for; 0 when it was the table that has no room.
      align_log2: the alignment asked for, as an exponent of two, exactly as the requester gave it.
      limit_pages: Wasm pages that the memory may have at most.
      reason: what stands in the way, in words.
      requested_elements: table elements asked for; 0 when it was the memory that has no room.
    """

    def __init__(
        self,
        requested_bytes: int,
        align_log2: int,
        limit_pages: int,
        reason: str,
        requested_elements: int = 0,
    ) -> None:
        super().__init__(requested_bytes, align_log2, limit_pages, reason, requested_elements)
        self.requested_bytes = requested_bytes
        self.align_log2 = align_log2
        self.limit_pages = limit_pages
        self.reason = reason
        self.requested_elements = requested_elements

    @property
    def alignment(self) -> int:
        """The alignment in bytes (table elements for a table); 2**32 stands for every larger one.

        Capped because the exponent may come from a hostile file, where 2**align_log2 can be half a
        gigabyte of digits.
        """
        return 1 << min(self.align_log2, 32)

    def __str__(self) -> str:
        what = (
            f"{self.requested_elements} table elements"
            if self.requested_elements
            else f"{self.requested_bytes} bytes"
        )
        return f"cannot place {what} aligned to 2**{self.align_log2}: {self.reason}; nothing was reserved"


class InvalidRequestError(MemoryLayoutError, ValueError):
    """An argument that no memory could serve; nothing was done.

    Attributes:
      parameter: the argument's name.
      value: what it was.
      requirement: what it must be, as the end of the sentence "... must ...".
    """

    def __init__(self, parameter: str, value: object, requirement: str) -> None:
        super().__init__(parameter, value, requirement)
        self.parameter = parameter
        self.value = value
        self.requirement = requirement

    def __str__(self) -> str:
        return f"{self.parameter} must {self.requirement} (got {self.value!r})"


class InvalidRegionError(MemoryLayoutError, ValueError):
    """A region was freed that is not in use here: freed before, or never handed out by this allocator.

    Attributes:
      address: first byte of the region, in linear memory.
      size: its bytes.
    """

    def __init__(self, address: int, size: int) -> None:
        super().__init__(address, size)
        self.address = address
        self.size = size

    def __str__(self) -> str:
        where = f"region of {self.size} bytes at {self.address:#x}"
        return f"{where} is not in use: freed twice, or not from this allocator"


class OutOfBoundsError(MemoryLayoutError, IndexError):
    """An access reaches outside linear memory; nothing was read or written.

    Attributes:
      address: first byte of the access, as given.
      length: bytes of the access, as given.
      size: bytes that the memory had when the access was checked.
    """

    def __init__(self, address: int, length: int, size: int) -> None:
        super().__init__(address, length, size)
        self.address = address
        self.length = length
        self.size = size

    def __str__(self) -> str:
        text = (
            f"access of {self.length} bytes at {self.address:#x} is outside the memory of {self.size} bytes"
        )
        if -(1 << 31) <= self.address < 0:
            text += "; an address that a guest function returned is a signed number: use memory.address(it)"
        return text


class InvalidStringError(MemoryLayoutError, ValueError):
    """The bytes are inside the memory but are not the string that was asked for.

    Attributes:
      address: first byte of the string, in linear memory.
      length: bytes that were looked at.
      reason: what is wrong with them, in words.
    """

    def __init__(self, address: int, length: int, reason: str) -> None:
        super().__init__(address, length, reason)
        self.address = address
        self.length = length
        self.reason = reason

    def __str__(self) -> str:
        return f"no string in the {self.length} bytes at {self.address:#x}: {self.reason}"


class MemoryClosedError(MemoryLayoutError):
    """The owner of the memory has given it up; there is nothing left to access."""

    def __str__(self) -> str:
        return "the linear memory is closed"


class MemoryMovesError(MemoryLayoutError, BufferError):
    """A view was asked for of a memory that may move when it grows, which would leave the view behind."""

    def __str__(self) -> str:
        return "this memory may move when it grows, so there can be no view of it; use read and write"
