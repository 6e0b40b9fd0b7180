"""Step through function bodies, to find the few instructions the linker must know about.

Every instruction of the core specification 3.0 (section 5.4) is stepped over by the exact length of its
immediates: with SIMD, relaxed SIMD, bulk memory, atomics (threads proposal), GC, typed references, tail
calls, several memories, wide arithmetic, and both encodings of exception handling. An instruction of unknown
length is an error: to guess would be to read operands as instructions.

What it finds it only reports; validation is the engine's.
"""

from __future__ import annotations

from collections.abc import Iterator

from dl.errors import MalformedModuleError, UnsupportedModuleError
from dl.records import NamedTuple, dataclass
from dl.wasm.module import WasmModule
from dl.wasm.reader import Reader

ATOMIC_NOTIFY, ATOMIC_WAIT32, ATOMIC_WAIT64 = 0, 1, 2
"""Numbers of the three instructions behind the prefix 0xFE (threads proposal, binary format)."""

# How the immediates of an opcode are stepped over. The order is that of the tests in `scan_body`.
(
    _NONE,
    _INDEX,
    _MEMARG,
    _BLOCK,
    _INDEX_TWICE,
    _BYTES_4,
    _BYTES_8,
    _PREFIX_FC,
    _PREFIX_FD,
    _PREFIX_FB,
    _PREFIX_FE,
    _BR_TABLE,
    _TRY_TABLE,
    _SELECT,
    _LEGACY_BLOCK,
    _LEGACY_INDEX,
    _LEGACY_NONE,
    _UNKNOWN,
) = range(18)


def _opcodes() -> list[int]:
    kinds = [_UNKNOWN] * 256
    groups: tuple[tuple[int, tuple[int, ...]], ...] = (
        # unreachable nop else throw_ref end return drop select; numeric; ref.is_null ref.eq ref.as_non_null
        (_NONE, (0x00, 0x01, 0x05, 0x0A, 0x0B, 0x0F, 0x1A, 0x1B, *range(0x45, 0xC5), 0xD1, 0xD3, 0xD4)),
        # throw br br_if call return_call call_ref return_call_ref; locals, globals, tables;
        # memory.size memory.grow; i32.const i64.const; ref.null ref.func br_on_null br_on_non_null
        (_INDEX, (0x08, 0x0C, 0x0D, 0x10, 0x12, 0x14, 0x15, *range(0x20, 0x27), 0x3F, 0x40, 0x41, 0x42)),
        (_INDEX, (0xD0, 0xD2, 0xD5, 0xD6)),
        (_INDEX_TWICE, (0x11, 0x13)),
        (_MEMARG, tuple(range(0x28, 0x3F))),
        (_BLOCK, (0x02, 0x03, 0x04)),
        (_BR_TABLE, (0x0E,)),
        (_SELECT, (0x1C,)),
        (_TRY_TABLE, (0x1F,)),
        (_BYTES_4, (0x43,)),
        (_BYTES_8, (0x44,)),
        (_LEGACY_BLOCK, (0x06,)),
        (_LEGACY_INDEX, (0x07, 0x09, 0x18)),
        (_LEGACY_NONE, (0x19,)),
        (_PREFIX_FB, (0xFB,)),
        (_PREFIX_FC, (0xFC,)),
        (_PREFIX_FD, (0xFD,)),
        (_PREFIX_FE, (0xFE,)),
    )
    for kind, codes in groups:
        for code in codes:
            kinds[code] = kind
    return kinds


_KINDS = _opcodes()

# How many LEB immediates an instruction has behind the prefix 0xFB (GC), and behind 0xFC (saturating
# truncation, bulk memory, tables, wide arithmetic).
_GC_INDICES = {
    **dict.fromkeys((15, 26, 27, 28, 29, 30), 0),
    **dict.fromkeys((0, 1, 6, 7, 11, 12, 13, 14, 16, 20, 21, 22, 23), 1),
    **dict.fromkeys((2, 3, 4, 5, 8, 9, 10, 17, 18, 19), 2),
}
_GC_BR_ON_CAST = (24, 25)
_FC_INDICES = {
    **dict.fromkeys((*range(8), *range(19, 23)), 0),
    **dict.fromkeys((9, 11, 13, 15, 16, 17), 1),
    **dict.fromkeys((8, 10, 12, 14), 2),
}


