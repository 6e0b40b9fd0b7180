"""The types of WebAssembly's imports and exports, as values that compare and hash.

Core specification 3.0, section 2.3 (types). Value types are text, as in the text format: `"i32"`, `"i64"`,
`"f32"`, `"f64"`, `"v128"`, `"funcref"`, `"externref"`, `"exnref"`; the other references are spelled out, for
example `"(ref null 5)"` or `"(ref func)"`. A type index in such text is the index in its own module, so the
texts of two modules compare only for types without one.
"""

from __future__ import annotations

from typing import TypeAlias

from dl.records import dataclass

ValType: TypeAlias = str

PAGE_BYTES = 65536
"""Bytes in one page of linear memory (the only page size this linker handles)."""


NUMBER_TYPES = frozenset(("i32", "i64", "f32", "f64", "v128"))
"""The value types that are no references."""


@dataclass(frozen=True, slots=True)
class FuncType:
    """A function's signature."""

    params: tuple[ValType, ...]
    results: tuple[ValType, ...]

    def references(self) -> list[ValType]:
        """Return those of its value types that are references."""
        return [kind for kind in (*self.params, *self.results) if kind not in NUMBER_TYPES]

    def __str__(self) -> str:
        results = self.results[0] if len(self.results) == 1 else f"({', '.join(self.results)})"
        return f"({', '.join(self.params)}) -> {results}"


@dataclass(frozen=True, slots=True)
class Limits:
    """The size of a memory (pages) or of a table (elements).

    Attributes:
        minimum: size to begin with, and the least an import accepts.
        maximum: largest size it may grow to; None for no limit but the engine's.
        shared: whether threads share it (memories only).
        is64: whether addresses or indices are 64 bits wide.
    """

    minimum: int
    maximum: int | None
    shared: bool
    is64: bool

    def __str__(self) -> str:
        text = str(self.minimum) if self.maximum is None else f"{self.minimum} {self.maximum}"
        return f"{'i64 ' if self.is64 else ''}{text}{' shared' if self.shared else ''}"


@dataclass(frozen=True, slots=True)
class TableType:
    """A table: the reference type of its elements, and its size in elements."""

    element: ValType
    limits: Limits

    def __str__(self) -> str:
        return f"table {self.limits} {self.element}"


@dataclass(frozen=True, slots=True)
class MemoryType:
    """A linear memory: its size in pages of 64 KiB."""

    limits: Limits

    def __str__(self) -> str:
        return f"memory {self.limits}"


@dataclass(frozen=True, slots=True)
class GlobalType:
    """A global variable."""

    value: ValType
    mutable: bool

    def __str__(self) -> str:
        return f"global (mut {self.value})" if self.mutable else f"global {self.value}"


@dataclass(frozen=True, slots=True)
class TagType:
    """An exception tag: what an exception of this kind carries, as the parameters of a function type."""

    type: FuncType

    def __str__(self) -> str:
        return f"tag ({', '.join(self.type.params)})"


ExternType: TypeAlias = FuncType | TableType | MemoryType | GlobalType | TagType
