"""Libraries to open and close."""

from __future__ import annotations

from typing import Any

import dl
from tests.support.modules import (
    MEMORY,
    SHARED_MEMORY,
    TABLE,
    data,
    library,
    returns,
)

SHARED = dl.MemoryType(minimum=20, maximum=200, shared=True)


def plugin(value: int, *, shared: bool = False, **options: Any) -> bytes:
    """A library with data, a table and a function."""
    return library(
        SHARED_MEMORY if shared else MEMORY,
        TABLE,
        returns("f", value),
        data("d", 0),
        memory_size=4096,
        table_size=2,
        **options,
    )


def caller(*, shared: bool = False) -> bytes:
    """A library that calls a function pointer."""
    return library(
        SHARED_MEMORY if shared else MEMORY,
        TABLE,
        "(type $t (func (result i32)))",
        '(func (export "call") (param i32) (result i32) (call_indirect (type $t) (local.get 0)))',
    )
