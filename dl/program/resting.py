"""Table indices of closed libraries that rest before they are used again, and what stands there meanwhile.

A function pointer that somebody kept must reach no other function, and its call should say what it pointed to. So the indices
of a library rest when it is closed, at most `RESTING_ELEMENTS` of all libraries together, but those of the last one always.
Those that have rested longest are used again first. Until then they hold functions that end the guest: see
`dl.glue.trap_functions`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from dl.dlfcn import ModuleHandle
from dl.glue.placement import in_a_row
from dl.glue.trap_functions import MOST_LIBRARIES, TrapFunctions, can_trap, libraries_served
from dl.modules.linked_module import LinkedModule
from dl.modules.symbols import element_runs, functions_without_index
from dl.records import dataclass, field
from dl.wasm.types import FuncType
from memory import Region
from threads import found_in

if TYPE_CHECKING:
    from dl.engine.protocol import CompiledModule

RESTING_ELEMENTS = 1024
"""Table indices of closed libraries that rest at a time before they are used again."""

_MOST_CODES = 1024
"""Sets of signatures whose code is kept at hand; they come from the guest, so their number must be bounded."""

Signatures: TypeAlias = tuple[FuncType, ...]


@dataclass(frozen=True, eq=False)
class RestingLibrary:
    """A library that was closed, and its table indices.

    Attributes:
        name: what messages call it.
        handle: the handle that it had.
        region: its table indices.
        signatures: those of the functions that were there.
        functions: what stands there; None for null.
    """

    name: str
    handle: ModuleHandle
    region: Region
    signatures: Signatures
    functions: TrapFunctions | None


@dataclass(frozen=True, eq=False)
class Rest:
    """What one close changes: the libraries that begin to rest, and those whose rest is over."""

    begun: tuple[RestingLibrary, ...] = ()
    over: tuple[RestingLibrary, ...] = ()

    @property
    def functions(self) -> tuple[TrapFunctions, ...]:
        """What is to be placed."""
        return _functions_of(self.begun)

    @property
    def cleared(self) -> tuple[tuple[int, int], ...]:
        """First index and number of the elements that become null."""
        return tuple((library.region.address, library.region.size) for library in self.over)


def _functions_of(libraries: Iterable[RestingLibrary]) -> tuple[TrapFunctions, ...]:
    return tuple(library.functions for library in libraries if library.functions is not None)


def _size_of(libraries: Iterable[RestingLibrary]) -> int:
    return sum(library.region.size for library in libraries)


def _indices_by_signature(module: LinkedModule) -> dict[FuncType, set[int]]:
    """Return the table indices of a module's own functions."""
    found: dict[FuncType, set[int]] = {}
    region, functions = module.elements, module.wasm.functions
    if region is None:
        return found

    def add(function: int | None, address: int) -> None:
        if function is not None and region.address <= address < region.end:
            found.setdefault(functions[function], set()).add(address)

    for start, placed in element_runs(module.wasm, module.table_base):
        for offset, function in enumerate(placed):
            add(function, start + offset)
    first = module.first_placed
    for function, number in functions_without_index(module.wasm).items():
        if first is not None:
            add(function, first + number)
    return {kind: addresses for kind, addresses in found.items() if can_trap(kind)}


@dataclass
class Closed:
    """What a module has at its table indices, as its close asks: found out before any lock is taken.

    Attributes:
        signatures: those of its functions, each once, in an order that does not vary.
        runs: first index, which signature, and number of elements.
        code: the functions of these signatures; None for null.
    """

    signatures: Signatures
    runs: tuple[tuple[int, int, int], ...]
    code: CompiledModule | None = None

    @classmethod
    def of(cls, module: LinkedModule) -> Closed:
        """Look at a module."""
        indices = _indices_by_signature(module)
        signatures = tuple(sorted(indices, key=str))
        runs = (
            (start, order, count)
            for order, kind in enumerate(signatures)
            for start, count in in_a_row(sorted(indices[kind]))
        )
        return cls(signatures, tuple(runs))


