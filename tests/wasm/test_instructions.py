"""Stepping through code: every instruction by its exact length, and no guessing."""

from __future__ import annotations

import pytest
import wasmtime
from hypothesis import given, settings
from hypothesis import strategies as st

import dl
from dl.errors import DlError, MalformedModuleError, UnsupportedModuleError
from dl.wasm.instructions import scan_body, walk_bodies
from dl.wasm.module import parse_module
from dl.wasm.rewrite import contains_wait_instructions, rewrite_waits

# What stands in a function before a wait. Nothing is validated, so operands and blocks need not fit.
INSTRUCTIONS = """
unreachable | nop | block end | block (result i32) end | block (param i32 i32) (result i32) end | loop end
if else end | block (result (ref null $f)) end | block (result (ref $f)) end | loop (result funcref) end
br 0 | br_if 0 | br_table 0 | br_table 0 0 0 0 | return | call 0 | call 300 | call_indirect (type $f)
call_indirect 1 (type $f) | return_call 0 | return_call_indirect (type $f) | call_ref $f | return_call_ref $f
throw 0 | throw_ref | try_table end | try_table (catch 0 0) (catch_ref 0 0) (catch_all 0) (catch_all_ref 0) end
try_table (result i32) (catch 0 0) i32.const 1 end | try catch 0 catch_all end | try delegate 0 | try catch_all rethrow 0 end
drop | select | select (result i32) | select (result (ref null $f)) | local.get 0 | local.set 200 | local.tee 0
global.get 0 | global.set 0 | table.get 0 | table.set 1 | table.size 0 | table.grow 0 | table.fill 0
table.copy 0 1 | table.init 0 0 | elem.drop 0 | memory.size | memory.grow 1 | memory.fill | memory.fill 1
memory.copy | memory.copy 0 1 | memory.init 0 | data.drop 0 | i32.load | i64.load offset=4294967295 align=1
i32.load 1 offset=3 | f32.load align=2 | f64.store | i32.store8 offset=254 | i64.store32 1 | i32.const -2
i32.const 2147483647 | i32.const -2147483648 | i64.const -9223372036854775808 | i64.const 254 | f32.const 1
f64.const -1e300 | i32.eqz | i64.extend32_s | i32.trunc_sat_f32_s | i64.trunc_sat_f64_u | i64.add128
i64.mul_wide_u | ref.null func | ref.null $f | ref.null extern | ref.is_null | ref.func 0 | ref.eq
ref.as_non_null | br_on_null 0 | br_on_non_null 0 | struct.new $s | struct.new_default $s | struct.get $s 0
struct.get_s $s 0 | struct.get_u $s 0 | struct.set $s 0 | array.new $a | array.new_default $a
array.new_fixed $a 3 | array.new_data $a 0 | array.new_elem $a 0 | array.get $a | array.get_s $a | array.get_u $a
array.set $a | array.len | array.fill $a | array.copy $a $a | array.init_data $a 0 | array.init_elem $a 0
ref.test (ref $s) | ref.test (ref null any) | ref.cast (ref i31) | ref.cast (ref null $s) | any.convert_extern
extern.convert_any | ref.i31 | i31.get_s | i31.get_u | br_on_cast 0 anyref (ref $s) | br_on_cast_fail 0 anyref i31ref
v128.load | v128.load8x8_s offset=300 | v128.load64_splat 1 | v128.store | v128.const i64x2 -2 254
i8x16.shuffle 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 31 | i8x16.swizzle | i32x4.splat | i8x16.extract_lane_s 15
f64x2.replace_lane 1 | v128.load8_lane 15 | v128.load64_lane 1 offset=5 1 | v128.store16_lane 7
v128.load32_zero | v128.load64_zero offset=9 | i8x16.eq | v128.bitselect | f32x4.demote_f64x2_zero
f64x2.convert_low_i32x4_u | i8x16.relaxed_swizzle | i32x4.relaxed_dot_i8x16_i7x16_add_s | f64x2.relaxed_max
atomic.fence | i32.atomic.load offset=7 | i64.atomic.load32_u 1 | i64.atomic.store | i32.atomic.rmw.add
i64.atomic.rmw32.xchg_u offset=254 | i32.atomic.rmw8.cmpxchg_u | i64.atomic.rmw.cmpxchg
memory.atomic.notify | memory.atomic.wait64 1 offset=300
"""
ALL_INSTRUCTIONS = [part.strip() for line in INSTRUCTIONS.strip().splitlines() for part in line.split("|")]
INSTRUCTION_MODULE = """(module (type $f (func (param i32))) (type $s (struct (field (mut i32)))) (type $a (array (mut i8)))
  (memory 1 1 shared) (memory 1 1 shared) (table 1 funcref) (table 1 funcref) (tag (param i32)) (global (mut i32) (i32.const 0))
  (elem funcref) (data) (func (local i32 (ref null $f) v128) {0} memory.atomic.wait32 offset=77))"""