class AtomicSite(NamedTuple):
    """One `memory.atomic.wait32/wait64/notify` in a body.

    Attributes:
        start: file offset of the instruction.
        end: file offset behind it.
        number: ATOMIC_NOTIFY, ATOMIC_WAIT32 or ATOMIC_WAIT64.
        memory: index of the memory.
        offset: bytes added to the address operand.
    """

    start: int
    end: int
    number: int
    memory: int
    offset: int


@dataclass(frozen=True, slots=True)
class BodyScan:
    """What was found in a function body.

    Attributes:
        atomics: its waits and notifies in order.
        legacy_at: file offset of the first instruction of legacy exception handling, None without one.
        try_table_at: file offset of the last `try_table`, None without one.
        vector_at: file offset of the last vector instruction, None without one.
    """

    atomics: tuple[AtomicSite, ...]
    legacy_at: int | None
    try_table_at: int | None
    vector_at: int | None


class Body(NamedTuple):
    """Where a function's body lies: `start` at its length, `code` behind that, `end` behind its last byte."""

    function: int
    start: int
    code: int
    end: int


def walk_bodies(module: WasmModule) -> Iterator[Body]:
    """List the function bodies in order.

    Raises:
        MalformedModuleError: a body does not fit in the code section.
    """
    if not module.code_end:
        return
    reader = Reader(module.data, module.code_start, module.code_end, module.name)
    first = module.import_counts["func"]
    for function in range(first, first + reader.count("function bodies")):
        start = reader.pos
        size = reader.u32("a function body's length")
        code = reader.pos
        reader.skip(size, f"the body of function {function}")
        yield Body(function, start, code, reader.pos)
    if reader.pos != reader.end:
        raise reader.malformed(f"{reader.end - reader.pos} bytes left over in the code section")


def scan_body(module: WasmModule, body: Body) -> BodyScan:
    """Step through one function body.

    Raises:
        MalformedModuleError: the instructions do not fill the body exactly.
        UnsupportedModuleError: an instruction is unknown; names the function and the offset.
    """
    data, end = module.data, body.end
    atomics: list[AtomicSite] = []
    legacy_at: int | None = None
    try_table_at: int | None = None
    vector_at: int | None = None
    kinds = _KINDS
    start = body.code
    try:
        pos = _skip_locals(data, start)
        while pos < end:
            start = pos
            kind = kinds[data[pos]]
            pos += 1
            if kind == _NONE:
                continue
            if kind == _INDEX:
                while data[pos] > 0x7F:
                    pos += 1
                pos += 1
            elif kind == _MEMARG:
                pos = _skip_memarg(data, pos)
            elif kind == _BLOCK:
                pos = _skip_type(data, pos)
            elif kind == _INDEX_TWICE:
                pos = _skip_indices(data, pos, 2)
            elif kind == _BYTES_4:
                pos += 4
            elif kind == _BYTES_8:
                pos += 8
            elif kind == _PREFIX_FC:
                number, pos = _number(data, pos)
                pos = _skip_indices(data, pos, _FC_INDICES[number])
            elif kind == _PREFIX_FD:
                vector_at = start
                pos = _skip_vector(data, pos)
            elif kind == _PREFIX_FB:
                pos = _skip_gc(data, pos)
            elif kind == _PREFIX_FE:
                number, pos = _number(data, pos)
                if number <= ATOMIC_WAIT64:
                    memory, offset, pos = _memarg(data, pos)
                    atomics.append(AtomicSite(start, pos, number, memory, offset))
                elif number == 3:
                    pos += 1
                elif 0x10 <= number <= 0x4E:
                    pos = _skip_memarg(data, pos)
                else:
                    raise KeyError(number)
            elif kind == _BR_TABLE:
                count, pos = _number(data, pos)
                pos = _skip_indices(data, pos, count + 1)
            elif kind == _TRY_TABLE:
                try_table_at = start
                pos = _skip_try_table(data, pos)
            elif kind == _SELECT:
                count, pos = _number(data, pos)
                for _ in range(count):
                    pos = _skip_type(data, pos)
            elif kind == _UNKNOWN:
                raise KeyError(data[start])
            else:
                if legacy_at is None:
                    legacy_at = start
                if kind == _LEGACY_BLOCK:
                    pos = _skip_type(data, pos)
                elif kind == _LEGACY_INDEX:
                    pos = _skip_indices(data, pos, 1)
    except IndexError:
        pos = end + 1
    except KeyError:
        code = data[start : start + 3].hex(" ")
        raise UnsupportedModuleError(
            module.name,
            f"unknown instruction {code} at byte {start:#x} in {function_label(module, body.function)}",
        ) from None
    if pos != end or data[end - 1] != 0x0B:
        label = function_label(module, body.function)
        raise MalformedModuleError(
            module.name, start, f"instructions of {label} do not end where its body does"
        )
    return BodyScan(tuple(atomics), legacy_at, try_table_at, vector_at)


