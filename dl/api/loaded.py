"""Modules of a program, and their symbols, as a person reads them."""

from __future__ import annotations

from collections.abc import Iterator
from operator import index
from typing import TYPE_CHECKING, SupportsIndex

from dl.api import notebook
from dl.api.guest import GuestData, GuestFunction
from dl.dlfcn import MAIN_HANDLE, AddressKind, DlFlags, ModuleHandle
from dl.errors import LinkerUsageError
from dl.glue.resolution import LazyStub
from dl.groups.entry import Group
from dl.link.addresses import data_at, data_range, function_at, location_of
from dl.link.sources import scope_of
from dl.modules.linked_module import LinkedModule
from dl.modules.symbols import DataSymbol, FunctionSymbol, GlobalSymbol, Symbol, TagSymbol
from dl.records import dataclass
from dl.text import shown

if TYPE_CHECKING:
    from dl.program.program import Program


@dataclass(frozen=True)
class ModuleSymbol:
    """A symbol that a module defines.

    Attributes:
        name: the symbol.
        kind: `function`, `data`, `thread-local`, `global` or `tag`.
        type: its signature or type as text; None for data.
        address: of a function its table index, of data bytes in linear memory; None for what has no address that all threads
            share, and for functions of a program whose table cannot grow.
    """

    name: str
    kind: str
    type: str | None
    address: int | None

    def __str__(self) -> str:
        kind = f" {self.type}" if self.type else ""
        if self.address is None:
            return f"{self.kind} {self.name}{kind}"
        where = f"{self.address:#x}" if self.kind == "data" else f"table index {self.address}"
        return f"{self.kind} {self.name}{kind} at {where}"


def module_symbol(symbol: Symbol) -> ModuleSymbol:
    """Return a symbol as a person reads it."""
    match symbol:
        case FunctionSymbol():
            return ModuleSymbol(symbol.name, "function", str(symbol.type), symbol.address or None)
        case DataSymbol():
            return ModuleSymbol(symbol.name, "data", None, symbol.address)
        case TagSymbol():
            return ModuleSymbol(symbol.name, "tag", str(symbol.type), None)
        case GlobalSymbol():
            return ModuleSymbol(symbol.name, "global", str(symbol.type), None)
        case _:
            return ModuleSymbol(symbol.name, "thread-local", None, None)


@dataclass(frozen=True)
class ModuleBinding:
    """Imports of one module that another one's symbols serve.

    Attributes:
        module: the other module.
        symbols: the symbols, each once, in the order of the imports; those of stubs that have been called included.
    """

    module: LoadedModule
    symbols: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.module.name}: {', '.join(self.symbols)}"


