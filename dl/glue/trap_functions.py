"""Functions that stand at the table indices of closed libraries: a call of one ends the guest, and says which library it was.

The code is one module for each set of signatures: it has several functions of each, and each of these passes the number of its
library to a function of the host, which raises. An instance serves as many libraries at a time as it has functions of each
signature, and the next ones when their table indices are used again. So a close costs a few calls in each group, and now and
then an instance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dl.glue.names import ADDRESS_TO_NOTHING, ANY_TABLE, HOST_NAMESPACE, TableAndStack
from dl.records import dataclass
from dl.wasm.encode import (
    ModuleBuilder,
    call,
    global_get,
    global_set,
    i32_const,
    is_encodable,
    local_get,
    table_get,
    table_init,
)
from dl.wasm.opcodes import I32_ADD, TABLE_FILL, UNREACHABLE
from dl.wasm.types import FuncType, GlobalType

if TYPE_CHECKING:
    from dl.engine.protocol import CompiledModule

CLOSED_CALL = "closed_call"
CLOSED_CALL_TYPE = ADDRESS_TO_NOTHING
"""The function of the host: takes the number of the library that was called, and raises."""

MOST_LIBRARIES = 16
"""How many libraries an instance serves at most."""

_MOST_FUNCTIONS = 32
"""How many functions a module has, unless it has more signatures: each takes a seventh of a millisecond to compile."""

NUMBER_FROM = "number_from"
NUMBER_FROM_TYPE = ADDRESS_TO_NOTHING
"""Sets the number of the first library that the instance serves; the others follow."""

PLACE_RUN = "place_run"
PLACE_RUN_TYPE = FuncType(("i32", "i32", "i32"), ())
"""Puts one of the instance's functions into a run of table indices: first index, which function, how many."""


@dataclass(frozen=True)
class TrapFunctions:
    """The functions of one library.

    Attributes:
        code: the module of its signatures.
        number: the library's; `MOST_LIBRARIES` consecutive numbers belong to one instance, from a multiple of it on.
        runs: first table index, which of the instance's functions, and number of elements.
    """

    code: CompiledModule
    number: int
    runs: tuple[tuple[int, int, int], ...]

    @property
    def indices(self) -> Iterator[int]:
        """The table indices."""
        return (index for start, _, count in self.runs for index in range(start, start + count))

    @property
    def end(self) -> int:
        """The table index after the last."""
        return max((start + count for start, _, count in self.runs), default=0)


def can_trap(kind: FuncType) -> bool:
    """Whether there can be a function of a signature."""
    return is_encodable(kind)


def libraries_served(signatures: Sequence[FuncType]) -> int:
    """Return how many libraries of these signatures an instance serves: how many functions of each it has."""
    return min(max(_MOST_FUNCTIONS // max(len(signatures), 1), 1), MOST_LIBRARIES)


def trap_functions_module(signatures: Sequence[FuncType], places: TableAndStack) -> bytes:
    """Generate the functions of some signatures: first all of the first signature, one for each library."""
    build = ModuleBuilder()
    closed_call = build.import_(HOST_NAMESPACE, CLOSED_CALL, CLOSED_CALL_TYPE)
    build.import_(places.table.namespace, places.table.name, ANY_TABLE)
    first = build.global_(GlobalType("i32", mutable=True), 0)
    functions = [
        build.function(kind, global_get(first) + i32_const(n) + I32_ADD + call(closed_call) + UNREACHABLE)
        for kind in signatures
        for n in range(libraries_served(signatures))
    ]
    segment = build.passive_elements(functions)
    number_from = build.function(NUMBER_FROM_TYPE, local_get(0) + global_set(first))
    start, position, count = (local_get(i) for i in range(3))
    place_run = build.function(
        PLACE_RUN_TYPE,
        (start + position + i32_const(1) + table_init(segment))
        + (start + start + table_get() + count + TABLE_FILL + b"\0"),
    )
    build.export(NUMBER_FROM, "func", number_from)
    build.export(PLACE_RUN, "func", place_run)
    return build.build()
