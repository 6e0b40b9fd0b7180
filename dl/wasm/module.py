"""Parse a WebAssembly binary as far as a linker must know it: its outside, not its code.

Function bodies and data are stepped over, never copied or decoded; the file's bytes are kept once, and every
section's place in them. Core specification 3.0, section 5.5 (modules).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dl.errors import DylinkError, MalformedModuleError
from dl.records import dataclass, field, fields
from dl.wasm import sections as read
from dl.wasm.const_expr import ConstExpr, evaluate
from dl.wasm.dylink import LEGACY_SECTION_NAME, SECTION_NAME, DylinkInfo, parse_dylink
from dl.wasm.framing import SECTION_NAMES, check_header, split_sections
from dl.wasm.reader import Reader
from dl.wasm.records import (
    KINDS,
    SECTION_CODE,
    SECTION_CUSTOM,
    SECTION_DATA,
    SECTION_DATA_COUNT,
    SECTION_ELEMENT,
    SECTION_EXPORT,
    SECTION_FUNCTION,
    SECTION_GLOBAL,
    SECTION_IMPORT,
    SECTION_MEMORY,
    SECTION_START,
    SECTION_TABLE,
    SECTION_TAG,
    SECTION_TYPE,
    ElementSegment,
    Export,
    Global,
    Import,
    Section,
)
from dl.wasm.types import ExternType, FuncType, GlobalType, MemoryType, TableType, TagType

__all__ = [
    "ConstExpr",
    "ElementSegment",
    "Export",
    "Global",
    "Import",
    "Section",
    "WasmModule",
    "evaluate",
    "parse_module",
]

_WHOLE = "all of it"
"""Key in `WasmModule.derived` of the module as it was parsed, once something of it was asked for that was not known."""

# Of the sections whose contents are stepped over, only the count in front was read.
_STEPPED_OVER = (SECTION_CODE, SECTION_DATA)


@dataclass(frozen=True, slots=True, eq=False)
class WasmModule:
    """A parsed module.

    `functions`, `tables`, `memories`, `globals` and `tags` are whole index spaces: imported entries first, so that
    the index of an import or export fits as it is.

    Attributes:
        name: name given by the caller, used in errors.
        data: the whole file.
        sections: all sections in file order.
        types: the type index space; None where a type is not a function type.
        imports: imports in file order.
        exports: exports by name, in file order.
        import_counts: how many imports there are of each kind ("func", "table", "memory", "global", "tag").
        functions: types of all functions.
        tables: types of all tables.
        memories: types of all memories.
        globals: all globals.
        tags: types of all exception tags.
        start: index of the start function, None without one.
        elements: element segments in order.
        data_segments: number of data segments.
        code_start: file offset of the code section's contents, 0 without one.
        code_end: file offset behind the code section, 0 without one.
        dylink: what the dylink section says, None without one.
        module_name: the module's own name in its `name` section, None without one.
        derived: what others have computed from it, by their own keys: each value is the same whoever computes it.
        whole: parses what is not known yet, see `partly`; None if all is.
    """

    name: str
    data: bytes = field(repr=False)
    sections: tuple[Section, ...] = field(repr=False)
    types: tuple[FuncType | None, ...] = field(repr=False)
    imports: tuple[Import, ...] = field(repr=False)
    exports: dict[str, Export] = field(repr=False)
    import_counts: dict[str, int]
    functions: tuple[FuncType, ...] = field(repr=False)
    tables: tuple[TableType, ...]
    memories: tuple[MemoryType, ...]
    globals: tuple[Global, ...] = field(repr=False)
    tags: tuple[TagType, ...]
    start: int | None
    elements: tuple[ElementSegment, ...] = field(repr=False)
    data_segments: int
    code_start: int
    code_end: int
    dylink: DylinkInfo | None = field(repr=False)
    module_name: str | None
    derived: dict[str, Any] = field(default_factory=dict, repr=False)
    whole: Callable[[], WasmModule] | None = field(default=None, repr=False)

    @classmethod
    def partly(cls, whole: Callable[[], WasmModule], **known: Any) -> WasmModule:
        """Make a module of which some attributes are known; the others are found when one of them is asked for.

        Args:
            whole: returns the module with all of them. Any thread may call it, and more than one at once.
            known: attributes, the same that it will have. `derived` may be among them.
        """
        module = cls.__new__(cls)
        for name, value in {"derived": {}, **known, "whole": whole}.items():
            object.__setattr__(module, name, value)
        return module

    if not TYPE_CHECKING:  # a name that is wrong is to be found

        def __getattr__(self, name):
            if name == "whole" or name not in self.__slots__ or self.whole is None:
                raise AttributeError(name)
            # Of two threads that come here at once, both take what the first one has found.
            found = self.derived.get(_WHOLE) or self.derived.setdefault(_WHOLE, self.whole())
            return getattr(found, name)

    def func_type(self, index: int) -> FuncType:
        """Give a function's type.

        Raises:
            IndexError: there is no such function.
        """
        return self.functions[index]

    def section(self, number: int) -> Section | None:
        """Find the section of that id (not for custom sections), None without one."""
        return next((section for section in self.sections if section.id == number), None)

    def custom_sections(self, name: str) -> list[Section]:
        """Find all custom sections of that name, in file order."""
        return [section for section in self.sections if section.id == SECTION_CUSTOM and section.name == name]


PARSED_ATTRIBUTES = tuple(each.name for each in fields(WasmModule) if each.name not in ("derived", "whole"))
"""Names of the attributes that are found by parsing."""


def parse_module(data: bytes, name: str) -> WasmModule:
    """Parse a WebAssembly module.

    Lengths, names, indices and section order are checked; function bodies and data are not looked into.

    Args:
        data: the whole file.
        name: name of the module for errors, for example its path.

    Raises:
        MalformedModuleError: the bytes are not a valid module; says where, and what they look like.
        DylinkError: its dylink section is corrupt.
        UnsupportedModuleError: a component, or a feature that cannot be linked.
    """
    data = bytes(data)
    check_header(data, name)
    sections = split_sections(data, name)
    readers = {
        section.id: Reader(data, section.payload_start, section.end, name)
        for section in sections
        if section.id != SECTION_CUSTOM
    }

    def reader(number: int) -> Reader:
        # An absent section reads as an empty vector.
        return readers.get(number) or Reader(b"\0", 0, 1, name)

    types = read.read_types(reader(SECTION_TYPE))
    functions: list[FuncType] = []
    tables: list[TableType] = []
    memories: list[MemoryType] = []
    all_globals: list[Global] = []
    tags: list[TagType] = []
    imports: list[Import] = []
    for entry in read.walk_imports(reader(SECTION_IMPORT), types):
        kind = entry.type
        if isinstance(kind, FuncType):
            functions.append(kind)
            index = len(functions) - 1
        elif isinstance(kind, GlobalType):
            all_globals.append(Global(kind, None))
            index = len(all_globals) - 1
        elif isinstance(kind, TableType):
            tables.append(kind)
            index = len(tables) - 1
        elif isinstance(kind, MemoryType):
            memories.append(kind)
            index = len(memories) - 1
        else:
            tags.append(kind)
            index = len(tags) - 1
        imports.append(Import(entry.module, entry.name, KINDS[entry.kind], kind, index))
    imported = (len(functions), len(tables), len(memories), len(all_globals), len(tags))

    functions += read.read_functions(reader(SECTION_FUNCTION), types)
    tables += read.read_tables(reader(SECTION_TABLE))
    memories += read.read_memories(reader(SECTION_MEMORY))
    tags += read.read_tags(reader(SECTION_TAG), types)
    all_globals += read.read_globals(reader(SECTION_GLOBAL))
    global_types = [entry.type for entry in all_globals]
    spaces: list[Sequence[ExternType]] = [functions, tables, memories, global_types, tags]
    exports = read.read_exports(reader(SECTION_EXPORT), spaces)
    start = _start(readers.get(SECTION_START), len(functions))
    elements = read.read_elements(reader(SECTION_ELEMENT), len(functions), len(tables))
    data_segments = _check_counts(readers, len(functions) - imported[0], name, len(data))
    for number, section_reader in readers.items():
        if number not in _STEPPED_OVER and section_reader.pos != section_reader.end:
            left = section_reader.end - section_reader.pos
            raise section_reader.malformed(f"{left} bytes left over in the {SECTION_NAMES[number]} section")
    code = next((section for section in sections if section.id == SECTION_CODE), None)
    return WasmModule(
        name=name,
        data=data,
        sections=tuple(sections),
        types=tuple(types),
        imports=tuple(imports),
        exports=exports,
        import_counts=dict(zip(KINDS, imported, strict=True)),
        functions=tuple(functions),
        tables=tuple(tables),
        memories=tuple(memories),
        globals=tuple(all_globals),
        tags=tuple(tags),
        start=start,
        elements=tuple(elements),
        data_segments=data_segments,
        code_start=code.payload_start if code else 0,
        code_end=code.end if code else 0,
        dylink=_dylink(data, sections, name),
        module_name=_module_name(data, sections, name),
    )


def _start(reader: Reader | None, functions: int) -> int | None:
    if reader is None:
        return None
    at = reader.pos
    index = reader.u32("the start function's index")
    if index >= functions:
        raise reader.malformed(f"start function {index} is out of range: there are {functions}", at)
    return index


def _check_counts(readers: Mapping[int, Reader], functions: int, name: str, size: int) -> int:
    """Compare the counts that must agree across sections; give the number of data segments."""
    bodies, at = 0, size
    if code := readers.get(SECTION_CODE):
        at = code.pos
        bodies = code.count("function bodies", item_bytes=2)
    if bodies != functions:
        raise MalformedModuleError(name, at, f"{bodies} function bodies for {functions} functions")
    data = readers.get(SECTION_DATA)
    segments = data.count("data segments", item_bytes=2) if data else 0
    if announced := readers.get(SECTION_DATA_COUNT):
        at = announced.pos
        count = announced.u32("the number of data segments")
        if count != segments:
            raise announced.malformed(f"{count} data segments announced, but there are {segments}", at)
    return segments


def _dylink(data: bytes, sections: Sequence[Section], name: str) -> DylinkInfo | None:
    found = [
        section
        for section in sections
        if section.id == SECTION_CUSTOM and section.name in (SECTION_NAME, LEGACY_SECTION_NAME)
    ]
    if not found:
        return None
    if len(found) > 1:
        raise DylinkError(name, found[1].start, f"a second dylink section, {found[1].name!r}")
    section = found[0]
    payload = data[section.payload_start : section.end]
    return parse_dylink(payload, name, section.payload_start, legacy=section.name == LEGACY_SECTION_NAME)


def _module_name(data: bytes, sections: Sequence[Section], name: str) -> str | None:
    """Read subsection 0 of the `name` section; a malformed one counts as absent (core specification, A.3)."""
    for section in sections:
        if section.id == SECTION_CUSTOM and section.name == "name":
            reader = Reader(data, section.payload_start, section.end, name)
            try:
                if reader.pos < reader.end and reader.byte("a subsection") == 0:
                    reader.u32("a subsection's length")
                    return reader.name("the module's name")
            except MalformedModuleError:
                return None
    return None
