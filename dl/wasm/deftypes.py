"""Defined types that compare across modules: recursion groups, supertypes, and references to them.

Core specification 3.0, sections 3.1.2 (rolling and unrolling) and 3.3 (matching). Two defined types are the same if their
recursion groups have the same shape and they stand at the same place in them. So a type is known by the digest of its group,
in which a reference to an earlier type is written as that type's own digest, and one into the group as a position. What a
module of any size costs is linear in its type section, and a comparison is one of two digests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dl.digests import sha256
from dl.records import dataclass, field
from dl.wasm.reader import Reader
from dl.wasm.records import SECTION_TYPE
from dl.wasm.types import FuncType, ValType

if TYPE_CHECKING:
    from dl.wasm.module import WasmModule

MOST_ABOVE = 63
"""Types in a line above one (WebAssembly JavaScript interface, limits), so that a comparison is short."""

_GROUP, _SUB, _SUB_FINAL = 0x4E, 0x50, 0x4F
_FUNC, _STRUCT, _ARRAY, _CONT = 0x60, 0x5F, 0x5E, 0x5D
_FORMS = {_FUNC: "func", _STRUCT: "struct", _ARRAY: "array", _CONT: "cont"}
_DERIVED = "defined types"


@dataclass(frozen=True)
class DefinedType:
    """One type of a module, or of the host.

    Attributes:
        group: digest of its recursion group.
        position: its place in the group.
        form: "func", "struct", "array" or "cont".
        supertype: what it is declared to be a subtype of.
        depth: how many types are above it, at most `MOST_ABOVE`.
    """

    group: bytes
    position: int
    form: str = field(compare=False)
    supertype: DefinedType | None = field(compare=False, default=None)
    depth: int = field(compare=False, default=0)

    def matches(self, other: DefinedType) -> bool:
        """Whether this is a subtype of another type, or the same."""
        one: DefinedType | None = self
        # A type is declared before its subtypes, and few are above one, so there is an end.
        while one is not None:
            if one == other:
                return True
            one = one.supertype
        return False


def function_type_of_host(kind: FuncType) -> DefinedType:
    """Return the defined type of a function that no module declares: final, in a group of its own, without type indices."""
    shape = repr([("final", (), ("func", kind.params, kind.results))])
    return DefinedType(sha256(shape.encode()), 0, "func")


def defined_types(module: WasmModule) -> tuple[DefinedType, ...]:
    """Return a module's type index space, as types that compare with those of other modules.

    Raises:
        MalformedModuleError: the type section is none.
    """
    known: tuple[DefinedType, ...] | None = module.derived.get(_DERIVED)
    if known is None:
        known = module.derived[_DERIVED] = tuple(_read(module))
    return known


def _read(module: WasmModule) -> list[DefinedType]:
    section = module.section(SECTION_TYPE)
    types: list[DefinedType] = []
    if section is None:
        return types
    reader = Reader(module.data, section.payload_start, section.end, module.name)
    for _ in range(reader.count("types", item_bytes=2)):
        count = 1
        if reader.pos < reader.end and reader.data[reader.pos] == _GROUP:
            reader.pos += 1
            count = reader.count("types of a recursion group", item_bytes=2)
        start = len(types)
        entries = [_entry(reader, types, start + i, start, count) for i in range(count)]
        digest = sha256(repr([shape for shape, _, _ in entries]).encode())
        for position, (_, form, above) in enumerate(entries):
            supertype = None if above is None else types[above]
            depth = 0 if supertype is None else supertype.depth + 1
            if depth > MOST_ABOVE:
                raise reader.malformed(f"a type has more than {MOST_ABOVE} others above it")
            types.append(DefinedType(digest, position, form, supertype, depth))
    return types


_Shape = tuple[str, tuple[object, ...], tuple[object, ...]]


def _entry(
    reader: Reader, types: list[DefinedType], own: int, start: int, count: int
) -> tuple[_Shape, str, int | None]:
    """Take one type of a group; return its shape, its form and the index of its supertype.

    Args:
        reader: over the type section.
        types: the types of earlier groups.
        own: the type's own index.
        start: the index of the first of its group.
        count: how many its group has.
    """
    at = reader.pos
    position = at
    code = reader.byte("a type")
    finality, supers = "final", list[int]()
    if code in (_SUB, _SUB_FINAL):
        finality = "open" if code == _SUB else "final"
        supers = [reader.u32("a supertype's index") for _ in range(reader.count("supertypes"))]
        if len(supers) > 1:
            raise reader.malformed(f"a type has {len(supers)} supertypes, where one may be", at)
        position = reader.pos
        code = reader.byte("a type")
    if any(index >= own for index in supers):
        raise reader.malformed("a supertype is not declared before its subtype", at)

    def named(index: int) -> object:
        if index >= start + count:
            raise reader.malformed(f"type {index} is out of range", at)
        return index - start if index >= start else (types[index].group.hex(), types[index].position)

    def value() -> object:
        text = reader.value_type("a type")
        index = type_index(text)
        if index is None:
            return text
        return text.partition(str(index))[0], named(index)

    def stored() -> object:
        packed = reader.pos < reader.end and reader.data[reader.pos] in (0x77, 0x78)
        kind = reader.byte("a field") if packed else value()
        return kind, reader.byte("a field's mutability")

    body: tuple[object, ...]
    if code == _FUNC:
        params = tuple(value() for _ in range(reader.count("parameters")))
        body = "func", params, tuple(value() for _ in range(reader.count("results")))
    elif code == _STRUCT:
        body = "struct", tuple(stored() for _ in range(reader.count("fields", item_bytes=2)))
    elif code == _ARRAY:
        body = "array", stored()
    elif code == _CONT:
        heap = reader.heap_type()
        body = "cont", named(int(heap)) if heap.isdigit() else heap
    else:
        raise reader.malformed(f"a type begins with {code:#04x}", position)
    return (
        (finality, tuple(named(index) for index in supers), body),
        _FORMS[code],
        supers[0] if supers else None,
    )


def type_index(text: ValType) -> int | None:
    """Return the type index in a value type's text, such as 5 of `(ref null 5)`; None if it has none."""
    last = text.rstrip(")").rpartition(" ")[2]
    return int(last) if text.startswith("(ref") and last.isdigit() else None
