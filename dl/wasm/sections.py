"""Decoders of single sections: each takes a Reader that spans one section's contents.

Core specification 3.0, section 5.5 (modules); type definitions from section 5.3. The two long lists of a real
library, exports and globals, have a quick path for entries of the common shape; any other entry, and the
last few of a section, go through Reader's checked reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dl.records import NamedTuple
from dl.wasm.const_expr import ConstExpr, evaluate
from dl.wasm.reader import MAX_ITEMS, Reader
from dl.wasm.records import KINDS, ElementSegment, Export, Global
from dl.wasm.types import ExternType, FuncType, MemoryType, TableType, TagType

_MAX_PARAMS = 1000
_MAX_TABLES = 100_000
_MAX_ELEMENTS = 10_000_000

_COMPACT_TYPED, _COMPACT_ONE_TYPE = 0x7F, 0x7E

# What an entry of the quick path can take at most: a short name and an index of two bytes; an i32.const.
_QUICK_EXPORT_BYTES = 1 + 127 + 1 + 2
_QUICK_GLOBAL_BYTES = 2 + 1 + 5 + 1


def read_types(reader: Reader) -> list[FuncType | None]:
    """Read the type section: function types, None for the others of the GC proposal."""
    types: list[FuncType | None] = []
    for _ in range(reader.count("types", item_bytes=2)):
        if reader.pos < reader.end and reader.data[reader.pos] == 0x4E:
            reader.pos += 1
            count = reader.count("types of a recursion group", item_bytes=2)
            types.extend(_sub_type(reader) for _ in range(count))
        else:
            types.append(_sub_type(reader))
    return types


def _sub_type(reader: Reader) -> FuncType | None:
    start = reader.pos
    code = reader.byte("a type")
    if code in (0x50, 0x4F):
        for _ in range(reader.count("supertypes")):
            reader.u32("a supertype's index")
        start = reader.pos
        code = reader.byte("a type")
    if code == 0x60:
        params = _value_types(reader, "parameters")
        return FuncType(params, _value_types(reader, "results"))
    if code == 0x5F:
        for _ in range(reader.count("fields", item_bytes=2)):
            _field_type(reader)
    elif code == 0x5E:
        _field_type(reader)
    elif code == 0x5D:
        reader.heap_type()
    elif code in (0x65, 0x4D, 0x4C):
        raise reader.unsupported("a shared or described type", start)
    else:
        raise reader.malformed(f"a type begins with {code:#04x}", start)
    return None


def _value_types(reader: Reader, what: str) -> tuple[str, ...]:
    count = reader.count(what, _MAX_PARAMS)
    return tuple([reader.value_type("a function type") for _ in range(count)])


def _field_type(reader: Reader) -> None:
    if reader.pos < reader.end and reader.data[reader.pos] in (0x77, 0x78):
        reader.pos += 1
    else:
        reader.value_type("a field")
    if reader.byte("a field's mutability") > 1:
        raise reader.malformed("a field's mutability is not 0 or 1", reader.pos - 1)


class ImportEntry(NamedTuple):
    """One import, with where its type (from the kind byte on) and its name (from the length on) stand in the data."""

    module: str
    name: str
    kind: int
    type: ExternType
    type_start: int
    type_end: int
    name_start: int
    name_end: int


def walk_imports(reader: Reader, types: Sequence[FuncType | None]) -> Iterator[ImportEntry]:
    """Walk the import section, in its plain and its compact form."""
    names: dict[bytes, str] = {}
    data = reader.data
    total = 0
    for _ in range(reader.count("imports", item_bytes=4)):
        # Nearly all imports are of `env` and the GOT modules: decode each such name once.
        start = reader.pos
        key = data[start : start + 1 + data[start]] if start < reader.end and data[start] < 0x80 else b""
        known = names.get(key)
        if known is None:
            module = reader.name("an import's module name")
            if key and len(names) < 64:
                names[key] = module
        else:
            module = known
            reader.skip(len(key), "an import's module name")
        name_start = reader.pos
        name = reader.name("an import's name")
        form = data[reader.pos] if not name and reader.pos < reader.end else 0
        if form in (_COMPACT_TYPED, _COMPACT_ONE_TYPE):
            reader.pos += 1
            for entry in _compact_imports(reader, types, module, one_type=form == _COMPACT_ONE_TYPE):
                total += 1
                yield entry
        else:
            total += 1
            type_start = reader.pos
            kind, found = _extern_type(reader, types)
            yield ImportEntry(module, name, kind, found, type_start, reader.pos, name_start, type_start)
        if total > MAX_ITEMS:
            raise reader.malformed(f"more than {MAX_ITEMS} imports", start)


def _compact_imports(
    reader: Reader, types: Sequence[FuncType | None], module: str, *, one_type: bool
) -> Iterator[ImportEntry]:
    """Walk one group of the compact-import-section proposal: imports of one module, maybe of one type."""
    type_start = reader.pos
    if one_type:
        kind, found = _extern_type(reader, types)
        type_end = reader.pos
        for _ in range(reader.count("imports of one type")):
            name_start = reader.pos
            name = reader.name("an import's name")
            yield ImportEntry(module, name, kind, found, type_start, type_end, name_start, reader.pos)
        return
    for _ in range(reader.count("imports of one module", item_bytes=3)):
        name_start = reader.pos
        name = reader.name("an import's name")
        type_start = reader.pos
        kind, found = _extern_type(reader, types)
        yield ImportEntry(module, name, kind, found, type_start, reader.pos, name_start, type_start)


def _extern_type(reader: Reader, types: Sequence[FuncType | None]) -> tuple[int, ExternType]:
    start = reader.pos
    kind = reader.byte("an import's kind")
    if kind == 0:
        return kind, function_type(reader, types)
    if kind == 3:
        return kind, reader.global_type()
    if kind == 1:
        return kind, reader.table_type()
    if kind == 2:
        return kind, reader.memory_type()
    if kind == 4:
        return kind, tag_type(reader, types)
    if kind == 0x20:
        raise reader.unsupported("an import of one exact function type", start)
    raise reader.malformed(f"an import has no kind of code {kind:#04x}", start)


def function_type(reader: Reader, types: Sequence[FuncType | None]) -> FuncType:
    """Take a type index that must name a function type."""
    start = reader.pos
    index = reader.u32("a type's index")
    found = types[index] if index < len(types) else None
    if found is None:
        raise reader.malformed(_no_function_type(index, types), start)
    return found


def _no_function_type(index: int, types: Sequence[FuncType | None]) -> str:
    if index < len(types):
        return f"type {index} is not a function type"
    return f"type {index} is out of range: there are {len(types)}"


def tag_type(reader: Reader, types: Sequence[FuncType | None]) -> TagType:
    """Take the type of an exception tag."""
    attribute = reader.byte("a tag's attribute")
    if attribute != 0:
        raise reader.malformed(f"a tag's attribute is {attribute:#04x}, not 0", reader.pos - 1)
    return TagType(function_type(reader, types))


def read_functions(reader: Reader, types: Sequence[FuncType | None]) -> list[FuncType]:
    """Read the function section: the types of the functions that the module defines."""
    start = reader.pos
    indices = reader.u32_vector(reader.count("functions"), "a type's index")
    found: list[FuncType] = []
    try:
        found = [kind for index in indices if (kind := types[index]) is not None]
    except IndexError:
        bad = next(index for index in indices if index >= len(types))
        raise reader.malformed(_no_function_type(bad, types), start) from None
    if len(found) != len(indices):
        bad = next(index for index in indices if types[index] is None)
        raise reader.malformed(_no_function_type(bad, types), start)
    return found


def read_tables(reader: Reader) -> list[TableType]:
    """Read the table section; a table's initial value is stepped over."""
    tables: list[TableType] = []
    for _ in range(reader.count("tables", _MAX_TABLES, item_bytes=3)):
        has_value = reader.data[reader.pos : reader.pos + 2] == b"\x40\x00"
        if has_value:
            reader.skip(2, "a table")
        tables.append(reader.table_type())
        if has_value:
            reader.const_expr()
    return tables


