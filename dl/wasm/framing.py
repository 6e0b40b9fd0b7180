"""The frame of a WebAssembly binary: its header, and the order and bounds of its sections.

Core specification 3.0, section 5.5.2 (sections) and 5.5.16 (modules).
"""

from __future__ import annotations

from dl.errors import MalformedModuleError, UnsupportedModuleError
from dl.wasm.reader import Reader
from dl.wasm.records import (
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
    Section,
)
from threads import found_in

SECTION_NAMES = {
    SECTION_TYPE: "type",
    SECTION_IMPORT: "import",
    SECTION_FUNCTION: "function",
    SECTION_TABLE: "table",
    SECTION_MEMORY: "memory",
    SECTION_TAG: "tag",
    SECTION_GLOBAL: "global",
    SECTION_EXPORT: "export",
    SECTION_START: "start",
    SECTION_ELEMENT: "element",
    SECTION_DATA_COUNT: "data count",
    SECTION_CODE: "code",
    SECTION_DATA: "data",
}
"""Names of the sections by id, in the order in which they must stand in a file."""

_RANK = {number: rank for rank, number in enumerate(SECTION_NAMES)}
_MAX_SECTIONS = 10_000

_MAGIC = b"\0asm"
_CORE_VERSION = b"\x01\0\0\0"
_HEADER_BYTES = 8
_COMPONENT_LAYER = b"\x01\0"
_LOOKS_LIKE = (
    (b"\x7fELF", "it is an ELF file, native code"),
    (b"MZ", "it is a Windows executable or library"),
    (b"\xcf\xfa\xed\xfe", "it is a Mach-O file, native code"),
    (b"\xca\xfe\xba\xbe", "it is a Mach-O or Java class file"),
    (b"!<arch>", "it is an archive of object files; link a shared library from it"),
    (b"BC\xc0\xde", "it is LLVM bitcode; link a shared library from it"),
    (b"\x1f\x8b", "it is compressed with gzip; unpack it"),
    (b"\x28\xb5\x2f\xfd", "it is compressed with zstd; unpack it"),
    (b"PK\x03\x04", "it is a zip archive; unpack it"),
    (b"#!", "it is a script"),
)


def check_header(data: bytes, module: str) -> None:
    """Make sure that the bytes begin as a core WebAssembly module does.

    Raises:
        MalformedModuleError: they do not; says what they look like.
        UnsupportedModuleError: they begin as a component, or as a module of another version.
    """
    if not data:
        raise MalformedModuleError(module, 0, "the file is empty")
    head = data[:_HEADER_BYTES]
    if head == _MAGIC + _CORE_VERSION:
        return
    if (_MAGIC + _CORE_VERSION).startswith(head):
        reason = f"the header ends after {len(data)} of its {_HEADER_BYTES} bytes"
        raise MalformedModuleError(module, len(data), reason)
    if not head.startswith(_MAGIC):
        raise MalformedModuleError(module, 0, f"not a WebAssembly module: {_describe(data)}")
    if len(head) < _HEADER_BYTES:
        raise MalformedModuleError(module, len(data), "the header is cut off in its version")
    if head[6:8] == _COMPONENT_LAYER:
        raise UnsupportedModuleError(
            module,
            "it is a WebAssembly component; only core modules can be linked",
        )
    version = int.from_bytes(head[4:8], "little")
    raise UnsupportedModuleError(module, f"binary format version {version}; only version 1 is known")


def _describe(data: bytes) -> str:
    for magic, what in _LOOKS_LIKE:
        if data.startswith(magic):
            return what
    start = data[:512]
    if start.lstrip().startswith((b"(module", b"(component", b";;", b"(;")):
        return "it is WebAssembly text; assemble it first"
    if (
        start.isascii()
        and start.decode().replace("\n", " ").replace("\t", " ").replace("\r", " ").isprintable()
    ):
        return "it is a text file"
    return f"it begins with the bytes {data[:4].hex(' ')}"


def split_sections(data: bytes, module: str) -> list[Section]:
    """List the sections of a module whose header was checked.

    Raises:
        MalformedModuleError: one does not fit, stands out of order, appears twice, or is of an unknown kind.
    """
    reader = Reader(data, _HEADER_BYTES, len(data), module)
    sections: list[Section] = []
    last = SECTION_CUSTOM
    while reader.pos < len(data):
        start = reader.pos
        number = reader.byte("a section")
        size = reader.u32("a section's length")
        payload_start = reader.pos
        end = payload_start + size
        what = found_in(SECTION_NAMES, number, "custom")
        if number != SECTION_CUSTOM and number not in SECTION_NAMES:
            raise reader.malformed(f"section of unknown kind {number:#04x}", start)
        if end > len(data):
            left = len(data) - payload_start
            raise reader.malformed(
                f"the {what} section of {size} bytes does not fit in the {left} that are left", start
            )
        name = ""
        if number == SECTION_CUSTOM:
            inner = Reader(data, payload_start, end, module)
            name = inner.name("a custom section's name")
            payload_start = inner.pos
        else:
            if number == last:
                raise reader.malformed(f"a second {what} section", start)
            if last != SECTION_CUSTOM and _RANK[number] < _RANK[last]:
                raise reader.malformed(
                    f"the {what} section stands behind the {SECTION_NAMES[last]} section", start
                )
            last = number
        sections.append(Section(number, name, start, payload_start, end))
        if len(sections) > _MAX_SECTIONS:
            raise reader.malformed(f"more than {_MAX_SECTIONS} sections", start)
        reader.pos = end
    return sections
