"""Externals that the host makes, and the values that a user may give for an import instead of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dl.checks import flag, optional, taken, whole
from dl.dlfcn import ModuleHandle
from dl.errors import EngineError, ImportTypeError, LinkerUsageError, ResourceLimitError, ValueConversionError
from dl.glue.names import HOST_NAMESPACE, module_namespace
from dl.glue.resolution import FromNamespace
from dl.instances.budget import PAGE_BYTES
from dl.instances.externals import External, Function, Global, Memory, Table, Tag
from dl.instances.reach import Reach
from dl.options import HostFunction, parse_signature
from dl.program.operations import MADE, Instantiate, MakeGlobal, ShareMemory, instance_namespace
from dl.text import shown
from dl.wasm.encode import ModuleBuilder
from dl.wasm.matching import LinkType
from dl.wasm.records import Import
from dl.wasm.types import (
    NUMBER_TYPES,
    ExternType,
    FuncType,
    GlobalType,
    Limits,
    MemoryType,
    TableType,
    TagType,
)

MOST_PAGES, MOST_PAGES_64 = 1 << 16, 1 << 48
MOST_ELEMENTS, MOST_ELEMENTS_64 = (1 << 32) - 1, (1 << 64) - 1


class HostMade:
    """Makes memories, tables, globals, functions and tags of one program.

    A memory, table or tag is an export of a module that is generated for it, so that it is replayed like any instance.

    Attributes:
        reach: the way to them.
    """

    def __init__(self, reach: Reach) -> None:
        self.reach = reach
        self._adopted: dict[int, Memory] = {}
        self._importable: dict[FromNamespace, Function] = {}

    def _check_one_thread(self, what: str) -> None:
        self.reach.check_engine()
        if self.reach.program.shares_memory:
            raise LinkerUsageError(
                f"{what} cannot be made in a program with several threads, each of which would have another; make a shared "
                "memory, or make the program one of a single thread: one whose own memory is not shared"
            )

    def memory(self, kind: MemoryType) -> Memory:
        """Make a memory; see `Linker.new_memory`."""
        limits, reach = kind.limits, self.reach
        reach.check_engine()
        self._check_addresses(limits)
        most = MOST_PAGES_64 if limits.is64 else MOST_PAGES
        _check_limits("a memory", limits, most)
        bound = reach.program.options.limits
        if limits.minimum > bound.memory_pages:
            raise bound.refusal("memory_pages", "a memory", f"it begins with {limits.minimum} pages")
        if not limits.shared:
            self._check_one_thread("a memory that is not shared")
        size = limits.minimum * PAGE_BYTES
        reach.budget.take("a memory", size)
        try:
            if limits.shared:
                made = self._shared_memory(kind)
            else:
                source = self._generated(kind, "memory", lambda build: build.memory(kind))
                made = Memory(reach, LinkType.of_host(kind), source)
        except BaseException:
            reach.budget.give_back(size)
            raise
        reach.budget.follow(made, size)
        return made

    def _check_addresses(self, limits: Limits) -> None:
        engine = self.reach.program.engine
        if limits.is64 and not engine.capabilities.memory64:
            raise LinkerUsageError(f"engine {engine.name} lacks 64-bit addresses")

    def _shared_memory(self, kind: MemoryType) -> Memory:
        engine = self.reach.program.engine
        if not engine.capabilities.shared_memory:
            raise LinkerUsageError(f"engine {engine.name} lacks shared memory")
        if kind.limits.maximum is None:
            raise LinkerUsageError("a shared memory needs a maximum")
        try:
            made = engine.shared_memory(kind)
        except EngineError as error:
            raise ResourceLimitError("a shared memory", str(error)) from error
        number = self.reach.next_number("a shared memory")
        self.reach.perform(ShareMemory(number, made))
        return Memory(
            self.reach, LinkType.of_host(kind), FromNamespace(instance_namespace(number), MADE), made
        )

    def adopted(self, memory: Memory) -> Memory:
        """Return a shared memory of another program as one of this: the same object each time."""
        known = self._adopted.get(id(memory.shared))
        if known is not None:
            return known
        number = self.reach.next_number("a shared memory")
        made = memory.shared
        assert made is not None
        self.reach.perform(ShareMemory(number, made))
        source = FromNamespace(instance_namespace(number), MADE)
        # Each entry keeps the memory that its key is the identity of.
        return self._adopted.setdefault(
            id(made), Memory(self.reach, memory.link_type(), source, made, memory.futexes)
        )

    def table(self, kind: TableType, initial: Any) -> Table:
        """Make a table; see `Linker.new_table`."""
        self._check_one_thread("a table")
        self._check_addresses(kind.limits)
        if kind.element not in ("funcref", "externref"):
            raise LinkerUsageError(
                f"a table of the host's has elements funcref or externref, not {kind.element}"
            )
        _check_limits("a table", kind.limits, MOST_ELEMENTS_64 if kind.limits.is64 else MOST_ELEMENTS)
        bound = self.reach.program.options.limits
        if kind.limits.minimum > bound.table_elements:
            raise bound.refusal("table_elements", "a table", f"it begins with {kind.limits.minimum} elements")
        self.reach.to_engine(kind.element, initial)  # refused before anything is made
        table = Table(
            self.reach,
            LinkType.of_host(kind),
            self._generated(kind, "table", lambda build: build.table(kind)),
        )
        if initial is not None:
            for index in range(kind.limits.minimum):
                table[index] = initial
        return table

    def global_(self, kind: GlobalType, value: Any) -> Global:
        """Make a global; see `Linker.new_global`."""
        self.reach.check_engine()
        if kind.value not in NUMBER_TYPES and kind.value not in ("funcref", "externref"):
            raise LinkerUsageError(f"a global of the host's cannot be of type {kind.value}")
        if kind.mutable or (kind.value not in NUMBER_TYPES and value is not None):
            self._check_one_thread(
                "a global that can change" if kind.mutable else "a global that refers to something"
            )
        number = self.reach.next_number("a global")
        try:
            self.reach.perform(MakeGlobal(number, kind, self.reach.to_engine(kind.value, value)))
        except EngineError as error:
            raise LinkerUsageError(f"{kind} cannot be made: {error}") from error
        return Global(self.reach, LinkType.of_host(kind), FromNamespace(instance_namespace(number), MADE))

    def tag(self, kind: TagType) -> Tag:
        """Make a tag; see `Linker.new_tag`."""
        engine = self.reach.program.engine
        self.reach.check_engine()
        if kind.type.results:
            raise LinkerUsageError(f"exceptions carry no results: {kind.type}")
        if not engine.capabilities.exceptions:
            raise LinkerUsageError(f"engine {engine.name} lacks exceptions")
        return Tag(
            self.reach, LinkType.of_host(kind), self._generated(kind, "tag", lambda build: build.tag(kind))
        )

    def function(self, kind: FuncType, function: Callable[..., Any]) -> Function:
        """Make a function; see `Linker.new_function`.

        Raises:
            LinkerUsageError: it is no function.
            ValueConversionError: a value type cannot cross into Python.
        """
        self.reach.check_engine()
        if not callable(function):
            raise LinkerUsageError(f"a function is needed, not {function!r}")
        self._check_references(kind)
        label = f"function {self.reach.next_number('a function')}"
        self.reach.program.functions.define(
            HOST_NAMESPACE, label, kind, self.reach.converting(kind, function)
        )
        made = Function(self.reach, LinkType.of_host(kind), FromNamespace(HOST_NAMESPACE, label))
        self.reach.exported(made)
        return made

    def _check_references(self, kind: FuncType) -> None:
        references = kind.references()
        wrong = [text for text in references if text not in ("funcref", "externref")]
        engine = self.reach.program.engine
        if wrong or (references and not engine.capabilities.references):
            raise ValueConversionError(
                kind, f"a value of type {(wrong or references)[0]} cannot cross into Python"
            )

    def importable(self, source: FromNamespace, link_type: LinkType) -> Function:
        """Return the one object for a function that every group finds at a source."""
        known = self._importable.get(source)
        if known is None:
            known = self._importable[source] = Function(self.reach, link_type, source)
            self.reach.exported(known)
        return known

    def _generated(
        self, kind: ExternType, space: str, define: Callable[[ModuleBuilder], int]
    ) -> FromNamespace:
        build = ModuleBuilder()
        build.export(MADE, space, define(build))
        program, name = self.reach.program, f"{kind} of the host"
        code = program.compiler.compile(build.build(), name)
        number = self.reach.next_number(name)
        self.reach.perform(Instantiate(number, code, name, ()))
        return FromNamespace(instance_namespace(number), MADE)

    # what was given for an import

    def for_import(self, value: Any, entry: Import, want: LinkType, importer: str, provider: str) -> External:
        """Return an external for what a user gave: an external, a function of `dlsym`, a Python function or a number.

        Raises:
            ImportTypeError: it is of another kind, or no value of the import's type.
            LinkerUsageError: it is none of these, or of another program.
        """
        if isinstance(value, External):
            return self._own(value)
        label = f"{shown(entry.module)}.{shown(entry.name)}"
        if isinstance(value, HostFunction):
            if isinstance(want.type, FuncType) and not LinkType.of_host(value.type).fits(want):
                raise ImportTypeError(importer, label, str(want.type), f"function {value.type}", provider)
            value = value.function
        if isinstance(want.type, GlobalType) and not callable(value):
            return self._number(value, want.type, importer, label, provider)
        if not callable(value):
            shown_value = f"the number {value}" if isinstance(value, (int, float)) else f"{value!r}"
            raise ImportTypeError(importer, label, str(want.type), shown_value, provider)
        if not isinstance(want.type, FuncType):
            raise ImportTypeError(importer, label, str(want.type), "a function", provider)
        module, symbol = getattr(value, "module", None), getattr(value, "name", None)
        if isinstance(module, int) and hasattr(value, "address"):
            return self._of_library(value, module, str(symbol), want, importer)
        made = self.function(want.plain(), value)
        return Function(self.reach, want, made.source)

    def _own(self, external: External) -> External:
        if external.belongs_to(self.reach):
            return external
        if isinstance(external, Memory) and external.shared is not None:
            return self.adopted(external)
        raise LinkerUsageError(
            f"{external!r} is of another program; only shared memories can be imported by several"
        )

    def _number(self, value: Any, kind: GlobalType, importer: str, label: str, provider: str) -> Global:
        if not isinstance(value, (int, float, bytes)) or (
            isinstance(value, float) and kind.value in ("i32", "i64")
        ):
            raise ImportTypeError(importer, label, str(kind), repr(value), provider)
        try:
            return self.global_(kind, value)
        except ValueConversionError as error:
            raise ImportTypeError(importer, label, str(kind), repr(value), provider) from error

    def _of_library(self, function: Any, handle: int, name: str, want: LinkType, importer: str) -> Function:
        """Return the object for a library's function; the library stays loaded from here on, since instances cannot go."""
        program, kind = self.reach.program, LinkType.of_host(function.type)
        with program.rendezvous.instigate(self.reach.group().replica):
            module = program.state.modules.get(ModuleHandle(handle))
            if module is None or module.closing:
                raise LinkerUsageError(f"{function!r} is gone: its library was closed")
            if not kind.fits(want):
                raise ImportTypeError(
                    importer, name, str(want.type), f"function {function.type}", module.name
                )
            module.stays = True
        return self.importable(FromNamespace(module_namespace(module.seat), name), kind)


def signature(given: FuncType | str) -> FuncType:
    """Return the signature that a text or `FuncType` stands for.

    Raises:
        LinkerUsageError: the text is none.
    """
    return given if isinstance(given, FuncType) else parse_signature(given, references=True)


def limits(minimum: int, maximum: int | None, *, shared: bool = False, is64: bool = False) -> Limits:
    """Return limits.

    Raises:
        LinkerUsageError: one of them is of another type.
    """
    taken(whole, minimum, "minimum")
    taken(optional(whole), maximum, "maximum")
    taken(flag, shared, "shared")
    taken(flag, is64, "is64")
    return Limits(minimum, maximum, shared, is64)


def _check_limits(what: str, given: Limits, most: int) -> None:
    top = most if given.maximum is None else given.maximum
    if not 0 <= given.minimum <= top <= most:
        raise LinkerUsageError(
            f"{what} of {given.minimum} to {top} is outside 0 <= minimum <= maximum <= {most}"
        )
