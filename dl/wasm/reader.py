"""A cursor over a part of a WebAssembly binary: integers, names, types, constant expressions.

Core specification 3.0, section 5 (binary format). Every read checks what is left before it takes or allocates
anything, and every failure is an error that names the byte offset in the file. The engine validates modules;
this reader makes sure of the bounds and of what the linker itself builds on.
"""

from __future__ import annotations

import sys

from dl.errors import MalformedModuleError, UnsupportedModuleError
from dl.wasm.const_expr import ConstExpr
from dl.wasm.types import GlobalType, Limits, MemoryType, TableType, ValType
from threads import found_in

MAX_ITEMS = 1_000_000
"""Most types, functions, imports, exports, globals … a module may have: the JS API's implementation limit."""

MAX_CONST_OPS = 10_000
"""Most instructions of one constant expression: far above what tools write, so that a hostile file stays cheap."""

_VALUE_TYPES: dict[int, ValType] = {
    0x7F: "i32",
    0x7E: "i64",
    0x7D: "f32",
    0x7C: "f64",
    0x7B: "v128",
    0x75: "nullcontref",
    0x74: "nullexnref",
    0x73: "nullfuncref",
    0x72: "nullexternref",
    0x71: "nullref",
    0x70: "funcref",
    0x6F: "externref",
    0x6E: "anyref",
    0x6D: "eqref",
    0x6C: "i31ref",
    0x6B: "structref",
    0x6A: "arrayref",
    0x69: "exnref",
    0x68: "contref",
}
_HEAP_TYPES = {
    0x75: "nocont",
    0x74: "noexn",
    0x73: "nofunc",
    0x72: "noextern",
    0x71: "none",
    0x70: "func",
    0x6F: "extern",
    0x6E: "any",
    0x6D: "eq",
    0x6C: "i31",
    0x6B: "struct",
    0x6A: "array",
    0x69: "exn",
    0x68: "cont",
}
_FIRST_REFERENCE, _LAST_REFERENCE = 0x68, 0x75
_REF_NULL, _REF = 0x63, 0x64

_GLOBAL_TYPES = {
    (code, mutable): GlobalType(text, bool(mutable))
    for code, text in _VALUE_TYPES.items()
    for mutable in (0, 1)
}

_CONST_ARITHMETIC = {
    0x6A: "i32.add",
    0x6B: "i32.sub",
    0x6C: "i32.mul",
    0x7C: "i64.add",
    0x7D: "i64.sub",
    0x7E: "i64.mul",
}
# The GC instructions that constant expressions may have, with the number of LEB immediates each takes.
_CONST_GC = {0: 1, 1: 1, 6: 1, 7: 1, 8: 2, 26: 0, 27: 0, 28: 0}

_LIMITS_MAXIMUM, _LIMITS_SHARED, _LIMITS_64, _LIMITS_PAGE_SIZE = 1, 2, 4, 8
_MAX_PAGES, _MAX_PAGES_64 = 1 << 16, 1 << 48


