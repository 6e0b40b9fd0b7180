"""The imports of an instance as the library takes them by position; it takes functions from the table by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dl.engine.import_list import ImportList
from dl.engine.wasmer import c
from dl.engine.wasmer.errors import Handle, check

if TYPE_CHECKING:
    from dl.engine.wasmer.instance import WasmerInstance
    from dl.engine.wasmer.store import WasmerStore


def listed(store: WasmerStore, name: str, imports: ImportList, generated: WasmerInstance | None) -> Handle:
    """Return the native list of an instance's imports.

    Args:
        store: the store.
        name: what is instantiated.
        imports: where each import is found.
        generated: the instance whose exports the list names, if it names any.

    Raises:
        InstantiationError: a table index holds no function, or nothing is known by a name.
    """
    context = store.context()
    made = Handle(c.list_new(imports.count), c.list_delete)
    native = made.pointer
    for functions, base in imports.placed:
        table, count = store.function_table, len(functions.positions)
        assert table is not None
        positions, offsets = (words.buffer_info()[0] for words in functions.words)
        check(c.list_functions(context, native, table.pointer, base, positions, offsets, count), name)
    for position, namespace, wanted in imports.named:
        raw, raw_name = namespace.encode(), wanted.encode()
        check(c.list_named(context, native, position, raw, len(raw), raw_name, len(raw_name)), name)
    for position, mutable, value in imports.numbers:
        check(c.list_number(context, native, position, mutable, value & 0xFFFFFFFF), name)
    for position, export in imports.generated:
        assert generated is not None
        raw = export.encode()
        check(c.list_export(native, position, generated.pointer, raw, len(raw)), name)
    return made
