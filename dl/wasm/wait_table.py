"""Make copies of ordinary modules whose atomic waits call functions in a table that is added to them.

As in `dl.wasm.rewrite`, nothing is renumbered: the table comes after all others. Because a module cannot import a table behind
those that it defines, the copy defines it and whoever instantiates it fills it; so that no code of the module runs before, the
start function is exported instead, and called then.
"""

from __future__ import annotations

from dl.records import dataclass
from dl.wasm import encode
from dl.wasm import opcodes as op
from dl.wasm.instructions import ATOMIC_NOTIFY, ATOMIC_WAIT64
from dl.wasm.module import WasmModule
from dl.wasm.records import (
    SECTION_CODE,
    SECTION_EXPORT,
    SECTION_FUNCTION,
    SECTION_START,
    SECTION_TABLE,
    SECTION_TYPE,
)
from dl.wasm.rewrite import (
    FUTEX_TYPES,
    Parts,
    appended,
    bodies_to_scan,
    code_section,
    shared_sites,
    with_sections,
)
from dl.wasm.types import FuncType


@dataclass(frozen=True)
class WaitTable:
    """A copy of a module whose waits and notifies on shared memory call functions in a table of its own.

    Attributes:
        wasm: the copy.
        table: the name under which it exports the table.
        start: the name under which it exports its start function, to be called when the table is filled; None for none.
        memories: the memories that it waits on: of each, the table has the functions for `notify`, `wait32` and `wait64`.
    """

    wasm: bytes
    table: str
    start: str | None
    memories: tuple[int, ...]


def with_wait_table(module: WasmModule) -> WaitTable | None:
    """Copy a module with its waits and notifies on shared memory sent to functions in a table that is added to it.

    For a module that shares no table with anybody, and waits on whatever memories it has. The functions are those of
    `rewrite_waits`; the address is of the memory's width. Before a wait is called, the copy compares what the memory holds with
    what is expected, so a function for a memory that no other thread has need not.

    Returns:
        The copy; None if it has none of the three instructions.

    Raises:
        MalformedModuleError: a body that had to be stepped through does not hold whole instructions.
        UnsupportedModuleError: such a body has an unknown instruction.
    """
    sites = {body: found for body in bodies_to_scan(module) if (found := shared_sites(module, body))}
    if not sites:
        return None
    helpers = sorted({(site.number, site.memory, site.offset) for found in sites.values() for site in found})
    memories = tuple(sorted({memory for _, memory, _ in helpers}))
    widths = {memory: "i64" if module.memories[memory].limits.is64 else "i32" for memory in memories}
    kinds = {
        (number, widths[memory]): FuncType((widths[memory], *FUTEX_TYPES[number].params[1:]), ("i32",))
        for number, memory, _ in helpers
    }
    types = {key: len(module.types) + position for position, key in enumerate(kinds)}
    calls = {key: encode.call(len(module.functions) + position) for position, key in enumerate(helpers)}
    table, size = len(module.tables), encode.unsigned(3 * len(memories))
    bodies = [
        _waiting_body(
            number,
            offset,
            memory,
            widths[memory],
            encode.i32_const(3 * memories.index(memory) + number)
            + encode.call_indirect(types[number, widths[memory]], table),
        )
        for number, memory, offset in helpers
    ]
    name = _unused("dl.waits", module)
    exported = [encode.name_bytes(name) + b"\x01" + encode.unsigned(table)]
    start = None if module.start is None else _unused("dl.start", module)
    if start is not None:
        assert module.start is not None
        exported.append(encode.name_bytes(start) + b"\x00" + encode.unsigned(module.start))
    changes: dict[int, Parts | None] = {
        SECTION_TYPE: appended(module, SECTION_TYPE, [encode.function_type(kind) for kind in kinds.values()]),
        SECTION_FUNCTION: appended(
            module, SECTION_FUNCTION, [encode.unsigned(types[n, widths[m]]) for n, m, _ in helpers]
        ),
        SECTION_TABLE: appended(module, SECTION_TABLE, [b"\x70\x01" + size + size]),
        SECTION_EXPORT: appended(module, SECTION_EXPORT, exported),
        SECTION_CODE: code_section(module, sites, lambda s: calls[s.number, s.memory, s.offset], bodies),
    }
    if start is not None:
        changes[SECTION_START] = None
    return WaitTable(with_sections(module, changes), name, start, memories)


def _unused(name: str, module: WasmModule) -> str:
    """Return a name that a module exports nothing under."""
    while name in module.exports:
        name += "'"
    return name


def _waiting_body(number: int, offset: int, memory: int, width: str, call: bytes) -> bytes:
    """Encode the body of one function that `with_wait_table` appends; see `_helper_body`."""
    wide = number == ATOMIC_WAIT64
    load, align = (op.I64_ATOMIC_LOAD, 3) if wide else (op.I32_ATOMIC_LOAD, 2)
    address = encode.local_get(0)
    code = address + encode.memory_access(load, align, offset, memory)
    if number == ATOMIC_NOTIFY:
        code += op.DROP + address
    else:
        unequal = op.I64_NE if wide else op.I32_NE
        code += (
            encode.local_get(1) + unequal + op.IF_VOID + encode.i32_const(1) + op.RETURN + op.END + address
        )
    if offset:
        code += (
            encode.i64_const(offset) + op.I64_ADD if width == "i64" else encode.i32_const(offset) + op.I32_ADD
        )
    for parameter in range(1, len(FUTEX_TYPES[number].params)):
        code += encode.local_get(parameter)
    code = encode.vector([]) + code + call + op.END
    return encode.unsigned(len(code)) + code
