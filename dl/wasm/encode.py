"""Write WebAssembly modules: what the linker generates is built here, byte by byte.

Only what the linker's generated modules use is covered (glue modules, the base module, forwarders, trampolines).
Binary format: WebAssembly core specification, chapter 5.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from dl.records import dataclass, field
from dl.wasm.opcodes import END, MEMORY_COPY, REF_FUNC, REF_TEST, TABLE_GET, TABLE_INIT, TABLE_SET
from dl.wasm.types import ExternType, FuncType, GlobalType, Limits, MemoryType, TableType, TagType

_VALUE_TYPES = {
    "i32": b"\x7f",
    "i64": b"\x7e",
    "f32": b"\x7d",
    "f64": b"\x7c",
    "v128": b"\x7b",
    "funcref": b"\x70",
    "externref": b"\x6f",
    "exnref": b"\x69",
}
_KIND_CODES = {"func": 0, "table": 1, "memory": 2, "global": 3, "tag": 4}
_MOST_KEPT = 256
"""Characters of a name that is kept once it is encoded: longer ones come from modules, so from anyone, and would stay."""
_SMALL = [bytes([n]) for n in range(128)]


def unsigned(value: int) -> bytes:
    """Encode an unsigned LEB128 number."""
    if value < 128:
        return _SMALL[value]
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def padded(value: int, width: int) -> bytes:
    """Encode an unsigned LEB128 number in at least this many bytes, as linkers leave room for sizes."""
    least = unsigned(value)
    if len(least) >= width:
        return least
    filled = bytes([*(byte | 128 for byte in least), *([128] * (width - len(least)))])
    return filled[:-1] + bytes([filled[-1] & 127])


def signed(value: int) -> bytes:
    """Encode a signed LEB128 number."""
    out = bytearray()
    while True:
        byte = value & 127
        value >>= 7
        if (value == 0 and not byte & 64) or (value == -1 and byte & 64):
            out.append(byte)
            return bytes(out)
        out.append(byte | 128)


def name_bytes(text: str) -> bytes:
    """Encode a name: its length in bytes, then UTF-8."""
    if len(text) <= _MOST_KEPT:
        return _short_name(text)
    raw = text.encode()
    return unsigned(len(raw)) + raw


@lru_cache(maxsize=1 << 15)
def _short_name(text: str) -> bytes:
    raw = text.encode()
    return unsigned(len(raw)) + raw


def vector(items: Sequence[bytes]) -> bytes:
    """Encode a vector: the number of items, then the items."""
    return unsigned(len(items)) + b"".join(items)


def section(code: int, payload: bytes) -> bytes:
    """Encode a section: its id, its length in bytes, its payload."""
    return bytes([code]) + unsigned(len(payload)) + payload


def i32_const(value: int) -> bytes:
    """Encode ``i32.const``; values from 2**31 to 2**32-1 are taken as the same bits, signed."""
    return b"\x41" + signed(value - (1 << 32) if value >= 1 << 31 else value)


def i64_const(value: int) -> bytes:
    """Encode ``i64.const``; values from 2**63 to 2**64-1 are taken as the same bits, signed."""
    return b"\x42" + signed(value - (1 << 64) if value >= 1 << 63 else value)


def local_get(index: int) -> bytes:
    """Encode ``local.get``."""
    return b"\x20" + unsigned(index)


def local_set(index: int) -> bytes:
    """Encode ``local.set``."""
    return b"\x21" + unsigned(index)


def local_tee(index: int) -> bytes:
    """Encode ``local.tee``."""
    return b"\x22" + unsigned(index)


def global_get(index: int) -> bytes:
    """Encode ``global.get``."""
    return b"\x23" + unsigned(index)


def global_set(index: int) -> bytes:
    """Encode ``global.set``."""
    return b"\x24" + unsigned(index)


def call(index: int) -> bytes:
    """Encode ``call``."""
    return b"\x10" + unsigned(index)


def call_indirect(type_index: int, table: int = 0) -> bytes:
    """Encode ``call_indirect``."""
    return b"\x11" + unsigned(type_index) + unsigned(table)


def return_call_indirect(type_index: int, table: int = 0) -> bytes:
    """Encode ``return_call_indirect``: the called function takes the place of the caller."""
    return b"\x13" + unsigned(type_index) + unsigned(table)


def ref_func(index: int) -> bytes:
    """Encode ``ref.func``."""
    return REF_FUNC + unsigned(index)


def table_set(table: int = 0) -> bytes:
    """Encode ``table.set``."""
    return TABLE_SET + unsigned(table)


def table_get(table: int = 0) -> bytes:
    """Encode ``table.get``."""
    return TABLE_GET + unsigned(table)


def ref_test(type_index: int) -> bytes:
    """Encode ``ref.test``: whether a reference is a function of a type, and not null."""
    return REF_TEST + signed(type_index)


def table_init(segment: int, table: int = 0) -> bytes:
    """Encode ``table.init``."""
    return TABLE_INIT + unsigned(segment) + unsigned(table)


def memory_access(opcode: bytes, align_log2: int, offset: int = 0, memory: int = 0) -> bytes:
    """Encode a load, a store or an atomic instruction on a memory.

    Args:
        opcode: one of `dl.wasm.opcodes`.
        align_log2: exponent of the alignment in bytes; of an atomic instruction, exactly its width.
        offset: bytes added to the address.
        memory: index of the memory.
    """
    place = bytes([align_log2 | 0x40]) + unsigned(memory) if memory else bytes([align_log2])
    return opcode + place + unsigned(offset)


def memory_size(memory: int = 0) -> bytes:
    """Encode ``memory.size``."""
    return b"\x3f" + unsigned(memory)


def memory_copy(to: int, of: int) -> bytes:
    """Encode ``memory.copy`` from one memory to another."""
    return MEMORY_COPY + unsigned(to) + unsigned(of)


def function_type(kind: FuncType) -> bytes:
    """Encode a function type, as in the type section."""
    params, results = ([_VALUE_TYPES[one] for one in types] for types in (kind.params, kind.results))
    return b"\x60" + vector(params) + vector(results)


def is_encodable(kind: ExternType) -> bool:
    """Whether a type has only value types that can be encoded here: none that refer to types of their module."""
    match kind:
        case GlobalType():
            return kind.value in _VALUE_TYPES
        case TableType():
            return kind.element in _VALUE_TYPES
        case TagType():
            return is_encodable(kind.type)
        case FuncType():
            return all(one in _VALUE_TYPES for one in (*kind.params, *kind.results))
    return True


def _limits(limits: Limits) -> bytes:
    flags = (limits.maximum is not None) | limits.shared << 1 | limits.is64 << 2
    maximum = b"" if limits.maximum is None else unsigned(limits.maximum)
    return bytes([flags]) + unsigned(limits.minimum) + maximum


def _global_type(kind: GlobalType) -> bytes:
    return _VALUE_TYPES[kind.value] + bytes([kind.mutable])


def _table_type(kind: TableType) -> bytes:
    return _VALUE_TYPES[kind.element] + _limits(kind.limits)


@dataclass
class ModuleBuilder:
    """A module under construction.

    Imports of a kind come before definitions of that kind, as in the index spaces of the binary format:
    importing after defining is a mistake of the caller and asserts.
    """

    _types: dict[FuncType, int] = field(default_factory=dict)
    _imports: list[bytes] = field(default_factory=list)
    _functions: list[bytes] = field(default_factory=list)
    _bodies: list[bytes] = field(default_factory=list)
    _tables: list[bytes] = field(default_factory=list)
    _memories: list[bytes] = field(default_factory=list)
    _tags: list[bytes] = field(default_factory=list)
    _globals: list[bytes] = field(default_factory=list)
    _exports: list[bytes] = field(default_factory=list)
    _elements: list[bytes] = field(default_factory=list)
    _start: bytes = b""
    _imported: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_KIND_CODES, 0))

    def type_index(self, kind: FuncType) -> int:
        """Index of a function type, added when new."""
        return self._types.setdefault(kind, len(self._types))

    def import_(self, module: str, name: str, kind: ExternType) -> int:
        """Import something; return its index in its kind's index space."""
        if isinstance(kind, FuncType):
            space, described = "func", unsigned(self.type_index(kind))
            assert not self._functions
        elif isinstance(kind, TableType):
            space, described = "table", _table_type(kind)
            assert not self._tables
        elif isinstance(kind, MemoryType):
            space, described = "memory", _limits(kind.limits)
            assert not self._memories
        elif isinstance(kind, GlobalType):
            space, described = "global", _global_type(kind)
            assert not self._globals
        else:
            space, described = "tag", b"\x00" + unsigned(self.type_index(kind.type))
            assert not self._tags
        self._imports.append(name_bytes(module) + name_bytes(name) + bytes([_KIND_CODES[space]]) + described)
        index = self._imported[space]
        self._imported[space] = index + 1
        return index

    def function(self, kind: FuncType, body: bytes, local_types: Iterable[str] = ()) -> int:
        """Define a function; ``body`` is its instructions without the final ``end``."""
        self._functions.append(unsigned(self.type_index(kind)))
        declared = vector([unsigned(1) + _VALUE_TYPES[t] for t in local_types])
        code = declared + body + END
        self._bodies.append(unsigned(len(code)) + code)
        return self._imported["func"] + len(self._functions) - 1

    def table(self, kind: TableType) -> int:
        """Define a table."""
        self._tables.append(_table_type(kind))
        return self._imported["table"] + len(self._tables) - 1

    def memory(self, kind: MemoryType) -> int:
        """Define a memory."""
        self._memories.append(_limits(kind.limits))
        return self._imported["memory"] + len(self._memories) - 1

    def tag(self, kind: TagType) -> int:
        """Define an exception tag."""
        self._tags.append(b"\x00" + unsigned(self.type_index(kind.type)))
        return self._imported["tag"] + len(self._tags) - 1

    def global_(self, kind: GlobalType, value: int) -> int:
        """Define a global of type i32 or i64 with a constant value."""
        constant = i32_const(value) if kind.value == "i32" else i64_const(value)
        self._globals.append(_global_type(kind) + constant + END)
        return self._imported["global"] + len(self._globals) - 1

    def float_global(self, kind: GlobalType, raw: bytes) -> int:
        """Define a global of type f32 or f64 whose value is given as its little-endian bytes."""
        opcode = b"\x43" if kind.value == "f32" else b"\x44"
        self._globals.append(_global_type(kind) + opcode + raw + END)
        return self._imported["global"] + len(self._globals) - 1

    def export(self, name: str, space: str, index: int) -> None:
        """Export something; ``space`` is func, table, memory, global or tag."""
        self._exports.append(name_bytes(name) + bytes([_KIND_CODES[space]]) + unsigned(index))

    def elements(self, offset: int, functions: Sequence[int], table: int = 0) -> None:
        """Place functions into a table from a constant index on, when the module is instantiated."""
        indices = vector([unsigned(index) for index in functions])
        place, kind = (b"\x02" + unsigned(table), b"\x00") if table else (b"\x00", b"")
        self._elements.append(place + i32_const(offset) + END + kind + indices)

    def passive_elements(self, functions: Sequence[int]) -> int:
        """Define a segment that ``table.init`` places functions from; return its index."""
        self._elements.append(b"\x01\x00" + vector([unsigned(index) for index in functions]))
        return len(self._elements) - 1

    def start(self, function: int) -> None:
        """Run a function when the module is instantiated, after its active segments."""
        self._start = unsigned(function)

    def build(self) -> bytes:
        """Return the module's bytes."""
        types = [function_type(kind) for kind in self._types]
        contents: list[tuple[int, list[bytes]]] = [
            (1, types),
            (2, self._imports),
            (3, self._functions),
            (4, self._tables),
            (5, self._memories),
            (13, self._tags),
            (6, self._globals),
            (7, self._exports),
        ]
        code: list[tuple[int, list[bytes]]] = [(9, self._elements), (10, self._bodies)]
        return b"".join(
            (
                b"\0asm\1\0\0\0",
                *(section(number, vector(items)) for number, items in contents if items),
                section(8, self._start) if self._start else b"",
                *(section(number, vector(items)) for number, items in code if items),
            )
        )
