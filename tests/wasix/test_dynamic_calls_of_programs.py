"""`call_dynamic` and `reflect_signature` in static programs, through the table that they export."""

from __future__ import annotations

import struct
from typing import Any

import pytest

import dl
from tests.support.modules import static
from tests.wasix.test_dynamic_calls import EXPORTS, IMPORTS, INVALID, NOT_SUPPORTED, SUCCESS


class TestMainModules:
    FIELDS = (
        *IMPORTS,
        EXPORTS,
        '(func $twice (export "twice") (param i32) (result i32) (i32.mul (local.get 0) (i32.const 2)))',
        '(func $trap (export "trap") unreachable)',
        "(elem (i32.const 1) $twice $trap)",
    )
    ENTRIES = tuple(
        f'(func (export "{name}") (param i32 i32 i32 i32 i32 i32) (result i32)'
        f" {' '.join(f'(local.get {i})' for i in range(6))} call ${function})"
        for name, function in (("go", "call_dynamic"), ("reflect", "reflect_signature"))
    )

    @pytest.mark.parametrize(
        "table",
        ['(table (export "t") 4 funcref)', '(table (export "t") 4 4 funcref)'],
        ids=["growable", "fixed"],
    )
    def test_static_programs_call_and_reflect_through_the_table_they_export(self, table: str) -> None:
        """Also where the table cannot grow, so that the program takes no libraries."""
        wasm = static(*self.FIELDS[:2], *self.FIELDS[3:], *self.ENTRIES, table=table)
        with dl.Linker(wasm, name="main.wasm") as linker:
            main: Any = linker.program.main_module
            group = linker.main_group
            kind = main.wasm.exports["go"].type

            def call(name: str, *arguments: int) -> Any:
                return group.own.call_export(main, name, kind, *arguments)

            linker.memory.write_u32(1024, 21)
            assert call("go", 1, 1024, 4, 1028, 4, 1) == SUCCESS
            assert linker.memory.read_u32(1028) == 42
            assert call("go", 3, 0, 0, 0, 0, 1) == INVALID
            with pytest.raises(dl.TrapError, match="unreachable"):
                call("go", 2, 0, 0, 0, 0, 1)
            assert call("reflect", 1, 1040, 1, 1041, 1, 1048) == SUCCESS
            assert linker.memory.read(1040, 2) == b"\0\0"
            assert linker.memory.read(1048, 6) == struct.pack("<BBHH", 1, 0, 1, 1)

    def test_a_program_whose_table_is_its_own_gets_not_supported(self) -> None:
        """Without an exported table the linker cannot know what an index means."""
        wasm = static(*self.FIELDS[:2], *self.ENTRIES, table="(table 4 funcref)")
        with dl.Linker(wasm, name="main.wasm") as linker:
            main: Any = linker.program.main_module
            group = linker.main_group
            kind = main.wasm.exports["go"].type
            linker.memory.fill(1024, 0xEE, 8)

            assert group.own.call_export(main, "go", kind, 1, 0, 0, 0, 0, 1) == NOT_SUPPORTED
            assert group.own.call_export(main, "reflect", kind, 1, 0, 0, 0, 0, 1024) == NOT_SUPPORTED
            assert linker.memory.read(1024, 8) == bytes(6) + b"\xee\xee"
