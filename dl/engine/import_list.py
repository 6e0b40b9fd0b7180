"""Imports of a module, found by their positions: functions by their table indices, equal in every store; the rest one by one.

An engine finds an import by its name in some 0.2 µs, and enters an export by its name in 0.3. A function of a library has a
table index already, so that a store can take hundreds of functions from its table at once.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import cached_property
from operator import itemgetter
from typing import TYPE_CHECKING, Protocol

from dl.records import dataclass

if TYPE_CHECKING:
    from dl.engine.protocol import CompiledModule, EngineInstance

CHUNK = 16
"""Functions that a table's reader returns at a time; see `ListingStore.read_table_by`."""

FEW = 8
"""So many functions of one module are taken from the table one by one, which needs no reader to be compiled."""


class TableFunctions:
    """Imports that are functions of one module's run of table indices. Depends on the two modules' contents alone.

    Args:
        positions: which imports of the importing module.
        offsets: of each, its index in the table from the beginning of the run on.

    Attributes:
        positions: as given.
        offsets: as given.
        starts: where the chunks begin that have all of them, from the beginning of the run on.
        pick: of the chunks one behind the other, the functions in the order of `positions`.
        rows: positions in a row: the first, the one behind the last, and where they begin in what `pick` returns.
    """

    def __init__(self, positions: Sequence[int], offsets: Sequence[int]) -> None:
        self.positions = tuple(positions)
        self.offsets = tuple(offsets)
        chunks = sorted({offset // CHUNK for offset in offsets})
        self.starts = tuple(chunk * CHUNK for chunk in chunks)
        begins = {chunk: number * CHUNK for number, chunk in enumerate(chunks)}
        places = [begins[offset // CHUNK] + offset % CHUNK for offset in offsets]
        self.pick: Callable[[Sequence[int]], Sequence[int]] = (
            itemgetter(*places) if len(places) > 1 else lambda functions: (functions[places[0]],)
        )
        rows: list[tuple[int, int, int]] = []
        for number, position in enumerate(self.positions):
            if rows and rows[-1][1] == position:
                rows[-1] = rows[-1][0], position + 1, rows[-1][2]
            else:
                rows.append((position, position + 1, number))
        self.rows = tuple(rows)

    @cached_property
    def words(self) -> tuple[array[int], array[int]]:
        """Positions and offsets as numbers of 32 bits, one behind the other."""
        return array("I", self.positions), array("I", self.offsets)


@dataclass(frozen=True, eq=False)
class ImportList:
    """Where a store finds each import of a module, by its position.

    Attributes:
        count: how many imports there are; each is in exactly one of the others.
        placed: functions of the table, each group with the table index from which its offsets count.
        named: what was defined or offered in the store: position, namespace and name.
        numbers: globals of type i32 that are made for this instance: position, whether the guest may set it, and its value.
        generated: exports of the instance that was generated for the module: position and name.
    """

    count: int
    placed: tuple[tuple[TableFunctions, int], ...] = ()
    named: tuple[tuple[int, str, str], ...] = ()
    numbers: tuple[tuple[int, bool, int], ...] = ()
    generated: tuple[tuple[int, str], ...] = ()

    @property
    def needs_reader(self) -> bool:
        """Whether its functions are taken from the table in chunks."""
        return any(len(functions.positions) > FEW for functions, _ in self.placed)


class ListingStore(Protocol):
    """A store that takes lists of imports; a part of `dl.engine.protocol.Store`, with the capability `import_lists`."""

    def read_table_by(self, instance: EngineInstance, table: str, reader: str | None) -> None:
        """Set the table that functions of lists are taken from, and what reads it.

        Args:
            instance: exports both.
            table: the table.
            reader: a function from an index to `CHUNK` elements, those at the index and behind it; None as long as no list
                needs one.

        Raises:
            KeyError: the instance exports no such table or function.
            EngineError: the engine has no import lists.
        """

    def lacks_reader(self, imports: ImportList) -> bool:
        """Return whether the store needs a reader for a list and has none; some engines need none."""

    def instantiate_listed(
        self, module: CompiledModule, name: str, imports: ImportList, generated: EngineInstance | None = None
    ) -> EngineInstance:
        """Instantiate a module with imports from a list, and run its start function.

        Args:
            module: the module's code.
            name: as of `Store.instantiate`.
            imports: where each import is found.
            generated: the instance whose exports the list names, if it names any.

        Raises:
            InstantiationError: an import is missing or of another type, or a limit was reached.
            TrapError: the start function or an active segment trapped.
        """
