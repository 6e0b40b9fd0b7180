"""What one group has placed at the table indices of closed libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from dl.errors import InstantiationError
from dl.glue.placement import in_a_row
from dl.glue.trap_functions import (
    MOST_LIBRARIES,
    NUMBER_FROM,
    NUMBER_FROM_TYPE,
    PLACE_RUN,
    PLACE_RUN_TYPE,
    TrapFunctions,
)
from dl.logs import logger

if TYPE_CHECKING:
    from dl.engine.protocol import CompiledModule, Store

log = logger("dl.link")

CLOSED_LIBRARY = "closed library"
"""What stack traces call the instances."""


class ClosedFunctions:
    """The group's instances of the modules of `dl.glue.trap_functions`, by their number. Belongs to the group's thread.

    Attributes:
        version: which version of `dl.program.operations.HoldIndices` the group has made; 0 for none.
    """

    __slots__ = ("_instances", "_standing", "_store", "version")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._instances: dict[int, Callable[..., object]] = {}
        self._standing: dict[int, TrapFunctions] = {}  # by table index: whose function is there
        self.version = 0

    def taken(self, indices: Iterable[int]) -> list[tuple[int, int]]:
        """Return first index and number of the elements, of some, that hold functions of closed libraries; forget them."""
        return self._forget(self._standing.keys() & indices) if self._standing else []

    def difference(
        self, closed: Iterable[TrapFunctions]
    ) -> tuple[list[TrapFunctions], list[tuple[int, int]]]:
        """Return what is to be placed so that the functions of some closed libraries stand, and of no others.

        What was placed and is to stand still stands: nothing else comes to table indices that rest, and who closes libraries
        makes such functions anew each time, also where former ones stood.

        Returns:
            Those that do not stand; and first index and number of the elements that hold others, which are forgotten.
        """
        wanted = {functions.number: functions for functions in closed}
        others = [
            i for i, functions in self._standing.items() if wanted.get(functions.number) is not functions
        ]
        cleared = self._forget(others)
        standing = {functions.number for functions in self._standing.values()}
        return [functions for number, functions in wanted.items() if number not in standing], cleared

    def _forget(self, indices: Iterable[int]) -> list[tuple[int, int]]:
        forgotten = sorted(indices)
        for index in forgotten:
            del self._standing[index]
        return in_a_row(forgotten)

    def place(self, closed: Iterable[TrapFunctions]) -> None:
        """Place the functions of closed libraries; where the engine has no room for them stays null, which traps as well."""
        for functions in closed:
            number = functions.number // MOST_LIBRARIES
            try:
                place = self._instances.get(number) or self._instantiate(number, functions.code)
            except InstantiationError as error:
                log.warning("table indices of a closed library stay null: %s", error)
                continue
            for start, function, count in functions.runs:
                place(start, function, count)
            self._standing.update(dict.fromkeys(functions.indices, functions))

    def _instantiate(self, number: int, code: CompiledModule) -> Callable[..., object]:
        instance = self._store.instantiate(code, CLOSED_LIBRARY)
        instance.function(NUMBER_FROM, NUMBER_FROM_TYPE)(number * MOST_LIBRARIES)
        place = self._instances[number] = instance.function(PLACE_RUN, PLACE_RUN_TYPE)
        return place
