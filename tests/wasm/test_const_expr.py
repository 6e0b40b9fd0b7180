"""Constant expressions: what can be known of a value before there is an instance."""

from __future__ import annotations

from typing import Any

import pytest
import wasmtime

from dl.wasm.const_expr import evaluate
from dl.wasm.module import parse_module


class TestConstantExpressions:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("i32 (i32.const -1)", 0xFFFF_FFFF),
            ("i64 (i64.const -1)", 0xFFFF_FFFF_FFFF_FFFF),
            ("i32 (i32.add (global.get 0) (i32.const 24))", 1024),
            ("i32 (i32.sub (i32.const 1) (i32.mul (i32.const 3) (i32.const 5)))", 0xFFFF_FFF2),
            ("i64 (i64.add (i64.const 0x7fffffffffffffff) (i64.const 1))", 1 << 63),
            ("i64 (i64.sub (i64.const 1) (i64.mul (i64.const 2) (i64.const 4)))", 2**64 - 7),
            ("i32 (i32.add (global.get 1) (i32.const 24))", None),
            ("funcref (ref.func 0)", 0),
            ("funcref (ref.null func)", None),
            ("f32 (f32.const 1)", None),
            ("v128 (v128.const i64x2 1 2)", None),
            ("i31ref (ref.i31 (i32.const 4))", None),
        ],
    )
    def test_values(self, text: str, value: int | None) -> None:
        """Constants, known globals and arithmetic give an unsigned value; what is not known gives None."""
        source = (
            f'(module (import "e" "a" (global i32)) (import "e" "b" (global i32)) (func) (global {text}))'
        )
        init = parse_module(bytes(wasmtime.wat2wasm(source)), "m").globals[2].init
        assert init is not None

        assert evaluate(init, {0: 1000}) == value
        assert evaluate(init, lambda index: 1000 if index == 0 else None) == value

    @pytest.mark.parametrize("ops", [(), (("i32.add", 0),), (("i32.const", 1), ("i32.const", 2))])
    def test_no_single_value(self, ops: Any) -> None:
        """An expression that does not leave exactly one value has none."""
        assert evaluate(ops) is None

    def test_without_known_globals(self) -> None:
        """Without globals, an expression of one is not known."""
        assert evaluate((("global.get", 0),)) is None
