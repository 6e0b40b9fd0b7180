"""The instructions that generated code uses, by the names of the specification.

Source: WebAssembly core specification, chapter 5.4 "Instructions". Instructions with immediates that vary are functions of
`dl.wasm.encode`; those here are complete, or are followed by their immediates.
"""

from __future__ import annotations

BLOCK_VOID, LOOP_VOID, IF_VOID, IF_I32 = b"\x02\x40", b"\x03\x40", b"\x04\x40", b"\x04\x7f"
ELSE, END, RETURN, DROP, UNREACHABLE = b"\x05", b"\x0b", b"\x0f", b"\x1a", b"\x00"
BR, BR_IF = b"\x0c", b"\x0d"

I32_EQZ, I32_EQ, I32_NE, I32_LT_S, I32_GT_U, I32_GE_U = b"\x45", b"\x46", b"\x47", b"\x48", b"\x4b", b"\x4f"
I32_LT_U, I32_SHR_U = b"\x49", b"\x76"
I32_ADD, I32_SUB, I32_AND, I32_OR = b"\x6a", b"\x6b", b"\x71", b"\x72"
I64_EQ, I64_NE, I64_GT_U, I64_LE_U, I64_GE_U, I64_ADD, I64_SHL = (
    b"\x51", b"\x52", b"\x56", b"\x58", b"\x5a", b"\x7c", b"\x86",
)  # fmt: skip
I64_SUB = b"\x7d"
I64_EXTEND_I32_U, I32_WRAP_I64 = b"\xad", b"\xa7"
SELECT = b"\x1b"

REF_NULL_FUNC, REF_IS_NULL, REF_FUNC = b"\xd0\x70", b"\xd1", b"\xd2"
REF_TEST = b"\xfb\x14"
TABLE_GET, TABLE_SET = b"\x25", b"\x26"
TABLE_INIT, ELEM_DROP = b"\xfc\x0c", b"\xfc\x0d"
TABLE_COPY, TABLE_GROW, TABLE_SIZE, TABLE_FILL = b"\xfc\x0e", b"\xfc\x0f", b"\xfc\x10", b"\xfc\x11"
MEMORY_SIZE = b"\x3f\x00"
MEMORY_COPY = b"\xfc\x0a"

ATOMIC_PREFIX = b"\xfe"
I32_ATOMIC_LOAD, I64_ATOMIC_LOAD, I32_ATOMIC_RMW_ADD = b"\xfe\x10", b"\xfe\x11", b"\xfe\x1e"
I64_ATOMIC_RMW_CMPXCHG = b"\xfe\x49"
MEMORY_ATOMIC_NOTIFY, MEMORY_ATOMIC_WAIT32, MEMORY_ATOMIC_WAIT64 = b"\xfe\x00", b"\xfe\x01", b"\xfe\x02"
"""Threads proposal. Each takes an alignment exponent and an offset, as loads and stores do."""

LOADS = {"i32": b"\x28", "i64": b"\x29", "f32": b"\x2a", "f64": b"\x2b", "v128": b"\xfd\x00"}
STORES = {"i32": b"\x36", "i64": b"\x37", "f32": b"\x38", "f64": b"\x39", "v128": b"\xfd\x0b"}
"""Loads and stores of whole values, by type."""
