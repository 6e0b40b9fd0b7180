"""Libraries as Python objects: their functions are attributes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar, overload

from dl.api import notebook
from dl.api.guest import GuestData, GuestFunction, TypedFunction
from dl.api.loaded import LoadedModule, ModuleSymbol
from dl.dlfcn import MAIN_HANDLE, ModuleHandle
from dl.errors import InvalidHandleError, LinkerUsageError, SymbolNotFoundError
from dl.modules.linked_module import LinkedModule
from dl.modules.symbols import DataSymbol, FunctionSymbol, TlsSymbol
from memory import Uncopied

if TYPE_CHECKING:
    from typing_extensions import Self

    from dl.group import InstanceGroup

R = TypeVar("R")

_OWN = frozenset({"_found", "_open", "group", "handle"})
"""Attributes that are not symbols."""

_MOST_COMPARED = 1000
"""Names that a misspelt one is compared with."""


def similar_symbol(name: str, names: Iterable[str]) -> str:
    """Return the one of some names that is much the same as a name that is not there; empty text if none is.

    Args:
        name: what was looked for.
        names: what there is; of many, the first 1000 are compared.
    """
    import difflib  # noqa: PLC0415  only for messages

    close = difflib.get_close_matches(name[:200], list(islice(names, _MOST_COMPARED)), 1, 0.7)
    return close[0] if close else ""


class Library(Uncopied):
    """An open library, in one thread's instance group; made by `InstanceGroup.library`.

    `lib.add(2, 3)` calls a function, and `lib["add"]` is the function whatever its name, also where a method of this class has
    the same. Iterating gives the names of its own functions and data. At the end of a `with`, or by `close`, it is closed once.

    Where a handle is asked for, such as by `InstanceGroup.dlsym`, the library itself may be given.

    Attributes:
        group: the instance group that calls go into.
        handle: what `dlopen` returned.
    """

    def __init__(self, group: InstanceGroup, handle: ModuleHandle) -> None:
        self.group = group
        self.handle = handle
        self._open = True
        # What was looked up, while this is open. A symbol of a library stays what it is; one of the program's scope may not.
        self._found: dict[str, GuestFunction | GuestData] = {}

    def _module(self) -> LinkedModule:
        module = self.group.linker.program.state.modules.get(self.handle)
        if module is None or not self._open:
            raise InvalidHandleError(self.handle, "the library was closed")
        return module

    @property
    def name(self) -> str:
        """The path of its file, or the name that its bytes were given."""
        return self._module().name

    @property
    def path(self) -> str | None:
        """The path of its file; None for a library from memory."""
        path = self._module().image.path
        return None if path is None else str(path)

    @property
    def is_open(self) -> bool:
        """Whether this object has not been closed; others may have the library open after that."""
        return self._open

    def _find(self, name: str) -> GuestFunction | GuestData:
        if not isinstance(name, str):
            raise LinkerUsageError(f"name: a symbol's name is a text, not {name!r}")
        known = self._found.get(name)
        if known is not None:
            return known
        module = self._module()
        try:
            found = self.group.dlsym(self.handle, name)
            if self.handle != MAIN_HANDLE:
                self._found[name] = found
            return found
        except SymbolNotFoundError as error:
            if error.reason:
                raise
            raise SymbolNotFoundError(
                name, error.searched, similar=similar_symbol(name, module.symbols)
            ) from None

    @overload
    def function(self, name: str) -> GuestFunction: ...

    @overload
    def function(self, name: str, result: type[R]) -> TypedFunction[R]: ...

    def function(self, name: str, result: type[R] | None = None) -> GuestFunction | TypedFunction[R]:
        """Return a function.

        Args:
            name: its symbol, in the library or in what it needs.
            result: what its result is, such as `dl.CString` or `int`; see `GuestFunction.returning`. None for the plain value.

        Raises:
            SymbolNotFoundError: there is no such symbol; says which one has much the same name.
            LinkerUsageError: it is data, or its result cannot be that.
            InvalidHandleError: the library was closed.
        """
        found = self._find(name)
        if not isinstance(found, GuestFunction):
            raise LinkerUsageError(
                f"{name} in {self.name} is data, not a function; get it with data({name!r})"
            )
        return found if result is None else found.returning(result)

    def data(self, name: str) -> GuestData:
        """Return data: it has an address in linear memory.

        Raises:
            SymbolNotFoundError: there is no such symbol; says which one has much the same name.
            LinkerUsageError: it is a function.
            InvalidHandleError: the library was closed.
        """
        found = self._find(name)
        if not isinstance(found, GuestData):
            raise LinkerUsageError(f"{name} in {self.name} is a function, not data")
        return found

    @property
    def module(self) -> LoadedModule:
        """What the linker knows about it: where it lies, who needs it, what it is bound to.

        Raises:
            InvalidHandleError: the library was closed.
        """
        return LoadedModule(self.group.linker.program, self._module())

    def symbols(self) -> tuple[ModuleSymbol, ...]:
        """Return the symbols that it defines itself: name, kind, type and address.

        Raises:
            InvalidHandleError: the library was closed.
        """
        return self.module.symbols()

    def __getattr__(self, name: str) -> Any:
        # Python and its tools ask for many of these; the others are missing only before `__init__`, as for `copy`.
        if (name.startswith("__") and name.endswith("__")) or name in _OWN:
            raise AttributeError(name)
        return self._find(name)

    def __setattr__(self, name: str, value: Any) -> None:
        # An attribute of Python's would hide the symbol, and the guest would not see it.
        if name not in _OWN:
            raise AttributeError(
                f"{name} cannot be set: what a library defines is in memory, where for instance"
                f" linker.memory.write_i32(lib.data({name!r}), value) writes it"
            )
        super().__setattr__(name, value)

    def __getitem__(self, name: str) -> GuestFunction | GuestData:
        return self._find(name)

    def __contains__(self, name: object) -> bool:
        try:
            self._find(name)  # type: ignore[arg-type]  # what is no name is not in it
        except SymbolNotFoundError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        """Names of the functions and data that the library itself defines."""
        symbols = self._module().symbols
        return iter(
            sorted(n for n in symbols if isinstance(symbols.get(n), (FunctionSymbol, DataSymbol, TlsSymbol)))
        )

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return True

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(self if self._open else ())})

    def __index__(self) -> int:
        return int(self.handle)  # `operator.index` wants a plain int

    def close(self) -> None:
        """Take the `dlopen` back; idempotent. See `InstanceGroup.dlclose`.

        Raises:
            FinalizationError: a destructor failed; the library is closed nevertheless.
        """
        if self._open:
            self._open = False
            self._found.clear()
            self.group.dlclose(self.handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Library {self.name}, {len(self)} symbols>" if self._open else "<Library (closed)>"

    def _repr_html_(self) -> str:
        """What Jupyter shows: a table of functions and data."""
        if not self._open:
            return notebook.cut(repr(self))
        symbols = self._module().symbols

        def row(name: str) -> tuple[str, str, object]:
            symbol = symbols[name]
            where = getattr(symbol, "address", None)
            if isinstance(symbol, FunctionSymbol):
                return name, str(symbol.type), "" if where is None else where
            return name, "data", "" if where is None else f"{where:#x}"

        return notebook.table(self.name, ("symbol", "type", "address"), map(row, self), len(self))