def read_memories(reader: Reader) -> list[MemoryType]:
    """Read the memory section."""
    return [reader.memory_type() for _ in range(reader.count("memories", _MAX_TABLES, item_bytes=2))]


def read_tags(reader: Reader, types: Sequence[FuncType | None]) -> list[TagType]:
    """Read the tag section."""
    return [tag_type(reader, types) for _ in range(reader.count("tags", item_bytes=2))]


def read_globals(reader: Reader) -> list[Global]:
    """Read the global section."""
    found: list[Global] = []
    data = reader.data
    quick_end = reader.end - _QUICK_GLOBAL_BYTES
    for _ in range(reader.count("globals", item_bytes=3)):
        kind = reader.global_type()
        pos = reader.pos
        if pos < quick_end and data[pos] == 0x41:
            # A data symbol: `i32.const` of one to three bytes, then `end`.
            value, last = data[pos + 1], pos + 2
            if value < 0x80:
                value -= (value & 0x40) << 1
            elif data[last] < 0x80:
                value = (value & 0x7F | data[last] << 7) - ((data[last] & 0x40) << 8)
                last += 1
            else:
                third = data[last + 1]
                value = (value & 0x7F | (data[last] & 0x7F) << 7 | third << 14) - ((third & 0x40) << 15)
                # A fourth byte must not be taken for `end`: let the checked path read it.
                last = last + 2 if third < 0x80 else pos
            if data[last] == 0x0B:
                reader.pos = last + 1
                found.append(Global(kind, (("i32.const", value),)))
                continue
        found.append(Global(kind, reader.const_expr()))
    return found


