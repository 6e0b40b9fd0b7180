"""Externals as objects: memories, tables, globals, functions and tags, made by the host or exported by an instance.

One external is one object, however it is reached: exported under two names, imported and exported again, or taken out of a
table. It serves every thread of the program. A memory that is shared is one for all of them; of everything else a thread sees
what its own instances see (see docs/instances.md, "Threads").
"""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from typing import TYPE_CHECKING, Any, ClassVar, cast

from dl.checks import taken, whole
from dl.errors import LinkerUsageError, ResourceLimitError, ValueConversionError
from dl.instances.reach import Reach
from dl.program.operations import ExternalSource
from dl.records import replace
from dl.wasm.matching import LinkType
from dl.wasm.types import ExternType, FuncType, GlobalType, MemoryType, TableType, TagType
from memory import LinearMemory
from threads import SharedFutexes

if TYPE_CHECKING:
    from dl.engine.protocol import EngineMemory
    from dl.groups.entry import Group

_PAGE = 65536
_MOST_COUNT = (1 << 64) - 1
"""The most pages or elements that an engine can be asked for: it takes the low 64 bits of a number."""
_WIDTHS = {"i32": 32, "f32": 32, "i64": 64, "f64": 64}


class External:
    """What a module can import: a memory, table, global, function or tag.

    Attributes:
        source: where each group finds it; for the linker's own use.
    """

    __slots__ = ("_link_type", "_reach", "source")

    kind: ClassVar[str]
    """What it is: "memory", "table", "global", "func" or "tag"."""

    def __init__(self, reach: Reach, link_type: LinkType, source: ExternalSource) -> None:
        self._reach = reach
        self._link_type = link_type
        self.source = source

    def link_type(self) -> LinkType:
        """Return its type as an import is compared with it: of a memory or table, with the size that it has now."""
        return self._link_type

    def belongs_to(self, reach: Reach) -> bool:
        """Whether instances of a program can import it."""
        return self._reach is reach

    def _found(self) -> Any:
        return self._reach.find(self.source)[1]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._link_type.type}>"