class LoadedModule:
    """A module of a program. What it says is true at the moment, and changes with the program; it changes nothing.

    Two objects for the same module are equal. A module that was unloaded keeps its name and its numbers, and `is_loaded` is
    false.
    """

    __slots__ = ("_module", "_program")

    def __init__(self, program: Program, module: LinkedModule) -> None:
        self._program = program
        self._module = module

    @property
    def handle(self) -> ModuleHandle:
        """Its handle; no other module has it, or ever gets it."""
        return self._module.handle

    @property
    def name(self) -> str:
        """The path under which it was found, or the name that its bytes were given."""
        return self._module.name

    @property
    def path(self) -> str | None:
        """The resolved path of its file; None for a module from memory."""
        path = self._module.image.path
        return None if path is None else str(path)

    @property
    def is_main(self) -> bool:
        """Whether it is the main module."""
        return self._module.handle == MAIN_HANDLE

    @property
    def memory_base(self) -> int:
        """Where its data begins in linear memory, bytes."""
        return data_range(self._module)[0]

    @property
    def memory_size(self) -> int:
        """How much linear memory its data takes, bytes; without its thread-local blocks."""
        first, end = data_range(self._module)
        return end - first

    @property
    def table_base(self) -> int:
        """The first of its table indices; 0 if it has none."""
        elements = self._module.elements
        return self._module.table_base if elements is None else elements.address

    @property
    def table_size(self) -> int:
        """How many table indices it has: its own elements, and its exported functions that are not among them."""
        elements = self._module.elements
        return 0 if elements is None else elements.size

    @property
    def thread_local_size(self) -> int:
        """Bytes of thread-local storage of each thread."""
        storage = self._module.thread_local
        return 0 if storage is None else storage.size

    @property
    def opens(self) -> int:
        """How many times it was opened and not closed, by the host and by the guest."""
        return self._module.opens

    @property
    def is_global(self) -> bool:
        """Whether its symbols are in the global scope, for all modules."""
        return bool(self._module.global_opens)

    @property
    def flags(self) -> DlFlags:
        """What its dlopens have made of it: `GLOBAL`, `DEEPBIND` and `NODELETE`, or none of these (`LOCAL`)."""
        module, flags = self._module, DlFlags.LOCAL
        if module.global_opens:
            flags |= DlFlags.GLOBAL
        if module.deep_bind:
            flags |= DlFlags.DEEPBIND
        if module.stays:
            flags |= DlFlags.NODELETE
        return flags

    @property
    def is_loaded(self) -> bool:
        """Whether it is part of the program."""
        return self._program.state.modules.get(self._module.handle) is self._module

    @property
    def is_constructed(self) -> bool:
        """Whether its constructors have run."""
        return bool(self._module.constructed)

    @property
    def is_closing(self) -> bool:
        """Whether its end has begun: it can be found no longer."""
        return self._module.closing

    @property
    def state(self) -> str:
        """`loading`, `constructed`, `closing` or `unloaded`."""
        if not self.is_loaded:
            return "unloaded"
        if self._module.closing:
            return "closing"
        return "constructed" if self._module.constructed else "loading"

    @property
    def needs(self) -> tuple[LoadedModule, ...]:
        """The modules of its needed list, in that order."""
        return tuple(self._view(module) for module in self._module.needed)

    @property
    def needed_by(self) -> tuple[LoadedModule, ...]:
        """The modules that have it in their needed lists, in handle order."""
        return tuple(self._view(other) for other in self._others() if self._module in other.needed)

    @property
    def scope(self) -> tuple[LoadedModule, ...]:
        """The modules whose symbols it sees, in the order in which they are searched."""
        return tuple(map(self._view, scope_of(self._module, self._program.state.global_scope)))

    @property
    def bound_to(self) -> tuple[ModuleBinding, ...]:
        """The modules that its imports are bound to, with the symbols, in handle order; without itself."""
        uses = _uses(self._module)
        modules = self._program.state.modules
        return tuple(
            ModuleBinding(self._view(modules[handle]), tuple(uses[handle]))
            for handle in sorted(uses)
            if handle in modules and handle != self._module.handle
        )

    @property
    def bound_by(self) -> tuple[ModuleBinding, ...]:
        """The modules that are bound to it, with the symbols, in handle order; without itself."""
        found = ((other, _uses(other).get(self._module.handle)) for other in self._others())
        return tuple(ModuleBinding(self._view(other), tuple(symbols)) for other, symbols in found if symbols)

    @property
    def unresolved(self) -> tuple[str, ...]:
        """Functions that it imports and nothing defined yet; the first call of one looks for it."""
        module = self._module
        entries = zip(module.wasm.imports, module.bindings, strict=False)
        return tuple(
            entry.name
            for position, (entry, binding) in enumerate(entries)
            if isinstance(binding, LazyStub) and position not in module.stub_targets
        )

    def symbols(self) -> tuple[ModuleSymbol, ...]:
        """Return the symbols that it defines, in the order of its exports."""
        return tuple(module_symbol(symbol) for symbol in self._module.symbols.values())

    def _view(self, module: LinkedModule) -> LoadedModule:
        return LoadedModule(self._program, module)

    def _others(self) -> Iterator[LinkedModule]:
        modules = self._program.state.modules.copy()
        for handle in sorted(modules):
            if modules[handle] is not self._module:
                yield modules[handle]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LoadedModule) and other._module is self._module

    def __hash__(self) -> int:
        return hash((id(self._module), self._module.handle))

    def __index__(self) -> int:
        return int(self._module.handle)

    def _flag_names(self) -> str:
        names = (name for name, flag in DlFlags.__members__.items() if flag and flag in self.flags)
        return "|".join(names) or "LOCAL"

    def __repr__(self) -> str:
        return (
            f"<LoadedModule {self.name}: handle {int(self.handle)}, {self.state}, {self._flag_names()}, opened {self.opens} "
            f"times, memory {self.memory_base:#x} + {self.memory_size}, table {self.table_base} + {self.table_size}>"
        )

    def _repr_html_(self) -> str:
        """What Jupyter shows."""
        rows = {
            "handle": str(int(self.handle)),
            "path": self.path or "",
            "state": self.state,
            "flags": self._flag_names(),
            "opened": f"{self.opens} times",
            "memory": f"{self.memory_base:#x} + {self.memory_size:,} bytes",
            "table": f"{self.table_base} + {self.table_size}",
            "needs": ", ".join(module.name for module in self.needs),
            "needed by": ", ".join(module.name for module in self.needed_by),
            "bound to": "; ".join(map(str, self.bound_to)),
            "bound by": "; ".join(map(str, self.bound_by)),
        }
        return notebook.table(self.name, (), rows.items(), len(rows))