def read_exports(reader: Reader, spaces: Sequence[Sequence[ExternType]]) -> dict[str, Export]:
    """Read the export section.

    Args:
        reader: over the section.
        spaces: types of everything that can be exported, by kind's code, then by index.
    """
    exports: dict[str, Export] = {}
    data = reader.data
    quick_end = reader.end - _QUICK_EXPORT_BYTES
    count = reader.count("exports", item_bytes=3)
    pos = reader.pos
    for number in range(count):
        start = pos
        try:
            if pos < quick_end and (name_end := pos + 1 + data[pos]) <= pos + 128:
                name = data[pos + 1 : name_end].decode()
                kind = data[name_end]
                index = data[name_end + 1]
                pos = name_end + 2
                if index >= 0x80:
                    index += data[pos] - 1 << 7
                    pos += 1
            else:
                index = 1 << 40
            if index >= 0x4000:
                # More than two bytes, or the end of the section: start this entry again, with all checks.
                reader.pos = start
                name = reader.name("an export's name")
                kind = reader.byte("an export's kind")
                index = reader.u32("an export's index")
                pos = reader.pos
            export = Export(name, KINDS[kind], index, spaces[kind][index])
        except UnicodeDecodeError as error:
            raise reader.malformed("an export's name is not valid UTF-8", start + 1 + error.start) from None
        except IndexError:
            if kind >= len(KINDS):
                reason = f"export {name!r} has no kind of code {kind:#04x}"
            else:
                reason = (
                    f"export {name!r}: {KINDS[kind]} {index} is out of range: there are {len(spaces[kind])}"
                )
            raise reader.malformed(reason, start) from None
        exports[name] = export
        if len(exports) == number:
            raise reader.malformed(f"export {name!r} appears twice", start)
    reader.pos = pos
    return exports


def read_elements(reader: Reader, functions: int, tables: int) -> list[ElementSegment]:
    """Read the element section.

    Args:
        reader: over the section.
        functions: how many functions there are, imported ones included.
        tables: how many tables there are, imported ones included.
    """
    segments: list[ElementSegment] = []
    for _ in range(reader.count("element segments", item_bytes=3)):
        start = reader.pos
        flags = reader.u32("an element segment's flags")
        if flags > 7:
            raise reader.malformed(f"an element segment has unknown flags {flags:#x}", start)
        table, offset = 0, None
        if not flags & 1:
            if flags & 2:
                table = reader.u32("a table's index")
            if table >= tables:
                raise reader.malformed(f"table {table} is out of range: there are {tables}", start)
            offset = reader.const_expr()
            mode = "active"
        else:
            mode = "declarative" if flags & 2 else "passive"
        if flags & 3:
            if flags & 4:
                reader.reference_type("an element segment")
            elif (kind := reader.byte("an element segment's kind")) != 0:
                raise reader.malformed(f"an element segment has unknown kind {kind:#04x}", reader.pos - 1)
        items: list[int | None]
        if flags & 4:
            count = reader.count("elements", _MAX_ELEMENTS, item_bytes=2)
            items = [evaluate_reference(reader.const_expr()) for _ in range(count)]
        else:
            items = list(reader.u32_vector(reader.count("elements", _MAX_ELEMENTS), "a function's index"))
        worst = max((item for item in items if item is not None), default=-1)
        if worst >= functions:
            raise reader.malformed(f"function {worst} is out of range: there are {functions}", start)
        segments.append(ElementSegment(mode, table, offset, tuple(items)))
    return segments


def evaluate_reference(expr: ConstExpr) -> int | None:
    """Give the function that an element expression refers to, None for null and for what is not known."""
    return evaluate(expr) if expr and expr[0][0] == "ref.func" else None
