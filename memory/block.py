"""A block of linear memory that was handed out."""

from __future__ import annotations

__all__ = ["Block"]


class Block:
    """A run of linear memory.

    Attributes:
        address: its first byte; a multiple of the alignment that was asked for.
        size: bytes.
        owner: what its allocator needs to take it back.
    """

    __slots__ = ("address", "owner", "size")

    def __init__(self, address: int, size: int, owner: object) -> None:
        self.address = address
        self.size = size
        self.owner = owner

    def __repr__(self) -> str:
        return f"Block(address={self.address:#x}, size={self.size})"
