"""The `dylink.0` custom section: what a shared WebAssembly library says about itself.

Format: tool-conventions, DynamicLinking.md ("The dylink.0 section"); flag bits: Linking.md ("symbol table
subsection"). The older `dylink` section is the flat form in use before September 2021.

Where loaders differ about odd input, this reader refuses what can only be corruption (lengths that lie, bytes
left over, two different memory infos) and takes what real tools write: the section anywhere in the file,
subsections in any order and more than once (lists accumulate), unknown subsections (kept), padded integers, and a
list of flags of imports that is longer than the number in front of it (auditwheel-emscripten counts modules there).
"""

from __future__ import annotations

from dl.errors import DylinkError
from dl.records import dataclass, field
from dl.wasm.reader import MAX_ITEMS, Reader

SECTION_NAME = "dylink.0"
LEGACY_SECTION_NAME = "dylink"

MAX_ALIGNMENT_LOG2 = 31
"""Largest alignment exponent: no region of a 32-bit memory or table can be aligned more."""

MAX_UNKNOWN = 1000
"""Most subsections of unknown types that are kept: a hostile file could hold millions of empty ones."""

_MEM_INFO, _NEEDED, _EXPORT_INFO, _IMPORT_INFO, _RUNTIME_PATH, _TARGET_ARCHITECTURE = 1, 2, 3, 4, 5, 6


class SymbolFlags:
    """What the linker notes about an imported or exported symbol (Linking.md, symbol flags).

    Numbers, of which any sum may stand in a file: making an enumeration takes as long as reading a small module's symbols.
    """

    BINDING_WEAK = 0x01
    BINDING_LOCAL = 0x02
    VISIBILITY_HIDDEN = 0x04
    UNDEFINED = 0x10
    EXPORTED = 0x20
    EXPLICIT_NAME = 0x40
    NO_STRIP = 0x80
    TLS = 0x100
    ABSOLUTE = 0x200


@dataclass(frozen=True, slots=True)
class UnknownSubsection:
    """A subsection of a type this linker does not know, kept as it was.

    Attributes:
        type: its type number.
        data: its payload.
        offset: bytes from the start of the file to its payload.
    """

    type: int
    data: bytes
    offset: int


@dataclass(frozen=True, slots=True)
class DylinkInfo:
    """Everything a dylink section says.

    Attributes:
        memory_size: bytes of linear memory the module wants, from `__memory_base` on; 0 to 2**32 - 1.
        memory_alignment_log2: exponent of that region's alignment in bytes; 0 to 31.
        table_size: table elements the module wants, from `__table_base` on; 0 to 2**32 - 1.
        table_alignment_log2: exponent of that region's alignment in elements; 0 to 31.
        needed: names of libraries to load first, in order.
        runtime_path: directories to search for those, in order; may hold `$ORIGIN`.
        exports: flags of exported symbols that have any.
        imports: flags of imported symbols that have any, by (module, field).
        unknown: subsections of unknown types, in file order.
        target_architecture: what the module was built for, such as `wasm32`; None when it does not say.
        notes: what is odd about the section, though its meaning is clear.
        legacy: whether this comes from the old `dylink` section.
        weak_imports: fields of the imports that are weak, whatever module name stands beside them.
        tls_exports: names of the exports that are offsets in the module's thread-local block.
    """

    memory_size: int = 0
    memory_alignment_log2: int = 0
    table_size: int = 0
    table_alignment_log2: int = 0
    needed: tuple[str, ...] = ()
    runtime_path: tuple[str, ...] = ()
    exports: dict[str, int] = field(default_factory=dict)
    imports: dict[tuple[str, str], int] = field(default_factory=dict)
    unknown: tuple[UnknownSubsection, ...] = ()
    target_architecture: str | None = None
    notes: tuple[str, ...] = ()
    legacy: bool = False
    weak_imports: frozenset[str] = field(init=False, repr=False, compare=False)
    tls_exports: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        weak = frozenset(
            name for (_, name), flags in self.imports.items() if flags & SymbolFlags.BINDING_WEAK
        )
        tls = frozenset(name for name, flags in self.exports.items() if flags & SymbolFlags.TLS)
        object.__setattr__(self, "weak_imports", weak)
        object.__setattr__(self, "tls_exports", tls)

    @property
    def memory_alignment(self) -> int:
        """Alignment of the memory region, in bytes."""
        return 1 << self.memory_alignment_log2

    @property
    def table_alignment(self) -> int:
        """Alignment of the table region, in elements."""
        return 1 << self.table_alignment_log2

    def is_weak_import(self, field_name: str) -> bool:
        """Say whether the symbol may stay undefined.

        Only the field counts: wasm-ld writes the module name `env` for a symbol that is in truth imported
        from `GOT.func` or `GOT.mem`.
        """
        return field_name in self.weak_imports

    def is_tls_export(self, name: str) -> bool:
        """Say whether the exported value is an offset from `__tls_base`, not from `__memory_base`."""
        return name in self.tls_exports


