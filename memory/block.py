"""A block of linear memory that was handed out."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Block"]


@dataclass(frozen=True, eq=False)
class Block:
    """A run of linear memory.

    Attributes:
        address: its first byte; a multiple of the alignment that was asked for.
        size: bytes.
        owner: what its allocator needs to take it back.
    """

    address: int
    size: int
    owner: object