class Reader:
    """A cursor over `data[pos:end]`; offsets in errors count from the start of `data`, plus `base`.

    Attributes:
        data: the bytes; never copied as a whole.
        pos: index in `data` of the next byte.
        end: index in `data` behind the last byte this reader may take.
        module: name of the module, for errors.
        error: class of the errors it raises.
        base: file offset of `data[0]`, in bytes.
    """

    __slots__ = ("base", "data", "end", "error", "module", "pos")

    def __init__(
        self,
        data: bytes,
        pos: int,
        end: int,
        module: str,
        *,
        error: type[MalformedModuleError] = MalformedModuleError,
        base: int = 0,
    ) -> None:
        self.data = data
        self.pos = pos
        self.end = end
        self.module = module
        self.error = error
        self.base = base

    def malformed(self, reason: str, at: int | None = None) -> MalformedModuleError:
        """Make this reader's error for index `at` of the data (the cursor if None)."""
        return self.error(self.module, self.base + (self.pos if at is None else at), reason)

    def unsupported(self, what: str, at: int) -> UnsupportedModuleError:
        """Make the error for something valid but not handled, at index `at` of the data."""
        return UnsupportedModuleError(self.module, f"{what} (at byte {self.base + at:#x})")

    def byte(self, what: str) -> int:
        """Take one byte."""
        pos = self.pos
        if pos >= self.end:
            raise self.malformed(f"ends inside {what}")
        self.pos = pos + 1
        return self.data[pos]

    def u32(self, what: str) -> int:
        """Take an unsigned 32-bit LEB128 integer, which may be padded to at most 5 bytes."""
        pos = self.pos
        if pos < self.end:
            value = self.data[pos]
            if value < 0x80:
                self.pos = pos + 1
                return value
        return self._long(what, 32, signed=False)

    def u64(self, what: str) -> int:
        """Take an unsigned 64-bit LEB128 integer, which may be padded to at most 10 bytes."""
        return self._long(what, 64, signed=False)

    def signed(self, what: str, bits: int) -> int:
        """Take a signed LEB128 integer of `bits` bits (32, 33 or 64)."""
        pos = self.pos
        if pos < self.end:
            value = self.data[pos]
            if value < 0x80:
                self.pos = pos + 1
                return value - 0x80 if value & 0x40 else value
        return self._long(what, bits, signed=True)

    def _long(self, what: str, bits: int, *, signed: bool) -> int:
        data, start = self.data, self.pos
        most = -(-bits // 7)
        value = shift = 0
        for pos in range(start, min(start + most, self.end)):
            byte = data[pos]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                if signed:
                    if byte & 0x40:
                        value -= 1 << shift
                    if not -(1 << bits - 1) <= value < 1 << bits - 1:
                        raise self.malformed(f"{what} does not fit into {bits} bits", start)
                elif value >> bits:
                    raise self.malformed(f"{what} does not fit into {bits} bits", start)
                self.pos = pos + 1
                return value
        if self.end - start < most:
            raise self.malformed(f"ends inside {what}", self.end)
        raise self.malformed(f"{what} takes more than {most} bytes", start)

    def count(self, what: str, limit: int = MAX_ITEMS, item_bytes: int = 1) -> int:
        """Take the length of a vector, refused if its items cannot fit in what is left.

        Args:
            what: the items' name in errors.
            limit: most items to accept.
            item_bytes: the least that one item takes.
        """
        start = self.pos
        count = self.u32(f"the number of {what}")
        left = self.end - self.pos
        if count * item_bytes > left:
            raise self.malformed(f"{count} {what} cannot fit in the {left} bytes that are left", start)
        if count > limit:
            raise self.malformed(f"{count} {what} are more than the {limit} that are allowed", start)
        return count

    def u32_vector(self, count: int, what: str) -> list[int]:
        """Take `count` unsigned 32-bit integers; fast for the long lists of function indices."""
        data, pos = self.data, self.pos
        quick = data[pos : pos + count]
        if len(quick) == count and pos + count <= self.end and quick.isascii():
            self.pos = pos + count
            return list(quick)
        values: list[int] = []
        append = values.append
        safe_end = self.end - 5
        for _ in range(count):
            if pos < safe_end:
                value = data[pos]
                if value < 0x80:
                    pos += 1
                    append(value)
                    continue
                second = data[pos + 1]
                if second < 0x80:
                    pos += 2
                    append(value + (second - 1 << 7))
                    continue
            self.pos = pos
            append(self._long(what, 32, signed=False))
            pos = self.pos
        self.pos = pos
        return values

    def name(self, what: str) -> str:
        """Take a name: a length in bytes, then that much UTF-8. Equal names are one object, also those of other modules."""
        start = self.pos
        length = self.u32(f"the length of {what}")
        pos = self.pos
        end = pos + length
        if end > self.end:
            raise self.malformed(
                f"{what} of {length} bytes does not fit in the {self.end - pos} that are left", start
            )
        try:
            text = sys.intern(self.data[pos:end].decode())
        except UnicodeDecodeError as error:
            raise self.malformed(f"{what} is not valid UTF-8", pos + error.start) from None
        self.pos = end
        return text

    def skip(self, size: int, what: str) -> None:
        """Step over `size` bytes."""
        if size > self.end - self.pos:
            raise self.malformed(f"ends inside {what}", self.end)
        self.pos += size

    def value_type(self, what: str) -> ValType:
        """Take a value type."""
        start = self.pos
        code = self.byte(what)
        text = found_in(_VALUE_TYPES, code)
        if text is not None:
            return text
        if code in (_REF_NULL, _REF):
            return self._reference(code)
        raise self.malformed(f"{what} has no type of code {code:#04x}", start)

    def reference_type(self, what: str) -> ValType:
        """Take a reference type."""
        start = self.pos
        if start < self.end:
            code = self.data[start]
            if not (_FIRST_REFERENCE <= code <= _LAST_REFERENCE or code in (_REF_NULL, _REF)):
                raise self.malformed(f"{what} has no reference type of code {code:#04x}", start)
        return self.value_type(what)

    def heap_type(self) -> str:
        """Take a heap type, as the text format writes it."""
        start = self.pos
        value = self.signed("a heap type", 33)
        if value >= 0:
            return str(value)
        text = _HEAP_TYPES.get(value + 0x80)
        if text is None:
            raise self.unsupported(f"a heap type of code {value & 0x7F:#04x}", start)
        return text

    def _reference(self, code: int) -> ValType:
        start = self.pos
        heap = self.heap_type()
        if code == _REF:
            return f"(ref {heap})"
        # One spelling per type: `(ref null func)` is what `funcref` abbreviates.
        if heap[0].isdigit():
            return f"(ref null {heap})"
        return _VALUE_TYPES[self.data[start] & 0x7F]

    def global_type(self) -> GlobalType:
        """Take the type of a global."""
        start = self.pos
        if start + 1 < self.end:
            pair = self.data[start], self.data[start + 1]
            if (
                pair in _GLOBAL_TYPES
            ):  # and not `get`, which on CPython 3.13t takes the dictionary's lock twice, and so spins
                self.pos = start + 2
                return _GLOBAL_TYPES[pair]
        value = self.value_type("a global")
        mutable = self.byte("a global's mutability")
        if mutable > 1:
            if mutable & ~3 == 0:
                raise self.unsupported("a shared global", start)
            raise self.malformed(f"a global's mutability is {mutable:#04x}, not 0 or 1", self.pos - 1)
        return GlobalType(value, bool(mutable))

    def table_type(self) -> TableType:
        """Take the type of a table."""
        return TableType(
            self.reference_type("a table"), self._limits("a table", (1 << 32) - 1, (1 << 64) - 1)
        )

    def memory_type(self) -> MemoryType:
        """Take the type of a memory."""
        return MemoryType(self._limits("a memory", _MAX_PAGES, _MAX_PAGES_64))

    def _limits(self, what: str, most: int, most_64: int) -> Limits:
        start = self.pos
        flags = self.byte(f"the limits of {what}")
        if flags > 0x0F:
            raise self.malformed(f"the limits of {what} have unknown flags {flags:#04x}", start)
        if flags & _LIMITS_PAGE_SIZE:
            raise self.unsupported(f"{what} with a page size of its own", start)
        shared, is64 = bool(flags & _LIMITS_SHARED), bool(flags & _LIMITS_64)
        if is64:
            most = most_64
        read = self.u64 if is64 else self.u32
        minimum_at = self.pos
        minimum = read(f"the size of {what}")
        maximum = read(f"the maximum of {what}") if flags & _LIMITS_MAXIMUM else None
        if minimum > most:
            raise self.malformed(f"{what} of {minimum} is larger than any can be ({most})", minimum_at)
        if maximum is not None and not minimum <= maximum <= most:
            raise self.malformed(
                f"the maximum of {what}, {maximum}, is not between its minimum {minimum} and {most}",
                minimum_at,
            )
        if shared and maximum is None:
            raise self.malformed(f"{what} is shared but has no maximum", start)
        if shared and what == "a table":
            raise self.unsupported("a shared table", start)
        return Limits(minimum, maximum, shared, is64)

    def const_expr(self) -> ConstExpr:
        """Take a constant expression with its `end`."""
        ops: list[tuple[str, int]] = []
        first = self.pos
        while True:
            start = self.pos
            if len(ops) > MAX_CONST_OPS:
                raise self.malformed(
                    f"a constant expression of more than {MAX_CONST_OPS} instructions", first
                )
            code = self.byte("a constant expression")
            if code == 0x0B:
                return tuple(ops)
            if code == 0x41:
                ops.append(("i32.const", self.signed("an i32.const", 32)))
            elif code == 0x23:
                ops.append(("global.get", self.u32("a global's index")))
            elif code == 0x42:
                ops.append(("i64.const", self.signed("an i64.const", 64)))
            elif code in _CONST_ARITHMETIC:
                ops.append((_CONST_ARITHMETIC[code], 0))
            elif code == 0xD2:
                ops.append(("ref.func", self.u32("a function's index")))
            elif code == 0xD0:
                self.heap_type()
                ops.append(("ref.null", 0))
            elif code == 0x43:
                ops.append(("f32.const", self._bits(4)))
            elif code == 0x44:
                ops.append(("f64.const", self._bits(8)))
            elif code == 0xFD and (number := self.u32("an instruction's number")) == 12:
                ops.append(("v128.const", self._bits(16)))
            elif code == 0xFB and (number := self.u32("an instruction's number")) in _CONST_GC:
                immediates = [self.u32("an immediate") for _ in range(_CONST_GC[number])]
                ops.append((f"gc.{number}", immediates[0] if immediates else 0))
            else:
                raise self.malformed(f"instruction {code:#04x} in a constant expression", start)

    def _bits(self, size: int) -> int:
        start = self.pos
        self.skip(size, "a constant")
        return int.from_bytes(self.data[start : self.pos], "little")