def parse_dylink(payload: bytes, module: str, base_offset: int, *, legacy: bool = False) -> DylinkInfo:
    """Parse the body of a dylink section.

    Args:
        payload: the section's bytes behind its name.
        module: name of the module, for errors.
        base_offset: bytes from the start of the file to the payload.
        legacy: whether the section is the old `dylink`, not `dylink.0`.

    Raises:
        DylinkError: it is corrupt, or an alignment is out of range.
    """
    reader = Reader(payload, 0, len(payload), module, error=DylinkError, base=base_offset)
    if legacy:
        sizes = _memory_info(reader)
        needed = _names(reader, "needed library")
        if reader.pos != reader.end:
            raise reader.malformed(f"{reader.end - reader.pos} bytes left over in the dylink section")
        return DylinkInfo(*sizes, needed=tuple(needed), legacy=True)
    return _parse_subsections(reader)


def _parse_subsections(reader: Reader) -> DylinkInfo:
    sizes: tuple[int, int, int, int] | None = None
    needed: list[str] = []
    runtime_path: list[str] = []
    exports: dict[str, int] = {}
    imports: dict[tuple[str, str], int] = {}
    unknown: list[UnknownSubsection] = []
    architecture: str | None = None
    notes: list[str] = []
    section_end = reader.end
    while reader.pos < section_end:
        start = reader.pos
        kind = reader.byte("a dylink subsection")
        # Not count(): the length bounds the subsection, it is not a number of items.
        size = reader.u32("the length of a dylink subsection")
        body = reader.pos
        if size > section_end - body:
            left = section_end - body
            raise reader.malformed(
                f"dylink subsection {kind} of {size} bytes does not fit in the {left} that are left", start
            )
        reader.end = body + size
        if kind == _MEM_INFO:
            found = _memory_info(reader)
            if sizes is not None and found != sizes:
                raise reader.malformed("a second memory info that differs from the first", start)
            sizes = found
        elif kind == _NEEDED:
            needed += _names(reader, "needed library")
        elif kind == _EXPORT_INFO:
            for _ in range(reader.count("exported symbols", item_bytes=2)):
                name = reader.name("an exported symbol")
                exports[name] = exports.get(name, 0) | reader.u32("a symbol's flags")
        elif kind == _IMPORT_INFO:
            count = reader.count("imported symbols", item_bytes=3)
            found_count = _import_flags(reader, count, imports)
            if found_count != count:
                notes.append(
                    f"the flags of imports say they are {count}, but are {found_count} (at byte {reader.base + body:#x})"
                )
        elif kind == _RUNTIME_PATH:
            runtime_path += _names(reader, "run path")
        elif kind == _TARGET_ARCHITECTURE and (text := _text(reader.data[body : reader.end])) is not None:
            architecture = text
            reader.pos = reader.end
        else:
            unknown.append(UnknownSubsection(kind, reader.data[body : reader.end], reader.base + body))
            reader.pos = reader.end
        if reader.pos != reader.end:
            raise reader.malformed(f"{reader.end - reader.pos} bytes left over in dylink subsection {kind}")
        reader.end = section_end
        if len(unknown) > MAX_UNKNOWN:
            raise reader.malformed(f"more than {MAX_UNKNOWN} dylink subsections of unknown types", start)
    return DylinkInfo(
        *(sizes or (0, 0, 0, 0)),
        needed=tuple(needed),
        runtime_path=tuple(runtime_path),
        exports=exports,
        imports=imports,
        unknown=tuple(unknown),
        target_architecture=architecture,
        notes=tuple(notes),
    )


def _import_flags(reader: Reader, count: int, imports: dict[tuple[str, str], int]) -> int:
    """Read flags of imports up to the end of the subsection, at least `count`; return how many there are."""
    found = 0
    while found < count or reader.pos < reader.end:
        key = reader.name("an imported symbol's module"), reader.name("an imported symbol")
        imports[key] = imports.get(key, 0) | reader.u32("a symbol's flags")
        found += 1
        if found > MAX_ITEMS:
            raise reader.malformed(f"more than {MAX_ITEMS} flags of imports")
    return found


def _text(payload: bytes) -> str | None:
    """Return the text of a subsection that holds one, with its length in front or without; None if it holds none."""
    if payload and payload[0] == len(payload) - 1:
        payload = payload[1:]
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() else None


def _memory_info(reader: Reader) -> tuple[int, int, int, int]:
    memory_size = reader.u32("the memory size")
    memory_alignment = _alignment(reader, "memory")
    table_size = reader.u32("the table size")
    return memory_size, memory_alignment, table_size, _alignment(reader, "table")


def _alignment(reader: Reader, what: str) -> int:
    start = reader.pos
    exponent = reader.u32(f"the {what} alignment")
    if exponent > MAX_ALIGNMENT_LOG2:
        raise reader.malformed(f"{what} alignment 2^{exponent} is more than 2^{MAX_ALIGNMENT_LOG2}", start)
    return exponent


def _names(reader: Reader, what: str) -> list[str]:
    return [reader.name(f"a {what}'s name") for _ in range(reader.count(f"{what} names"))]