def function_label(module: WasmModule, function: int) -> str:
    """Name a function for a message: its index, and the name it is exported under, if it is."""
    names = (repr(e.name) for e in module.exports.values() if e.kind == "func" and e.index == function)
    name = next(names, None)
    return f"function {function}" if name is None else f"function {function} ({name})"


def _number(data: bytes, pos: int) -> tuple[int, int]:
    value = shift = 0
    while data[pos] > 0x7F:
        value |= (data[pos] & 0x7F) << shift
        shift += 7
        pos += 1
        if shift > 63:
            raise IndexError
    return value | data[pos] << shift, pos + 1


def _skip_indices(data: bytes, pos: int, count: int) -> int:
    for _ in range(count):
        while data[pos] > 0x7F:
            pos += 1
        pos += 1
    return pos


def _skip_type(data: bytes, pos: int) -> int:
    """Step over a value type or a block type: one LEB, and one more behind `ref` and `ref null`."""
    return _skip_indices(data, pos, 2 if data[pos] in (0x63, 0x64) else 1)


def _skip_memarg(data: bytes, pos: int) -> int:
    if data[pos] < 0x40:
        pos += 1
        while data[pos] > 0x7F:
            pos += 1
        return pos + 1
    return _memarg(data, pos)[2]


def _memarg(data: bytes, pos: int) -> tuple[int, int, int]:
    """Take an alignment, a memory index (bit 6 of the alignment announces it) and an offset."""
    memory = 0
    align, pos = _number(data, pos)
    if align & 0x40:
        memory, pos = _number(data, pos)
    offset, pos = _number(data, pos)
    return memory, offset, pos


def _skip_locals(data: bytes, pos: int) -> int:
    count, pos = _number(data, pos)
    for _ in range(count):
        pos = _skip_type(data, _skip_indices(data, pos, 1))
    return pos


def _skip_try_table(data: bytes, pos: int) -> int:
    count, pos = _number(data, _skip_type(data, pos))
    for _ in range(count):
        # catch and catch_ref name a tag and a label, catch_all and catch_all_ref a label.
        if data[pos] > 3:
            raise KeyError(data[pos])
        pos = _skip_indices(data, pos + 1, 2 if data[pos] < 2 else 1)
    return pos


def _skip_vector(data: bytes, pos: int) -> int:
    number, pos = _number(data, pos)
    if number <= 11 or number in (92, 93):
        return _skip_memarg(data, pos)
    if number in (12, 13):
        return pos + 16
    if 21 <= number <= 34:
        return pos + 1
    if 84 <= number <= 91:
        return _skip_memarg(data, pos) + 1
    if number > 0x113:
        raise KeyError(number)
    return pos


def _skip_gc(data: bytes, pos: int) -> int:
    number, pos = _number(data, pos)
    if number in _GC_BR_ON_CAST:
        return _skip_indices(data, pos + 1, 3)
    return _skip_indices(data, pos, _GC_INDICES[number])