@dataclass
class RestingIndices:
    """The libraries whose table indices rest.

    Changed under the link lock; `code`, `keep_code` and `library` are for any thread, and do one step each.

    Attributes:
        entry: number of the log entry that tells new groups what stands where; 0 before the first close.
        closes: how many closes there were.
        libraries: those that rest, the first to be used again first; a new tuple each time, since readers take no lock.
    """

    entry: int = 0
    closes: int = 0
    libraries: tuple[RestingLibrary, ...] = ()
    _elements: int = 0  # of all libraries
    _placed: tuple[TrapFunctions, ...] = ()  # what stands at them, in their order
    _codes: dict[Signatures, CompiledModule] = field(default_factory=dict)
    _free: dict[Signatures, deque[int]] = field(default_factory=dict)
    _instances: int = 0
    _numbered: dict[int, RestingLibrary] = field(default_factory=dict)

    def code(self, signatures: Signatures) -> CompiledModule | None:
        """Return the functions of some signatures, if their code is at hand."""
        return found_in(self._codes, signatures)

    def keep_code(self, signatures: Signatures, code: CompiledModule) -> None:
        """Keep the code of the functions of some signatures at hand."""
        if len(self._codes) >= _MOST_CODES:
            self._codes.clear()
        self._codes[signatures] = code

    def library(self, number: int) -> RestingLibrary | None:
        """Return the library of a number."""
        return self._numbered.get(number)

    def plan(self, modules: Sequence[LinkedModule], closed: Mapping[int, Closed]) -> Rest:
        """Reserve what a close needs; `give_up` or `done` follows.

        Args:
            modules: what is closed.
            closed: what they have, by handle.
        """
        begun = tuple(self._begin(m, m.elements, closed[m.handle]) for m in modules if m.elements is not None)
        elements, over = self._elements + _size_of(begun), 0
        while over < len(self.libraries) and elements > RESTING_ELEMENTS:
            elements -= self.libraries[over].region.size
            over += 1
        return Rest(begun, self.libraries[:over])

    def _begin(self, module: LinkedModule, region: Region, closed: Closed) -> RestingLibrary:
        signatures, functions = closed.signatures, None
        if closed.code is not None:
            number, served = self._take(signatures), libraries_served(signatures)
            own = number % MOST_LIBRARIES
            runs = tuple((start, order * served + own, count) for start, order, count in closed.runs)
            functions = TrapFunctions(closed.code, number, runs)
        library = RestingLibrary(module.name, module.handle, region, signatures, functions)
        if functions is not None:
            self._numbered[functions.number] = library
        return library

    def _take(self, signatures: Signatures) -> int:
        free = self._free.setdefault(signatures, deque())
        if not free:
            first = self._instances * MOST_LIBRARIES
            self._instances += 1
            free.extend(range(first, first + libraries_served(signatures)))
        return free.popleft()

    def give_up(self, rest: Rest) -> None:
        """Take a plan back."""
        for library in rest.begun:
            self._forget(library)

    def done(self, rest: Rest) -> Rest:
        """Carry a plan out; the second time does nothing. Return what was left to do."""
        begun = tuple(library for library in rest.begun if library not in self.libraries)
        over = tuple(library for library in rest.over if library in self.libraries)  # the first ones
        self.libraries = (*self.libraries[len(over) :], *begun)
        self._placed = (*self._placed[len(_functions_of(over)) :], *_functions_of(begun))
        self._elements += _size_of(begun) - _size_of(over)
        for library in over:
            self._forget(library)
        return Rest(begun, over)

    def _forget(self, library: RestingLibrary) -> None:
        functions = library.functions
        if functions is not None and self._numbered.pop(functions.number, None) is not None:
            self._free[library.signatures].append(functions.number)

    def functions(self, rest: Rest) -> tuple[TrapFunctions, ...]:
        """Return everything that stands at resting indices when a plan is carried out."""
        return (*self._placed[len(_functions_of(rest.over)) :], *rest.functions)