def _uses(module: LinkedModule) -> dict[ModuleHandle, dict[str, None]]:
    """Return the symbols by which a module is bound to others, by the handle of who provides them.

    What its code has looked up by itself is among them, the first such symbol of each provider.
    """
    uses: dict[ModuleHandle, dict[str, None]] = {}
    stubs = module.stub_targets.copy()
    for position, (entry, binding) in enumerate(zip(module.wasm.imports, module.bindings, strict=False)):
        target = stubs.get(position)
        provider = binding.provider if target is None else target.provider
        uses.setdefault(provider, {})[entry.name] = None
    for provider, name in module.looked_up.copy().items():
        uses.setdefault(provider, {})[name] = None
    return uses


@dataclass(frozen=True)
class AddressInfo:
    """What is at an address: what `dladdr` returns.

    Attributes:
        address: the address that was asked for: a table index for functions, else bytes.
        kind: what is there.
        module: the module that it belongs to.
        symbol: the function's own symbol, or the nearest one at or before the data; None if there is none.
        start: that symbol's address; of a function without a symbol the address itself, of data without one None.
    """

    address: int
    kind: AddressKind
    module: LoadedModule
    symbol: str | None
    start: int | None

    @property
    def path(self) -> str:
        """The module's path, or the name that its bytes were given."""
        return self.module.path or self.module.name

    @property
    def offset(self) -> int | None:
        """Bytes from the symbol on; None without a symbol."""
        return None if self.symbol is None or self.start is None else self.address - self.start

    def __str__(self) -> str:
        where = (
            "no symbol"
            if self.symbol is None
            else self.symbol + (f"+{self.offset:#x}" if self.offset else "")
        )
        return f"{self.kind.value} {self.address:#x}: {where} in {self.module.name}"


def address_info(
    program: Program, pointer: SupportsIndex, kind: str | None, group: Group | None = None
) -> AddressInfo | None:
    """Return what is at an address; see `Introspection.dladdr`.

    Args:
        program: the program.
        pointer: a function, data or a number.
        kind: what a number is; None if it may be both.
        group: the calling thread's, for its thread-local variables.

    Raises:
        LinkerUsageError: there is no such kind.
    """
    if kind is None:
        kind = {GuestFunction: "function", GuestData: "data"}.get(type(pointer))
    try:
        address, state = index(pointer) & 0xFFFFFFFF, program.state
    except TypeError:
        raise LinkerUsageError(
            f"a pointer is a number, or a function or data of the guest, not {shown(repr(pointer))}"
        ) from None
    if kind is None:
        found = location_of(state, address, group)
    elif kind == "function":
        found = function_at(state, address)
    elif kind == "data":
        found = data_at(state, address, group)
    else:
        raise LinkerUsageError(f"kind: an address is of a function or of data, not {kind!r}")
    if found is None:
        return None
    return AddressInfo(address, found.kind, LoadedModule(program, found.module), found.symbol, found.start)
