"""When an external value fits an import: the one place that knows.

Core specification 3.0, section 3.3 (matching) and 4.5.3 (external typing). Every kind of load asks here: libraries, modules
that are linked by import name, lists of externals.

* A function fits if its type is the import's or declared a subtype of it; a tag, if its type is the import's.
* A global that cannot change may be of a subtype; one that can must be of the same type.
* A memory or table fits if it is at least as large *now* as the import's minimum, and cannot grow beyond its maximum; the
  width of its addresses, whether it is shared, and the type of a table's elements must be the same.
"""

from __future__ import annotations

from typing import TypeAlias

from dl.records import dataclass
from dl.wasm.deftypes import DefinedType, defined_types, function_type_of_host, type_index
from dl.wasm.module import WasmModule
from dl.wasm.reader import Reader
from dl.wasm.records import SECTION_FUNCTION, SECTION_IMPORT, SECTION_TAG, Export, Import
from dl.wasm.sections import walk_imports
from dl.wasm.types import ExternType, FuncType, GlobalType, Limits, MemoryType, TableType, TagType, ValType

_IMPORTS, _BY_IMPORT, _FUNCTIONS, _TAGS = "import types", "types by import", "function types", "tag types"

_ABBREVIATIONS = {
    "funcref": "func",
    "externref": "extern",
    "anyref": "any",
    "eqref": "eq",
    "i31ref": "i31",
    "structref": "struct",
    "arrayref": "array",
    "exnref": "exn",
    "contref": "cont",
    "nullfuncref": "nofunc",
    "nullexternref": "noextern",
    "nullref": "none",
    "nullexnref": "noexn",
    "nullcontref": "nocont",
}
_ABOVE = {"i31": "eq", "struct": "eq", "array": "eq", "eq": "any"}
"""The next abstract heap type above one, of those that have one."""

_BOTTOMS = {"nofunc": "func", "noextern": "extern", "none": "any", "noexn": "exn", "nocont": "cont"}
"""The heap types that only null has, by the top of their hierarchy."""

_TOP_REFERENCES = {
    "func": "funcref",
    "extern": "externref",
    "any": "anyref",
    "exn": "exnref",
    "cont": "contref",
}

Heap: TypeAlias = "str | DefinedType"


@dataclass(frozen=True)
class Reference:
    """A reference type.

    Attributes:
        nullable: whether null is one of its values.
        heap: what it refers to: the name of an abstract heap type, or a defined type.
    """

    nullable: bool
    heap: Heap


def reference(text: ValType, types: tuple[DefinedType, ...]) -> Reference | None:
    """Return the reference type that a text stands for; None for a number or vector.

    Args:
        text: see `dl.wasm.types`.
        types: the type index space that indices in it mean.
    """
    heap = _ABBREVIATIONS.get(text)
    if heap is not None:
        return Reference(nullable=True, heap=heap)
    if not text.startswith("(ref"):
        return None
    index = type_index(text)
    name = text[:-1].rpartition(" ")[2]
    return Reference(text.startswith("(ref null"), name if index is None else types[index])


def _top(heap: Heap) -> str:
    if isinstance(heap, DefinedType):
        return heap.form if heap.form in ("func", "cont") else "any"
    heap = _BOTTOMS.get(heap, heap)
    while heap in _ABOVE:
        heap = _ABOVE[heap]
    return heap


def _heap_matches(have: Heap, want: Heap) -> bool:
    if have == want:
        return True
    if isinstance(have, DefinedType):
        return have.matches(want) if isinstance(want, DefinedType) else _heap_matches(have.form, want)
    if have in _BOTTOMS:
        return want not in _BOTTOMS and _BOTTOMS[have] == _top(want)
    return have in _ABOVE and _heap_matches(_ABOVE[have], want)


@dataclass(frozen=True)
class LinkType:
    """The type of an import, or of an external value, with what its type indices mean.

    Attributes:
        type: the type, as messages show it.
        types: the type index space of the module that it is from.
        defined: of a function or tag, its defined type.
    """

    type: ExternType
    types: tuple[DefinedType, ...] = ()
    defined: DefinedType | None = None

    @classmethod
    def of_host(cls, kind: ExternType) -> LinkType:
        """Return the type of something that the host makes; it has no type indices."""
        function = kind if isinstance(kind, FuncType) else kind.type if isinstance(kind, TagType) else None
        return cls(kind, (), None if function is None else function_type_of_host(function))

    def fits(self, want: LinkType) -> bool:
        """Whether an external value of this type can be given for an import of another."""
        have, asked = self.type, want.type
        match have, asked:
            case FuncType(), FuncType():
                assert self.defined is not None
                assert want.defined is not None
                return self.defined.matches(want.defined)
            case TagType(), TagType():
                return self.defined == want.defined
            case GlobalType(), GlobalType():
                return have.mutable == asked.mutable and (
                    value_fits(have.value, asked.value, self.types, want.types)
                    and (not asked.mutable or value_fits(asked.value, have.value, want.types, self.types))
                )
            case TableType(), TableType():
                return limits_fit(have.limits, asked.limits) and (
                    value_fits(have.element, asked.element, self.types, want.types)
                    and value_fits(asked.element, have.element, want.types, self.types)
                )
            case MemoryType(), MemoryType():
                return limits_fit(have.limits, asked.limits)
        return False

    def plain(self) -> FuncType:
        """Return a function's signature without type indices: each reference as the top of its hierarchy."""
        kind = self.type.type if isinstance(self.type, TagType) else self.type
        assert isinstance(kind, FuncType)
        if not kind.references():
            return kind
        return FuncType(
            tuple(self.plain_value(text) for text in kind.params),
            tuple(self.plain_value(text) for text in kind.results),
        )

    def plain_value(self, text: ValType) -> ValType:
        """Return a value type without type indices, likewise."""
        found = reference(text, self.types)
        return text if found is None else _TOP_REFERENCES[_top(found.heap)]


