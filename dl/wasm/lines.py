"""Source lines of code: DWARF's line tables, versions 2 to 5, read as far as a stack trace needs them.

The reader is our own because tables come from modules, so from anyone. Whatever they hold, reading one takes time and memory in
proportion to its bytes, of which there is a bound, and what is broken has no lines. Readers for trusted files do not promise
that: pyelftools, which the suite holds this one against, does not end with a header of 40 bytes that counts 2**62 directories.

Source of the format: DWARF 5, section 6.2; the addresses of WebAssembly count from the contents of the code section
(tool-conventions, "DWARF for WebAssembly").
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import TypeAlias

from dl.records import NamedTuple

MAX_LINE_BYTES = 4 << 20
"""Of a module's line tables: larger ones are not read. Modules of 40 MB, most of it debugging information, have as
much; the first look-up in one takes a second, and two in one that is made to take long."""

_MOST_LEB_BYTES = 10
_MOST_NAME_BYTES = 4096
_MARK_64 = 0xFFFFFFFF
_COPY, _ADVANCE_PC, _ADVANCE_LINE, _SET_FILE, _SET_COLUMN, _CONST_ADD_PC, _FIXED_ADVANCE_PC = (
    1,
    2,
    3,
    4,
    5,
    8,
    9,
)
_END_SEQUENCE, _SET_ADDRESS = 1, 2
_PATH, _DIRECTORY = 1, 2
_FORM_BLOCK, _FORM_STRING, _FORM_STRP, _FORM_UDATA, _FORM_LINE_STRP = 0x09, 0x08, 0x0E, 0x0F, 0x1F
_FORM_SIZES = {0x0B: 1, 0x05: 2, 0x06: 4, 0x07: 8, 0x1E: 16}
"""DW_FORM_data1, data2, data4, data8 and data16."""


class SourceLine(NamedTuple):
    """Where code comes from.

    Attributes:
        file: the source file, as the compiler names it; relative to where it ran if it names no directory.
        line: from 1.
        column: from 1; 0 if the table does not say.
    """

    file: str
    line: int
    column: int


class _Broken(Exception):  # noqa: N818  never leaves this file
    """What was read is no line table."""


class _Unit(NamedTuple):
    """The header of one table: the fields of DWARF's, and where its parts lie."""

    version: int
    offset_bytes: int
    names_at: int
    program_at: int
    end: int
    least_bytes: int
    line_base: int
    line_range: int
    opcode_base: int
    operands: bytes


_Row: TypeAlias = tuple[int, int, int, int, int, bool]
"""A row of a table: where the program goes on; address, file, line, column; whether it is the end of a sequence."""


