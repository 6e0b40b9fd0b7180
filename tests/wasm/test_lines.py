"""Line tables: what a stack trace reads of DWARF, held against another reader, and against whatever a module may hold."""

from __future__ import annotations

import inspect
import io
import itertools
import random
import struct
import time

import pytest

from dl.wasm.lines import MAX_LINE_BYTES, LineTable, SourceLine

ELF = pytest.importorskip("elftools.dwarf.dwarfinfo")


def uleb(value: int) -> bytes:
    """Encode an unsigned LEB128."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def unit(version: int, program: bytes, names: bytes, *, wide: bool = False) -> bytes:
    """Make one line table with a header of a version, addresses of four bytes, and the usual numbers."""
    size = "<Q" if wide else "<I"
    lengths = bytes([0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1])
    rest = bytes([1, *([1] if version >= 4 else []), 1, 0xFB, 14, 13]) + lengths + names
    head = struct.pack("<H", version) + (bytes([4, 0]) if version == 5 else b"")
    body = head + struct.pack(size, len(rest)) + rest + program
    return (b"\xff\xff\xff\xff" if wide else b"") + struct.pack(size, len(body)) + body


OLD_NAMES = b"src\0\0" + b"main.c\0\0\0\0" + b"deep.h\0\1\0\0" + b"/abs.c\0\1\0\0" + b"\0"
NEW_NAMES = (
    bytes([1, 1, 8, 2]) + b"/from\0src\0" + bytes([2, 1, 8, 2, 11, 3]) + b"main.c\0\0deep.h\0\1/abs.c\0\1"
)
PROGRAM = (
    b"\0\5\2\x10\0\0\0"  # at 0x10
    + b"\x05\x07\x01"  # column 7, a row at line 1
    + bytes([13 + 14 * 4 + 5 + 2])  # 4 on, 2 lines down
    + b"\x04\x02\x03\x7f\x02\x08\x01"  # file 2, a line up, 8 on, a row
    + b"\x08\x01"  # const_add_pc
    + b"\x09\x20\x00\x03\xe4\x00\x01"  # fixed_advance_pc 32, 100 lines down
    + b"\x02\x04\0\1\1"
    + b"\0\5\2\0\0\0\0\x01\x02\x10\0\1\1"  # what a linker has dropped
)


def rows(line: bytes) -> dict[int, tuple[int, int, int]]:
    """Return what pyelftools reads, by address: file, line and column; sequences at 0 left out."""
    from elftools.dwarf.dwarfinfo import DebugSectionDescriptor, DwarfConfig, DWARFInfo
    from elftools.dwarf.structs import DWARFStructs

    def section(data: bytes) -> DebugSectionDescriptor:
        return DebugSectionDescriptor(io.BytesIO(data), "", 0, len(data), 0)

    names = [name for name in inspect.signature(DWARFInfo).parameters if name.endswith("_sec")]
    sections = dict.fromkeys(names) | {"debug_info_sec": section(b"\0"), "debug_line_sec": section(line)}
    info = DWARFInfo(DwarfConfig(True, "wasm", 4), **sections)
    structs = DWARFStructs(
        little_endian=True, dwarf_format=64 if line[:4] == b"\xff" * 4 else 32, address_size=4
    )
    program = info._parse_line_program_at_offset(0, structs)
    found, sequence = {}, []
    for entry in program.get_entries():
        state = entry.state
        if state is None:
            continue
        sequence.append(state)
        if state.end_sequence:
            if sequence[0].address:
                for one, following in itertools.pairwise(sequence):
                    for address in range(one.address, following.address):
                        found[address] = (one.file, one.line, one.column)
            sequence = []
    return found


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_every_version_is_read_as_pyelftools_does(version: int, wide: bool) -> None:
    """Lines and columns of each address are those of another reader; names have their directories."""
    line = unit(version, PROGRAM, NEW_NAMES if version == 5 else OLD_NAMES, wide=wide)
    table, expected = LineTable(line), rows(line)
    files = (
        {0: "/from/main.c", 1: "src/deep.h", 2: "/abs.c"}
        if version == 5
        else {1: "main.c", 2: "src/deep.h", 3: "/abs.c"}
    )
    assert len(expected) > 40
    for address in range(80):
        known = expected.get(address)
        assert table.find(address) == (known and SourceLine(files[known[0]], *known[1:])), hex(address)


def test_several_tables() -> None:
    """Each unit has its own; one of a version that is not known is stepped over, one that is cut off ends the search."""
    first = unit(4, b"\0\5\2\x10\0\0\0\x01\x02\x10\0\1\1", OLD_NAMES)
    second = unit(4, b"\0\5\2\x80\0\0\0\x03\x04\x01\x02\x10\0\1\1", b"\0other.c\0\0\0\0\0")
    table = LineTable(first + unit(9, b"", b"") + second + second[:-4])
    assert table.find(0x10) == SourceLine("main.c", 1, 0)
    assert table.find(0x8F) == SourceLine("other.c", 5, 0)
    assert table.find(0x90) is None
    assert table.find(0x0F) is None


def test_strings_in_their_own_sections() -> None:
    """Names of version 5 may be in `.debug_line_str` and `.debug_str`."""
    names = bytes([1, 1, 0x1F, 1, 1, 0, 0, 0]) + bytes([2, 1, 0x0E, 2, 11, 1, 2, 0, 0, 0, 0])
    line = unit(5, b"\x04\x00\0\5\2\x10\0\0\0\x01\x02\x10\0\1\1", names)
    assert LineTable(line, b"?/dir\0", b"??f.c\0").find(0x10) == SourceLine("/dir/f.c", 1, 0)
    assert LineTable(line).find(0x10) is None


HOSTILE = {
    "2**62 directories": unit(5, PROGRAM, bytes([0]) + b"\xff" * 8 + b"\x7f" + b"\0\0"),
    "2**62 files of no fields": unit(5, PROGRAM, bytes([0, 0, 0]) + b"\xff" * 8 + b"\x7f"),
    "a number without end": unit(4, b"\x02" + b"\xff" * 1_000_000, OLD_NAMES),
    "lines divided by nothing": unit(4, PROGRAM, OLD_NAMES).replace(
        bytes([1, 0xFB, 14, 13]), bytes([1, 0xFB, 0, 13])
    ),
    "no end of the names": unit(4, PROGRAM, b"x" * 300_000),
    "a length of everything": b"\xff" * 12,
    "tables of no length": b"\0" * 300_000,
    "an address of 200 bytes": unit(4, b"\0\xc9\1\2" + b"\1" * 200 + b"\1", OLD_NAMES),
    "more bytes than are read": b"\0" * (MAX_LINE_BYTES + 1),
    "a million sequences": unit(4, b"\0\5\2\x10\0\0\0\x01\0\1\1" * 60_000, OLD_NAMES),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_made_to_take_long_does_not(name: str) -> None:
    """Whatever a table holds, it is read in time in proportion to its bytes, without an error."""
    began = time.process_time()
    table = LineTable(HOSTILE[name])
    for address in (0, 0x10, 0x15, 1 << 40):
        table.find(address)
    assert time.process_time() - began < 5


def test_broken_tables_have_no_lines_and_no_errors() -> None:
    """Bytes of good tables are changed, taken out and repeated, in an order that a seed repeats: each look-up returns."""
    seed = 20
    print("seed", seed)
    chance = random.Random(seed)
    good = [unit(version, PROGRAM, NEW_NAMES if version == 5 else OLD_NAMES) for version in (2, 4, 5)]
    for _ in range(600):
        data = bytearray(chance.choice(good))
        for _ in range(chance.randrange(1, 6)):
            place = chance.randrange(len(data))
            how = chance.randrange(3)
            if how == 0:
                data[place] = chance.randrange(256)
            elif how == 1:
                del data[place : place + chance.randrange(1, 5)]
            else:
                data[place:place] = data[place : place + 9]
        table = LineTable(bytes(data))
        for address in range(0, 96, 5):
            found = table.find(address)
            assert found is None or (found.line > 0 and isinstance(found.file, str))
