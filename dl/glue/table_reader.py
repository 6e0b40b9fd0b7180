"""The module that reads the program's table: the functions at some indices in a row, which one call returns."""

from __future__ import annotations

from dl.engine.import_list import CHUNK
from dl.glue.names import ANY_TABLE, BASE_NAMESPACE, TABLE_NAME
from dl.wasm.encode import ModuleBuilder, i32_const, local_get, unsigned
from dl.wasm.opcodes import I32_ADD, TABLE_GET
from dl.wasm.types import FuncType

READ_TABLE = "read"
_READ_TYPE = FuncType(("i32",), ("funcref",) * CHUNK)


def table_reader() -> bytes:
    """Generate the module: `read` takes a table index, and returns what the table holds from there on.

    It exports the table again. It is the same for all programs, so that it is compiled once.
    """
    build = ModuleBuilder()
    table = build.import_(BASE_NAMESPACE, TABLE_NAME, ANY_TABLE)
    elements = b"".join(
        local_get(0) + i32_const(number) + I32_ADD + TABLE_GET + unsigned(table) for number in range(CHUNK)
    )
    build.export(READ_TABLE, "func", build.function(_READ_TYPE, elements))
    build.export(TABLE_NAME, "table", table)
    return build.build()
