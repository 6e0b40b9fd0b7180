"""What the imports of a module mean, where one module defines many of them: all of those at once.

Which functions of a library another one imports, and whether their types agree, depends on the two contents alone, and is
computed once for each pair. When the two are linked again, what is left is where the one that defines them lies.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import overload

from dl.dlfcn import ModuleHandle
from dl.engine.import_list import TableFunctions
from dl.forks import in_forked_child
from dl.glue.names import module_namespace
from dl.glue.resolution import Binding, FromNamespace
from dl.modules.symbols import INTERNAL_EXPORTS, element_positions, functions_without_index
from dl.recent import Recent
from dl.records import dataclass
from dl.wasm.encode import is_encodable
from dl.wasm.module import WasmModule
from dl.wasm.records import Import
from dl.wasm.types import FuncType
from threads import found_in

_ENV = "env"


@dataclass(frozen=True)
class PlainFunctions:
    """The functions that a module imports by their names alone.

    Attributes:
        positions: which imports they are.
        names: their names, in that order.
        set_of_names: the same.
        others: the positions of all other imports.
    """

    positions: tuple[int, ...]
    names: tuple[str, ...]
    set_of_names: frozenset[str]
    others: tuple[int, ...]


def plain_functions(module: WasmModule) -> PlainFunctions:
    """Return the functions that a module imports from `env`."""
    known: PlainFunctions | None = found_in(module.derived, "plain functions")
    if known is None:
        plain: list[int] = []
        others: list[int] = []
        for position, entry in enumerate(module.imports):
            named = entry.module == _ENV and isinstance(entry.type, FuncType) and is_encodable(entry.type)
            (plain if named else others).append(position)
        names = tuple(module.imports[position].name for position in plain)
        known = module.derived["plain functions"] = PlainFunctions(
            tuple(plain), names, frozenset(names), tuple(others)
        )
    return known


@dataclass(frozen=True)
class Match:
    """Functions of one module that another one imports, by where they are in the table.

    Attributes:
        positions: which imports they are.
        own: those that the module's own element segments place, from its table base on; from 0 if `fixed`.
        placed: those that the linker places, from the first of them on.
        fixed: whether the module's segments lie where they are, whatever its table base.
    """

    positions: tuple[int, ...]
    own: TableFunctions | None
    placed: TableFunctions | None
    fixed: bool


_MATCHES: Recent[Match | tuple[()]] = Recent(1 << 20)
in_forked_child(_MATCHES.forked)
"""By the digests of both modules and the numbers of the functions; weighed by these. Empty where none matches."""


def match(
    importer: WasmModule, provider: WasmModule, digests: tuple[bytes, bytes], numbers: tuple[int, ...] | None
) -> Match | None:
    """Return which functions that a module imports are exports of another one, in name and type; None for none.

    Args:
        importer: imports them.
        provider: exports them.
        digests: of the two.
        numbers: which of the importer's plain functions; None for all.
    """
    key = (*digests, numbers)
    known = _MATCHES.find(key)
    if known is None:
        plain = plain_functions(importer)
        chosen = range(len(plain.names)) if numbers is None else numbers
        known = _matched(importer, provider, [plain.positions[number] for number in chosen]) or ()
        _MATCHES.keep(key, known, 8 + 4 * len(chosen))
    return known or None


def _matched(importer: WasmModule, provider: WasmModule, positions: Sequence[int]) -> Match | None:
    if provider.tables and not provider.import_counts["table"] and provider.dylink is not None:
        return None  # a library with a table of its own: its segments are not about the program's
    first_own = provider.import_counts["func"]
    numbered = functions_without_index(provider)
    at_0, at_1 = element_positions(provider, 0), element_positions(provider, 1)
    own: dict[int, int] = {}
    placed: dict[int, int] = {}
    moves: set[int] = set()
    for position in positions:
        entry = importer.imports[position]
        export, wanted = provider.exports.get(entry.name), entry.type
        if export is None or entry.name in INTERNAL_EXPORTS or not isinstance(wanted, FuncType):
            continue
        have, index = export.type, export.index
        if not isinstance(have, FuncType) or index < first_own:
            continue
        if (have.params, have.results) != (wanted.params, wanted.results):
            continue  # or of types that are spelled alike and differ: looked at one by one
        number = numbered.get(index)
        if number is not None:
            placed[position] = number
        else:
            own[position] = at_0[index]
            moves.add(at_1[index] - at_0[index])
    if len(moves) > 1:
        own = {}
    if not own and not placed:
        return None
    return Match((*own, *placed), _functions(own), _functions(placed), moves == {0})


def _functions(offsets: Mapping[int, int]) -> TableFunctions | None:
    return TableFunctions(tuple(offsets), tuple(offsets.values())) if offsets else None


@dataclass(frozen=True)
class FunctionRun:
    """Imports that are functions of one module, which is instantiated before.

    Attributes:
        handle: that module.
        seat: by which generated code names it.
        match: which imports they are, and where the functions are.
    """

    handle: ModuleHandle
    seat: int
    match: Match


class Bindings(Sequence[Binding]):
    """What each import of a module is bound to, in import order; bindings of runs are made when somebody looks at them.

    Args:
        imports: the imports.
        runs: those that were bound at once.
        apart: the bindings of all others, by position.

    Attributes:
        runs: as given.
        apart: as given.
    """

    def __init__(
        self, imports: Sequence[Import], runs: Sequence[FunctionRun], apart: Mapping[int, Binding]
    ) -> None:
        self._imports = imports
        self.runs = tuple(runs)
        self.apart = apart
        self._all: tuple[Binding, ...] | None = None

    @property
    def providers(self) -> frozenset[ModuleHandle]:
        """Who provides what the imports mean."""
        return frozenset(
            [*(run.handle for run in self.runs), *(binding.provider for binding in self.apart.values())]
        )

    def __len__(self) -> int:
        return len(self._imports)

    @overload
    def __getitem__(self, position: int) -> Binding: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[Binding]: ...
    def __getitem__(self, position: int | slice) -> Binding | Sequence[Binding]:
        return self._made()[position]

    def __iter__(self) -> Iterator[Binding]:
        return iter(self._made())

    def _made(self) -> tuple[Binding, ...]:
        if self._all is None:
            made = dict(self.apart)
            for run in self.runs:
                namespace = module_namespace(run.seat)
                for position in run.match.positions:
                    made[position] = FromNamespace(namespace, self._imports[position].name, run.handle)
            self._all = tuple(made[position] for position in range(len(self._imports)))
        return self._all


def apart(bindings: Sequence[Binding]) -> Collection[Binding]:
    """Return those of some bindings that are not plainly functions of a module."""
    return bindings.apart.values() if isinstance(bindings, Bindings) else bindings


def numbered_apart(bindings: Sequence[Binding]) -> Collection[tuple[int, Binding]]:
    """Return the same with their positions."""
    return bindings.apart.items() if isinstance(bindings, Bindings) else list(enumerate(bindings))
