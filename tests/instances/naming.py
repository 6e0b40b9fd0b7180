"""Modules that import from others by name, and programs that have these."""

from __future__ import annotations

from typing import Any

import dl
from tests.support.modules import module

MEMORY = '(memory (export "memory") 1)'


def importing(*names: str, sums: str = "f") -> bytes:
    """A module that imports `f` from others, and whose own `f` returns the sum of theirs and 1."""
    imports = [f'(import "{name}" "f" (func $f{i} (result i32)))' for i, name in enumerate(names)]
    total = "(i32.const 1)"
    for i in range(len(names)):
        total = f"(i32.add (call $f{i}) {total})"
    return module(*imports, f'(func (export "{sums}") (result i32) {total})')


def linked(modules: dict[str, bytes] | None = None, **options: Any) -> dl.Linker:
    return dl.Linker(None, cache=False, modules=modules, **options)
