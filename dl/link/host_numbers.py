"""Numbers that the host gives for imported globals."""

from __future__ import annotations

import math
import struct

from dl.errors import ImportTypeError
from dl.glue.resolution import HOST, Constant
from dl.modules.linked_module import LinkedModule
from dl.text import shown
from dl.wasm.records import Import
from dl.wasm.types import GlobalType


def label(entry: Import) -> str:
    """Return an import's two names for a message."""
    return f"{shown(entry.module)}.{shown(entry.name)}"


def host_number(importer: LinkedModule, entry: Import, kind: GlobalType, number: float) -> Constant:
    """Take a number of the host's for a global, if the global's type holds it."""
    fits = False
    if kind.value in ("i32", "i64"):
        bits = int(kind.value[1:])
        fits = isinstance(number, int) and -(1 << (bits - 1)) <= number < 1 << bits
    elif kind.value in ("f32", "f64"):
        try:
            number = _float_bits(kind, float(number))
            fits = True
        except OverflowError:
            fits = False
    if not fits:
        # An integer that fits nowhere may have thousands of digits.
        shown_number = (
            "beyond 80 bits" if isinstance(number, int) and number.bit_length() > 80 else str(number)
        )
        raise ImportTypeError(
            importer.name, label(entry), str(kind), f"the number {shown_number}", "the host"
        )
    return Constant(int(number), HOST)


def _float_bits(kind: GlobalType, number: float) -> int:
    """Return the bits of a floating-point global; what single precision cannot hold becomes an infinity, as in C."""
    layout = "<f" if kind.value == "f32" else "<d"
    try:
        raw = struct.pack(layout, number)
    except OverflowError:
        raw = struct.pack(layout, math.copysign(math.inf, number))
    return int.from_bytes(raw, "little")