def host_fits(have: ExternType, want: ExternType) -> bool:
    """Whether something that the host makes can be given for an import; neither has type indices."""
    return have == want or LinkType.of_host(have).fits(LinkType.of_host(want))


def value_fits(
    have: ValType, want: ValType, have_types: tuple[DefinedType, ...], want_types: tuple[DefinedType, ...]
) -> bool:
    """Whether every value of one type is one of another."""
    first, second = reference(have, have_types), reference(want, want_types)
    if first is None or second is None:
        return have == want
    return (second.nullable or not first.nullable) and _heap_matches(first.heap, second.heap)


def limits_fit(have: Limits, want: Limits) -> bool:
    """Whether a memory or table of this size, as it is now, can be given for an import."""
    return (
        have.shared == want.shared
        and have.is64 == want.is64
        and have.minimum >= want.minimum
        and (want.maximum is None or (have.maximum is not None and have.maximum <= want.maximum))
    )


# the types of a module's own imports and exports


def import_types(module: WasmModule) -> tuple[LinkType, ...]:
    """Return the types of a module's imports, in their order."""
    known: tuple[LinkType, ...] | None = module.derived.get(_IMPORTS)
    if known is None:
        known = module.derived[_IMPORTS] = tuple(_import_types(module))
    return known


def import_type(module: WasmModule, entry: Import) -> LinkType:
    """Return the type of an import: one of the module's, or one that was made up for it, whose type has no type indices."""
    known: dict[int, LinkType] | None = module.derived.get(_BY_IMPORT)
    if known is None:
        # By identity: the imports live as long as the module, and two of them may be equal in all but their place.
        known = {id(one): kind for one, kind in zip(module.imports, import_types(module), strict=True)}
        module.derived[_BY_IMPORT] = known
    return known.get(id(entry)) or LinkType.of_host(entry.type)


def _import_types(module: WasmModule) -> list[LinkType]:
    section = module.section(SECTION_IMPORT)
    if section is None:
        return []
    types = defined_types(module)
    found = []
    reader = Reader(module.data, section.payload_start, section.end, module.name)
    for entry in walk_imports(reader, module.types):
        defined = None
        if isinstance(entry.type, (FuncType, TagType)):
            # The kind's byte, and of a tag its attribute, stand before the index.
            start = entry.type_start + (1 if isinstance(entry.type, FuncType) else 2)
            index = Reader(module.data, start, entry.type_end, module.name).u32("a type's index")
            defined = types[index]
        found.append(LinkType(entry.type, types, defined))
    return found


def export_type(module: WasmModule, export: Export) -> LinkType:
    """Return the type of something that a module exports, as the module declares it."""
    types = defined_types(module)
    if not isinstance(export.type, (FuncType, TagType)):
        return LinkType(export.type, types)
    imported = module.import_counts[export.kind]
    if export.index < imported:
        kinds = [
            kind
            for entry, kind in zip(module.imports, import_types(module), strict=True)
            if entry.kind == export.kind
        ]
        return kinds[export.index]
    index = _declared(module, export.kind)[export.index - imported]
    return LinkType(export.type, types, types[index])


def _declared(module: WasmModule, kind: str) -> list[int]:
    """Return the type indices of the functions or tags that a module defines."""
    key = _FUNCTIONS if kind == "func" else _TAGS
    known: list[int] | None = module.derived.get(key)
    if known is not None:
        return known
    section = module.section(SECTION_FUNCTION if kind == "func" else SECTION_TAG)
    indices: list[int] = []
    if section is not None:
        reader = Reader(module.data, section.payload_start, section.end, module.name)
        for _ in range(reader.count("entries")):
            if kind == "tag":
                reader.byte("a tag's attribute")
            indices.append(reader.u32("a type's index"))
    module.derived[key] = indices
    return indices
