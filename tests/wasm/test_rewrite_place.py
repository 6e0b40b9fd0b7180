"""Modules that place their own functions, and legacy exceptions that are told apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import wasmtime

from dl.wasm.module import parse_module
from dl.wasm.rewrite import (
    rename_and_place,
)


class TestPlace:
    """`rename_and_place`: a function that puts others of its module into the table."""

    TABLE = '(import "env" "table" (table 4 funcref))'

    @staticmethod
    def placed(data: bytes, functions: Sequence[int], first: int) -> dict[int, int]:
        """Return the results of what stands in the table once the functions are placed from an index on."""
        module = parse_module(data, "m")
        names = [(entry.module, entry.name) for entry in module.imports]
        copy = rename_and_place(module, names, functions, "place", ("env", "table"))
        store = wasmtime.Store()
        length = max(first + len(functions), 4)
        limits = wasmtime.Limits(length, None)
        table = wasmtime.Table(store, wasmtime.TableType(wasmtime.ValType.funcref(), limits), None)
        instance = wasmtime.Instance(store, wasmtime.Module(store.engine, copy), [table])
        place = instance.exports(store)["place"]
        assert isinstance(place, wasmtime.Func)
        place(store, first)
        found = {}
        for index in range(length):
            function: Any = table.get(store, index)
            function = function.value if isinstance(function, wasmtime.Val) else function
            if function is not None:
                found[index] = function(store)
        with pytest.raises(wasmtime.Trap):
            place(store, first)  # the segment is dropped
        return found

    @pytest.mark.parametrize("count", [1, 2, 126, 127, 128, 129])
    @pytest.mark.parametrize("table", [TABLE, ""], ids=["table imported", "no table"])
    def test_functions_stand_in_a_row(self, count: int, table: str) -> None:
        """In the order that was asked for, also where a section's numbers get longer by what is added."""
        functions = "".join(f'(func (export "f{n}") (result i32) i32.const {n})' for n in range(count))
        data = bytes(wasmtime.wat2wasm(f"(module {table} {functions})"))
        order = [*range(count)][::-1]

        assert self.placed(data, order, 3) == {3 + at: number for at, number in enumerate(order)}

    def test_what_the_module_places_itself_stays(self) -> None:
        """Segments of its own, active and passive, keep their numbers; its start function runs."""
        text = f"""(module {self.TABLE}
            (global $ran (mut i32) (i32.const 0))
            (func $a (result i32) i32.const 10) (func $b (result i32) global.get $ran)
            (elem (i32.const 0) $a) (elem $later func $b)
            (func $start i32.const 7 global.set $ran
                (table.init $later (i32.const 1) (i32.const 0) (i32.const 1)))
            (start $start))"""

        assert self.placed(bytes(wasmtime.wat2wasm(text)), [1], 2) == {0: 10, 1: 7, 2: 7}
