"""What one group has placed at the table indices of closed libraries."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from dl.engine.protocol import CompiledModule, Store
from dl.errors import InstantiationError
from dl.glue.trap_functions import (
    MOST_LIBRARIES,
    NUMBER_FROM,
    NUMBER_FROM_TYPE,
    PLACE_RUN,
    PLACE_RUN_TYPE,
    TrapFunctions,
)

log = logging.getLogger("dl.link")

CLOSED_LIBRARY = "closed library"
"""What stack traces call the instances."""


class ClosedFunctions:
    """The group's instances of the modules of `dl.glue.trap_functions`, by their number. Belongs to the group's thread."""

    __slots__ = ("_instances", "_store")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._instances: dict[int, Callable[..., object]] = {}

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

    def _instantiate(self, number: int, code: CompiledModule) -> Callable[..., object]:
        instance = self._store.instantiate(code, CLOSED_LIBRARY)
        instance.function(NUMBER_FROM, NUMBER_FROM_TYPE)(number * MOST_LIBRARIES)
        place = self._instances[number] = instance.function(PLACE_RUN, PLACE_RUN_TYPE)
        return place