class Memory(External):
    """A linear memory.

    Args:
        shared: the memory itself, if it is shared: it belongs to no group.
        futexes: then the waits at its addresses, if another program has it already.

    Attributes:
        futexes: the waits at its addresses, of all programs that have it; for the linker's own use.
    """

    __slots__ = ("_shared", "futexes")

    kind = "memory"

    def __init__(
        self,
        reach: Reach,
        link_type: LinkType,
        source: ExternalSource,
        shared: EngineMemory | None = None,
        futexes: SharedFutexes | None = None,
    ) -> None:
        super().__init__(reach, link_type, source)
        self.futexes = futexes or SharedFutexes()
        self._shared = None if shared is None else (shared, LinearMemory(shared, stable_address=True))

    @property
    def type(self) -> MemoryType:
        """Its type; the minimum is the size that it has now, in pages of 64 KiB."""
        kind = cast("MemoryType", self._link_type.type)
        return replace(kind, limits=replace(kind.limits, minimum=self.pages))

    def link_type(self) -> LinkType:
        """See `External.link_type`."""
        return replace(self._link_type, type=self.type)

    @property
    def shared(self) -> EngineMemory | None:
        """The engine's memory, if the host made it to be shared; for the linker's own use."""
        return None if self._shared is None else self._shared[0]

    def _engine_memory(self) -> EngineMemory:
        return self._shared[0] if self._shared is not None else cast("EngineMemory", self._found())

    @property
    def data(self) -> LinearMemory:
        """Typed access to its bytes: see `memory.LinearMemory`. Of a memory that is not shared, for the calling thread.

        Raises:
            LinkerUsageError: the calling thread has no instance group.
        """
        if self._shared is not None:
            return self._shared[1]
        group = self._reach.group()
        views = group.instances.externals.memories
        known: LinearMemory | None = views.get(self)
        if known is None:
            known = views[self] = LinearMemory(self._engine_memory())
        return known

    @property
    def pages(self) -> int:
        """The size that it has now, in pages of 64 KiB."""
        return self._engine_memory().data_size() // _PAGE

    @property
    def size(self) -> int:
        """The size that it has now, bytes."""
        return self._engine_memory().data_size()

    def read(self, address: int, length: int) -> bytes:
        """Return a copy of some bytes.

        Raises:
            memory.OutOfBoundsError: they are not all inside the memory.
        """
        return self.data.read(address, length)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Copy bytes into the memory.

        Raises:
            memory.OutOfBoundsError: there is no room for all of them; nothing was written.
        """
        self.data.write(address, data)

    def grow(self, pages: int) -> int | None:
        """Grow by pages of 64 KiB; return the former size in pages, or None when its maximum or a limit refuses.

        Raises:
            LinkerUsageError: the number is negative.
        """
        if taken(whole, pages, "pages") < 0:
            raise LinkerUsageError(f"a memory cannot grow by {pages} pages")
        if pages > _MOST_COUNT:
            return None
        limits = cast("MemoryType", self._link_type.type).limits
        most = self._reach.program.options.limits.memory_pages
        if limits.shared and self.pages + pages > most:  # the store's own limit bounds the others
            return None
        budget, size = self._reach.budget, pages * _PAGE
        try:
            budget.take(repr(self), size)
        except ResourceLimitError:
            return None
        try:
            return self._engine_memory().grow(pages)
        finally:
            budget.give_back(size)  # it counts with its size


class Table(External):
    """A table, indexed from 0. Its elements are `Function` or None; of an `externref` table, any Python objects."""

    __slots__ = ()

    kind = "table"

    @property
    def type(self) -> TableType:
        """Its type; the minimum is the size that it has now, in elements."""
        kind = cast("TableType", self._link_type.type)
        return replace(kind, limits=replace(kind.limits, minimum=len(self)))

    def link_type(self) -> LinkType:
        """See `External.link_type`."""
        return replace(self._link_type, type=self.type)

    def _element(self) -> str:
        return self._link_type.plain_value(cast("TableType", self._link_type.type).element)

    def __len__(self) -> int:
        return int(self._found().size())

    def __getitem__(self, index: int) -> Any:
        group, table = self._reach.find(self.source)
        return self._reach.from_engine(group, self._element(), table.get(self._index(index)))

    def __setitem__(self, index: int, value: Any) -> None:
        self._found().set(self._index(index), self._reach.to_engine(self._element(), value))

    @staticmethod
    def _index(index: int) -> int:
        number = index.__index__()
        if not 0 <= number < 1 << 64:
            raise IndexError(index)
        return number

    def grow(self, count: int, value: Any = None) -> int | None:
        """Add elements; return the former size, or None when its maximum or `Limits.table_elements` refuses.

        Args:
            count: how many.
            value: what each holds.

        Raises:
            LinkerUsageError: the number is negative.
            ValueConversionError: the value is no element of the table.
        """
        if taken(whole, count, "count") < 0:
            raise LinkerUsageError(f"a table cannot grow by {count} elements")
        element = self._reach.to_engine(self._element(), value)
        if count > _MOST_COUNT:
            return None
        former: int | None = self._found().grow(count, element)
        return former


class Global(External):
    """A global variable."""

    __slots__ = ()

    kind = "global"

    @property
    def type(self) -> GlobalType:
        """Its type."""
        return cast("GlobalType", self._link_type.type)

    @property
    def value(self) -> Any:
        """Its value: int (signed), float, 16 bytes for v128; of references a `Function`, a Python object or None.

        Raises:
            LinkerUsageError: it is set, and cannot change.
            ValueConversionError: it is set to a value of another type.
        """
        group, found = self._reach.find(self.source)
        return self._reach.from_engine(group, self._link_type.plain_value(self.type.value), found.get())

    @value.setter
    def value(self, value: Any) -> None:
        if not self.type.mutable:
            raise LinkerUsageError(f"{self!r} cannot change")
        self._found().set(self._reach.to_engine(self._link_type.plain_value(self.type.value), value))


class Function(External):
    """A function: of an instance, or a Python function that instances can import and tables can hold.

    Called with int (i32, i64), float (f32, f64), 16 bytes (v128), a `Function` or None (`funcref`), any object (`externref`).
    No result is None, several are a tuple; integers are signed.

    Args:
        only: the one group that has it; None for all.
    """

    __slots__ = ("_only", "_references", "_signature")

    kind = "func"

    def __init__(
        self, reach: Reach, link_type: LinkType, source: ExternalSource, only: Group | None = None
    ) -> None:
        super().__init__(reach, link_type, source)
        self._only = only
        self._signature = link_type.plain()
        self._references = bool(self._signature.references())

    @property
    def type(self) -> FuncType:
        """Its signature."""
        return cast("FuncType", self._link_type.type)

    def in_engine(self) -> Any:
        """Return the function of the calling thread's store; for the linker's own use."""
        return self._reach.find(self.source, self._only)[1]

    def __call__(self, *arguments: Any) -> Any:
        """Call the function in the calling thread.

        Raises:
            ValueConversionError: an argument does not fit the signature.
            TrapError: the guest trapped.
            ProgramExited: the guest ended the program.
            LinkerUsageError: the calling thread has no instance group.
        """
        group = self._reach.groups.find()
        if group is None or group.owner != get_ident():
            group = self._reach.group()  # which says what is wrong
        invoke = group.instances.externals.callables.get(self)
        if invoke is None:
            invoke = self.in_engine().callable(self._signature)
            group.instances.externals.callables[self] = invoke
        if self._references:
            return self._call_with_references(group, invoke, arguments)
        return group.in_guest(invoke, *arguments)

    def call_bits(self, *arguments: int) -> int | tuple[int, ...] | None:
        """Call the function with the bits of each value, and return those of its results: unsigned, of 32 or 64 bits.

        For what Python's floats do not keep: the payload of a NaN of single precision.

        Raises:
            ValueConversionError: the signature has other values than i32, i64, f32 and f64, or an argument has more bits.
            TrapError: the guest trapped; and all else that a call raises.
        """
        kind = self._signature
        widths = [_WIDTHS.get(text) for text in kind.params]
        if None in widths or any(text not in _WIDTHS for text in kind.results):
            raise ValueConversionError(kind, "has values that are not 32 or 64 bits wide")
        if len(arguments) != len(widths):
            raise ValueConversionError(kind, f"takes {len(widths)} arguments, got {len(arguments)}")
        group = self._reach.group()
        slots = self._reach.program.engine.slots(max(len(kind.params), len(kind.results), 1))
        for position, (width, value) in enumerate(zip(widths, arguments, strict=True)):
            if not hasattr(value, "__index__") or not 0 <= value.__index__() < 1 << (width or 0):
                raise ValueConversionError(kind, f"argument {position} is not the bits of a value: {value!r}")
            (slots.set_32 if width == 32 else slots.set_64)(position, value)
        group.in_guest(self.in_engine().raw(), slots)
        bits = tuple(
            slots.u32(position) if _WIDTHS[text] == 32 else slots.u64(position)
            for position, text in enumerate(kind.results)
        )
        return bits if len(bits) > 1 else bits[0] if bits else None

    def _call_with_references(
        self, group: Group, invoke: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> Any:
        kind, reach = self._signature, self._reach
        if len(arguments) != len(kind.params):
            raise ValueConversionError(kind, f"takes {len(kind.params)} arguments, got {len(arguments)}")
        given = [reach.to_engine(k, v) for k, v in zip(kind.params, arguments, strict=True)]
        value = group.in_guest(invoke, *given)
        if len(kind.results) < 2:
            return reach.from_engine(group, kind.results[0], value) if kind.results else None
        return tuple(reach.from_engine(group, k, v) for k, v in zip(kind.results, value, strict=True))


class Tag(External):
    """An exception tag."""

    __slots__ = ()

    kind = "tag"

    @property
    def type(self) -> TagType:
        """Its type."""
        return cast("TagType", self._link_type.type)


def external_for(reach: Reach, link_type: LinkType, source: ExternalSource) -> External:
    """Return an object for an external that groups find at a source."""
    kinds: dict[type[ExternType], Callable[..., External]] = {
        FuncType: Function,
        TableType: Table,
        MemoryType: Memory,
        GlobalType: Global,
        TagType: Tag,
    }
    return kinds[type(link_type.type)](reach, link_type, source)
