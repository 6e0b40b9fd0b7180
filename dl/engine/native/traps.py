"""Traps in words and numbers that are the same for all engines, and the names in them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Generic, TypeAlias, TypeVar

from dl.errors import UncaughtExceptionError
from dl.errors.frames import Frame, SourcePlace
from dl.errors.running import DescribeException
from dl.records import dataclass, field

Tag = TypeVar("Tag")
"""An engine's native exception tag."""

TRAPS = {
    0: "stack overflow",
    1: "out of bounds memory access",
    2: "unaligned atomic access",
    3: "undefined table element: out of bounds",
    4: "uninitialized table element",
    5: "indirect call type mismatch",
    6: "integer overflow",
    7: "integer divide by zero",
    8: "invalid conversion to integer",
    9: "unreachable",
    10: "interrupted",
    11: "out of fuel",
    12: "atomic wait on a memory that is not shared",
    13: "null reference",
    14: "out of bounds array access",
    15: "allocation too large",
    16: "cast failure",
    19: "unhandled tag",
    20: "continuation already consumed",
}
"""What a module can trap with, in words that do not change, by ``wasmtime_trap_code_enum``: other engines' are translated."""

UNCAUGHT = 49
"""Of an exception that the guest did not catch: WASMTIME_TRAP_CODE_UNCAUGHT_EXCEPTION."""


FindLine: TypeAlias = Callable[[int, int], SourcePlace | None]
"""Returns the source line of a function's index and of an instruction's place in its body."""


@dataclass(slots=True)
class Names(Generic[Tag]):
    """What the linker calls the contents of a store.

    Attributes:
        modules: names of modules, by the names that their code carries.
        lines: what finds source lines in them, likewise.
        tags: exception tags with their names; the first name of a tag counts.
        describe: returns type and text of an exception that no guest code caught, from its tag's name and its first value.
    """

    modules: dict[str, str] = field(default_factory=dict)
    lines: dict[str, FindLine] = field(default_factory=dict)
    tags: list[tuple[str, Tag]] = field(default_factory=list)
    describe: DescribeException | None = None

    def uncaught(
        self, tag: str | None, value: int | None, frames: Sequence[Frame | str]
    ) -> UncaughtExceptionError:
        """Return the error for an exception that no guest code caught; guest code may run to describe it."""
        described = self.describe(tag, value) if self.describe is not None else None
        return UncaughtExceptionError(tag, value, UNCAUGHT, frames, *(described or ()))


@lru_cache(maxsize=4096)
def frame_name(name: str) -> str:
    """Return how a module's name appears in a stack trace: without directories, and printable."""
    return (os.path.basename(name) or name).encode(errors="replace").decode()