class LineTable:
    """The line tables of a module.

    The first look-up notes where the sequence of each function begins; each look-up then reads one sequence.

    Args:
        line: the contents of its section `.debug_line`.
        line_strings: those of `.debug_line_str`.
        strings: those of `.debug_str`.
    """

    def __init__(self, line: bytes, line_strings: bytes = b"", strings: bytes = b"") -> None:
        self._data = line if len(line) <= MAX_LINE_BYTES else b""
        self._line_strings = line_strings
        self._strings = strings
        self._sequences: list[tuple[int, int, _Unit, int]] | None = None
        self._starts: list[int] = []

    def find(self, address: int) -> SourceLine | None:
        """Return where the code at an address comes from; None if no table says.

        Args:
            address: bytes from the contents of the code section on.
        """
        if self._sequences is None:
            sequences = sorted(self._index(), key=lambda sequence: sequence[:2])
            self._starts = [start for start, *_ in sequences]
            self._sequences = sequences
        position = bisect_right(self._starts, address) - 1
        if position < 0:
            return None
        _, end, unit, program_at = self._sequences[position]
        if address >= end:
            return None
        try:
            row = self._covering(unit, program_at, address)
            if row is None:
                return None
            _, _, file, line, column, _ = row
            return SourceLine(self._file_name(unit, file), line, column) if line > 0 else None
        except (_Broken, IndexError):
            return None

    def versions(self) -> set[int]:
        """Return the versions of DWARF that the tables have, as far as they are known."""
        return {unit.version for unit in self._units()}

    def _index(self) -> Iterator[tuple[int, int, _Unit, int]]:
        """Yield first address, end, unit and place of each sequence."""
        for unit in self._units():
            position = unit.program_at
            try:
                while position < unit.end:
                    begin, start, end = position, None, 0
                    for position, end, _, _, _, ends in self._rows(unit, begin):  # noqa: B007  used behind the loop
                        if start is None:
                            start = end
                        if ends:
                            break
                    else:
                        break
                    # A linker puts functions that it drops at 0, where no function is, or at the end of the address space.
                    if start:
                        yield start, end, unit, begin
            except (_Broken, IndexError):
                continue

    def _units(self) -> Iterator[_Unit]:
        position = 0
        while position < len(self._data):
            try:
                unit, following = self._unit(position)
            except (_Broken, IndexError):
                return
            if unit is not None:
                yield unit
            position = following

    def _unit(self, position: int) -> tuple[_Unit | None, int]:
        """Read a header; return it, None if it is of a version that is not known, and where the next one begins."""
        length, offset_bytes = self._number(position, 4), 4
        position += 4
        if length == _MARK_64:
            length, offset_bytes = self._number(position, 8), 8
            position += 8
        end = position + length
        if end > len(self._data):
            raise _Broken
        version = self._number(position, 2)
        position += 2
        if not 2 <= version <= 5:
            return None, end
        if version == 5:
            position += 2  # sizes of addresses and segments
        program_at = position + offset_bytes + self._number(position, offset_bytes)
        position += offset_bytes
        least_bytes = self._data[position]
        position += 2 if version >= 4 else 1  # and of operations in one instruction
        line_base = int.from_bytes(self._data[position + 1 : position + 2], "little", signed=True)
        line_range, opcode_base = self._data[position + 2], self._data[position + 3]
        names_at = position + 4 + max(opcode_base - 1, 0)
        if not (names_at <= program_at <= end and line_range and opcode_base):
            return None, end
        operands = b"\0" + self._data[position + 4 : names_at]
        return _Unit(
            version,
            offset_bytes,
            names_at,
            program_at,
            end,
            least_bytes,
            line_base,
            line_range,
            opcode_base,
            operands,
        ), end

    def _covering(self, unit: _Unit, program_at: int, address: int) -> _Row | None:
        """Return the row of a sequence that an address belongs to."""
        found = None
        for row in self._rows(unit, program_at):
            if row[1] > address or row[-1]:
                return found
            found = row
        return found

    def _rows(self, unit: _Unit, position: int) -> Iterator[_Row]:
        """Run a line program from the beginning of a sequence; yield each row.

        Raises:
            _Broken, IndexError: it is none.
        """
        data, end = self._data, unit.end
        address, file, line, column = 0, 1, 1, 0
        while position < end:
            opcode = data[position]
            position += 1
            if opcode >= unit.opcode_base:
                steps, up = divmod(opcode - unit.opcode_base, unit.line_range)
                address += steps * unit.least_bytes
                line += unit.line_base + up
                yield position, address, file, line, column, False
            elif opcode == 0:
                size, position = self._unsigned(position)
                kind, following = data[position], position + size
                if size < 1 or following > end:
                    raise _Broken
                if kind == _END_SEQUENCE:
                    yield following, address, file, line, column, True
                    address, file, line, column = 0, 1, 1, 0
                elif kind == _SET_ADDRESS:
                    if size > 9:
                        raise _Broken
                    address = self._number(position + 1, size - 1)
                position = following
            elif opcode == _COPY:
                yield position, address, file, line, column, False
            elif opcode == _ADVANCE_PC:
                steps, position = self._unsigned(position)
                address += steps * unit.least_bytes
            elif opcode == _ADVANCE_LINE:
                up, position = self._signed(position)
                line += up
            elif opcode == _SET_FILE:
                file, position = self._unsigned(position)
            elif opcode == _SET_COLUMN:
                column, position = self._unsigned(position)
            elif opcode == _CONST_ADD_PC:
                address += (255 - unit.opcode_base) // unit.line_range * unit.least_bytes
            elif opcode == _FIXED_ADVANCE_PC:
                address += self._number(position, 2)
                position += 2
            else:
                for _ in range(unit.operands[opcode]):
                    _, position = self._unsigned(position)

    def _file_name(self, unit: _Unit, number: int) -> str:
        """Return the name of a file of a unit, behind its directory.

        Raises:
            _Broken, IndexError: the header has none of this number.
        """
        if unit.version == 5:
            directories, files = self._names_5(unit)
            first = 0
        else:
            directories, files = self._names_2(unit)
            first = 1
        if not first <= number < first + len(files):
            raise _Broken
        name, directory = files[number - first]
        # Before version 5 directory 0 is where the compiler ran, which the table does not name.
        inside = directory - first
        if name.startswith("/") or not 0 <= inside < len(directories):
            return name
        return f"{directories[inside].rstrip('/')}/{name}"

    def _names_2(self, unit: _Unit) -> tuple[list[str], list[tuple[str, int]]]:
        directories, files = [], []
        position = unit.names_at
        while position < unit.program_at and self._data[position]:
            name, position = self._text(self._data, position)
            directories.append(name)
        position += 1
        while position < unit.program_at and self._data[position]:
            name, position = self._text(self._data, position)
            directory, position = self._unsigned(position)
            for _ in range(2):  # time and size
                _, position = self._unsigned(position)
            files.append((name, directory))
        return directories, files

    def _names_5(self, unit: _Unit) -> tuple[list[str], list[tuple[str, int]]]:
        directories, position = self._entries(unit, unit.names_at)
        files, _ = self._entries(unit, position)
        return [name for name, _ in directories], files

    def _entries(self, unit: _Unit, position: int) -> tuple[list[tuple[str, int]], int]:
        """Read names with their directories, each in fields that are described in front; every field takes at least a byte."""
        fields = []
        described, position = self._data[position], position + 1
        for _ in range(described):
            content, position = self._unsigned(position)
            form, position = self._unsigned(position)
            fields.append((content, form))
        count, position = self._unsigned(position)
        if count and not fields:
            raise _Broken
        entries = []
        for _ in range(count):
            name, directory = "", 0
            for content, form in fields:
                value, position = self._field(unit, form, position)
                if content == _PATH and isinstance(value, str):
                    name = value
                elif content == _DIRECTORY and isinstance(value, int):
                    directory = value
            if position > unit.program_at:
                raise _Broken
            entries.append((name, directory))
        return entries, position

    def _field(self, unit: _Unit, form: int, position: int) -> tuple[str | int, int]:
        if form == _FORM_STRING:
            return self._text(self._data, position)
        if form in (_FORM_STRP, _FORM_LINE_STRP):
            strings = self._strings if form == _FORM_STRP else self._line_strings
            text, _ = self._text(strings, self._number(position, unit.offset_bytes))
            return text, position + unit.offset_bytes
        if form == _FORM_UDATA:
            return self._unsigned(position)
        if form == _FORM_BLOCK:
            size, position = self._unsigned(position)
            return 0, position + size
        if form in _FORM_SIZES:
            size = _FORM_SIZES[form]
            return self._number(position, size), position + size
        raise _Broken

    def _number(self, position: int, size: int) -> int:
        raw = self._data[position : position + size]
        if len(raw) != size:
            raise _Broken
        return int.from_bytes(raw, "little")

    def _unsigned(self, position: int) -> tuple[int, int]:
        value = 0
        for step in range(_MOST_LEB_BYTES):
            byte = self._data[position + step]
            value |= (byte & 0x7F) << (7 * step)
            if byte < 0x80:
                return value, position + step + 1
        raise _Broken

    def _signed(self, position: int) -> tuple[int, int]:
        value, following = self._unsigned(position)
        bits = 7 * (following - position)
        return value - (1 << bits) if value >> (bits - 1) else value, following

    def _text(self, data: bytes, position: int) -> tuple[str, int]:
        end = data.find(b"\0", position, position + _MOST_NAME_BYTES)
        if end < 0:
            raise _Broken
        return data[position:end].decode(errors="replace"), end + 1
