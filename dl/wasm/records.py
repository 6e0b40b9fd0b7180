"""What a parsed module is made of: sections, imports, exports, globals, element segments."""

from __future__ import annotations

from dl.records import dataclass
from dl.wasm.const_expr import ConstExpr
from dl.wasm.types import ExternType, GlobalType

KINDS = ("func", "table", "memory", "global", "tag")
"""Names of the kinds of imports and exports, by their code in the binary format."""

SECTION_CUSTOM = 0
SECTION_TYPE = 1
SECTION_IMPORT = 2
SECTION_FUNCTION = 3
SECTION_TABLE = 4
SECTION_MEMORY = 5
SECTION_GLOBAL = 6
SECTION_EXPORT = 7
SECTION_START = 8
SECTION_ELEMENT = 9
SECTION_CODE = 10
SECTION_DATA = 11
SECTION_DATA_COUNT = 12
SECTION_TAG = 13


@dataclass(frozen=True, slots=True)
class Section:
    """Where a section lies in the file.

    Attributes:
        id: number of its kind; 0 is a custom section.
        name: name of a custom section, else "".
        start: file offset of the id byte.
        payload_start: file offset of its contents (of a custom section: behind the name).
        end: file offset behind its last byte.
    """

    id: int
    name: str
    start: int
    payload_start: int
    end: int


@dataclass(frozen=True, slots=True)
class Import:
    """Something the module takes from outside.

    Attributes:
        module: first name of the import, for example `env`.
        name: second name.
        kind: "func", "table", "memory", "global" or "tag".
        type: its type.
        index: its index among all of its kind.
    """

    module: str
    name: str
    kind: str
    type: ExternType
    index: int


@dataclass(frozen=True, slots=True)
class Export:
    """Something the module shows to the outside; fields as those of Import."""

    name: str
    kind: str
    index: int
    type: ExternType


@dataclass(frozen=True, slots=True)
class Global:
    """A global variable: its type, and what initialises it (None for an imported one)."""

    type: GlobalType
    init: ConstExpr | None


@dataclass(frozen=True, slots=True)
class ElementSegment:
    """A list of references that goes into a table.

    Attributes:
        mode: "active" (put into the table by the instantiation), "passive" or "declarative".
        table: index of the table of an active segment, else 0.
        offset: table element where an active segment begins, else None.
        functions: function indices in order; None where it is null or not known before the instantiation.
    """

    mode: str
    table: int
    offset: ConstExpr | None
    functions: tuple[int | None, ...]
