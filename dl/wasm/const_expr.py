"""Constant expressions: what initialises globals and places element and data segments.

Core specification 3.0, section 3.3.10 (constant expressions), with the arithmetic that the extended-const
proposal brought in: position-independent code writes an address as `__memory_base + constant`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

ConstExpr: TypeAlias = tuple[tuple[str, int], ...]
"""A constant expression: (instruction, immediate) in order, without its `end`; an instruction without an
immediate has 0. Integer constants are signed, floating-point and vector ones are their bits, unsigned.
Instructions of the GC proposal appear as `gc.<number>` with their first immediate."""


def evaluate(
    expr: ConstExpr, global_values: Mapping[int, int] | Callable[[int], int | None] | None = None
) -> int | None:
    """Compute a constant expression as far as it can be known without an instance.

    Args:
        expr: what to compute.
        global_values: values of globals by index: a mapping, or a function that gives None for what it does
            not know. None stands for no known globals.

    Returns:
        An integer modulo 2**32 or 2**64, unsigned, as its type is i32 or i64; the function's index for
        `ref.func`; None for `ref.null`, for other types, and where an unknown global is involved.
    """
    stack: list[int | None] = []
    for name, immediate in expr:
        if name == "i32.const":
            stack.append(immediate & 0xFFFF_FFFF)
        elif name == "i64.const":
            stack.append(immediate & 0xFFFF_FFFF_FFFF_FFFF)
        elif name == "ref.func":
            stack.append(immediate)
        elif name == "global.get":
            if global_values is None:
                stack.append(None)
            elif isinstance(global_values, Mapping):
                stack.append(global_values.get(immediate))
            else:
                stack.append(global_values(immediate))
        elif name[3:] in (".add", ".sub", ".mul"):
            if len(stack) < 2:
                return None
            right, left = stack.pop(), stack.pop()
            stack.append(_arithmetic(name, left, right))
        else:
            # A reference, float or vector: nothing that follows can make an integer of it.
            return None
    return stack[0] if len(stack) == 1 else None


def _arithmetic(name: str, left: int | None, right: int | None) -> int | None:
    if left is None or right is None:
        return None
    if name.endswith("add"):
        value = left + right
    elif name.endswith("sub"):
        value = left - right
    else:
        value = left * right
    return value & (0xFFFF_FFFF if name.startswith("i32") else 0xFFFF_FFFF_FFFF_FFFF)
