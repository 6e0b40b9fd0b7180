"""The text format, read by wasmtime's own parser."""

from __future__ import annotations

import wasmtime


def parse_text(text: bytes) -> bytes:
    """Return the binary form of a module in text form.

    Raises:
        ValueError: it is none; the parser's message, with line and column.
    """
    try:
        return bytes(wasmtime.wat2wasm(text))
    except wasmtime.WasmtimeError as error:
        raise ValueError(" ".join(str(error).split())) from error
