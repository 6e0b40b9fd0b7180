"""WebAssembly's text format, turned into modules by an engine that can read it."""

from __future__ import annotations

from dl.errors import LinkError


def binary_of(text: bytes, name: str) -> bytes:
    """Return the module that a text stands for.

    Args:
        text: what a `.wat` file has in it.
        name: for messages.

    Raises:
        LinkError: it is no module in text form; says where.
    """
    from dl.engine.wasmtime.text import parse_text  # noqa: PLC0415  an engine is loaded when one is needed

    try:
        return parse_text(text)
    except ValueError as error:
        raise LinkError(name, str(error)) from error