class TestInstructions:
    @pytest.mark.parametrize("instruction", ALL_INSTRUCTIONS)
    def test_immediates_are_stepped_over_exactly(self, instruction: str) -> None:
        """Behind an instruction of any shape, a wait is found where it stands."""
        module = _assemble(INSTRUCTION_MODULE.format(instruction))
        (body,) = walk_bodies(module)
        site = scan_body(module, body).atomics[-1]

        assert (site.number, site.offset, site.memory) == (1, 77, 0)
        assert site.end == body.end - 1
        expected = 2 if instruction.startswith("memory.atomic") else 1
        assert len(scan_body(module, body).atomics) == expected

    def test_all_in_a_row(self) -> None:
        """A body with every instruction is stepped through to its end."""
        module = _assemble(INSTRUCTION_MODULE.format(" ".join(ALL_INSTRUCTIONS)))
        (body,) = walk_bodies(module)

        assert [(s.number, s.memory, s.offset) for s in scan_body(module, body).atomics] == [
            (0, 0, 0),
            (2, 1, 300),
            (1, 0, 77),
        ]

    @pytest.mark.parametrize("opcode", range(0x45, 0xC5))
    def test_numeric_instructions_have_no_immediates(self, opcode: int) -> None:
        """All numeric instructions are a single byte."""
        module = _one_body(bytes([opcode]) + b"\xfe\x01\x02\x00")

        assert contains_wait_instructions(module)

    @pytest.mark.parametrize(
        "code",
        [
            "16",
            "17",
            "27",
            "c5",
            "cf",
            "d7",
            "e0",
            "f0",
            "ff",
            "fb 1f",
            "fc 12",
            "fc 17",
            "fd 94 02",
            "fe 04",
            "fe 4f",
            "1f 40 01 04",
        ],
    )
    def test_unknown_instruction(self, code: str) -> None:
        """An instruction of unknown length is refused with its place, not guessed at."""
        module = _one_body(bytes.fromhex(code) + b"\xfe\x01\x02\x00")
        with pytest.raises(UnsupportedModuleError) as caught:
            contains_wait_instructions(module)

        at = module.code_end - 5 - len(bytes.fromhex(code))
        assert caught.value.reason.startswith("unknown instruction ")
        assert caught.value.reason.endswith(f" at byte {at:#x} in function 0")

    @pytest.mark.parametrize(
        "tail", ["41 80", "44 00", "0e 05", "fd 0c 00", "fe 01 02", "28 80", "1c 03", "41 00"]
    )
    def test_body_that_ends_inside_an_instruction(self, tail: str) -> None:
        """Instructions that run over the end of their body are damage."""
        module = _one_body(b"\xfe\x01\x02\x00" + bytes.fromhex(tail), end=b"")
        with pytest.raises(
            MalformedModuleError, match="instructions of function 0 do not end where its body does"
        ):
            contains_wait_instructions(module)

    @settings(max_examples=500, derandomize=True)
    @given(st.binary(max_size=60))
    def test_any_bytes(self, code: bytes) -> None:
        """Random code is stepped through or refused, and never read beyond the file."""
        module = _one_body(b"\xfe\x01\x02\x00" + code)
        try:
            result = rewrite_waits(module, notify_slot=1, wait32_slot=2, wait64_slot=3)
        except DlError as error:
            assert str(error).startswith("test.wasm: ")  # noqa: PT017 - both outcomes are right
        else:
            assert parse_module(result, "after.wasm").functions[0] == module.functions[0]


def _one_body(code: bytes, end: bytes = b"\x0b") -> dl.WasmModule:
    """Make a module with a shared memory, a table and one function body of that code."""
    body = b"\0" + code + end
    sections = (
        b"\x01\x04\x01\x60\0\0" + b"\x03\x02\x01\0" + b"\x04\x04\x01\x70\0\x08" + b"\x05\x04\x01\x03\x01\x01"
    )
    section = bytes([10, len(body) + 2, 1, len(body)]) + body
    return parse_module(b"\0asm\x01\0\0\0" + sections + section, "test.wasm")


def _assemble(text: str) -> dl.WasmModule:
    return parse_module(bytes(wasmtime.wat2wasm(text)), "test.wasm")
