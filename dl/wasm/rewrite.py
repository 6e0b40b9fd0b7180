"""Make changed copies of modules: other import names, shared tags, waits that the linker can interrupt.

A copy shares nothing with the module it was made from, and all that is not changed is byte-identical. Nothing
is ever renumbered: new types, functions and tables are appended to those that exist.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TypeAlias

from dl.errors import UnsupportedModuleError
from dl.wasm import encode
from dl.wasm import opcodes as op
from dl.wasm.instructions import (
    ATOMIC_NOTIFY,
    ATOMIC_WAIT32,
    ATOMIC_WAIT64,
    AtomicSite,
    Body,
    function_label,
    scan_body,
    walk_bodies,
)
from dl.wasm.module import WasmModule
from dl.wasm.reader import Reader
from dl.wasm.records import (
    SECTION_CODE,
    SECTION_CUSTOM,
    SECTION_DATA,
    SECTION_DATA_COUNT,
    SECTION_ELEMENT,
    SECTION_EXPORT,
    SECTION_FUNCTION,
    SECTION_GLOBAL,
    SECTION_IMPORT,
    SECTION_MEMORY,
    SECTION_START,
    SECTION_TABLE,
    SECTION_TAG,
    SECTION_TYPE,
)
from dl.wasm.sections import tag_type, walk_imports
from dl.wasm.types import FuncType, TagType

# The three instructions as they can be encoded, padded numbers included: prefix, number, and the alignment,
# which must be exactly 4 or 8 bytes, perhaps with the bit that announces a memory index. What matches may
# still be an operand, but only a body with a match is worth stepping through. No byte of a match but its
# first is 0xFE, so a match that is not an instruction never hides one that is.
_MAYBE_WAIT = re.compile(
    rb"\xfe(?:[\x00-\x02]|[\x80-\x82]\x80{0,3}\x00)[\x02\x03\x42\x43\x82\x83\xc2\xc3]", re.DOTALL
)

FUTEX_TYPES = {
    ATOMIC_NOTIFY: FuncType(("i32", "i32"), ("i32",)),
    ATOMIC_WAIT32: FuncType(("i32", "i32", "i64"), ("i32",)),
    ATOMIC_WAIT64: FuncType(("i32", "i64", "i64"), ("i32",)),
}
_NAMES = {
    ATOMIC_NOTIFY: "memory.atomic.notify",
    ATOMIC_WAIT32: "memory.atomic.wait32",
    ATOMIC_WAIT64: "memory.atomic.wait64",
}

_RANK = {
    section: rank
    for rank, section in enumerate(
        (
            SECTION_TYPE,
            SECTION_IMPORT,
            SECTION_FUNCTION,
            SECTION_TABLE,
            SECTION_MEMORY,
            SECTION_TAG,
            SECTION_GLOBAL,
            SECTION_EXPORT,
            SECTION_START,
            SECTION_ELEMENT,
            SECTION_DATA_COUNT,
            SECTION_CODE,
            SECTION_DATA,
        )
    )
}
"""The order of sections in a module."""

_HEADER_BYTES = 8
_COPY_SECTION = "dl.copy"

Parts: TypeAlias = "list[bytes | memoryview]"


def rename_imports(module: WasmModule, names: Sequence[tuple[str, str]]) -> bytes:
    """Copy a module with other names on its imports; their types and order stay.

    A dylink section keeps the old names.

    Args:
        module: what to copy.
        names: the new (module, name) of each import, in the order of `module.imports`.

    Raises:
        ValueError: there are not as many names as imports.
    """
    parts = _renamed(module, names, ())
    return (
        module.data
        if module.section(SECTION_IMPORT) is None
        else with_sections(module, {SECTION_IMPORT: parts})
    )


def rename_and_place(
    module: WasmModule,
    names: Sequence[tuple[str, str]],
    functions: Sequence[int],
    export: str,
    table_import: tuple[str, str],
) -> bytes:
    """Copy a module with other names on its imports, and a function that puts some of its functions into table 0.

    The function takes the table index of the first, and the others follow; it can be called once. Nothing is imported or
    exported for it by name but itself: an engine finds functions of its own by their numbers.

    Args:
        module: what to copy.
        names: the new (module, name) of each import, in the order of `module.imports`.
        functions: numbers of the functions that are placed, in the order of their places.
        export: under which name the function that places them is exported; the module has none of this name.
        table_import: names of the table's import, for a module that has no table.
    """
    segment = encode.unsigned(len(module.elements))
    init = encode.i32_const(0) + encode.i32_const(len(functions)) + encode.table_init(len(module.elements))
    code = encode.vector([]) + encode.local_get(0) + init + op.ELEM_DROP + segment + op.END
    passive = b"\x01\x00" + encode.vector([encode.unsigned(function) for function in functions])
    place = encode.name_bytes(export) + b"\x00" + encode.unsigned(len(module.functions))
    table = encode.name_bytes(table_import[0]) + encode.name_bytes(table_import[1]) + b"\x01\x70\x00\x00"
    changes: dict[int, Parts | None] = {
        SECTION_TYPE: appended(module, SECTION_TYPE, [encode.function_type(FuncType(("i32",), ()))]),
        SECTION_FUNCTION: appended(module, SECTION_FUNCTION, [encode.unsigned(len(module.types))]),
        SECTION_EXPORT: appended(module, SECTION_EXPORT, [place]),
        SECTION_ELEMENT: appended(module, SECTION_ELEMENT, [passive]),
        SECTION_CODE: code_section(module, {}, lambda _site: b"", [encode.unsigned(len(code)) + code]),
    }
    if module.section(SECTION_IMPORT) is not None or not module.tables:
        changes[SECTION_IMPORT] = _renamed(module, names, () if module.tables else (table,))
    return with_sections(module, changes)


def _renamed(module: WasmModule, names: Sequence[tuple[str, str]], added: Sequence[bytes]) -> Parts:
    """Give the contents of the section of imports, with other names, and more of them at its end."""
    if len(names) != len(module.imports):
        raise ValueError(f"{len(names)} names for {len(module.imports)} imports")
    section = module.section(SECTION_IMPORT)
    if section is None:
        return [encode.unsigned(len(added)), *added]
    data = module.data
    reader = Reader(data, section.payload_start, section.end, module.name)
    parts: Parts = [encode.unsigned(len(names) + len(added))]
    # Few module names for many imports: encode each once.
    prefixes: dict[str, bytes] = {}
    for (outer, inner), entry in zip(names, walk_imports(reader, module.types), strict=True):
        prefix = prefixes.get(outer)
        if prefix is None:
            prefix = prefixes[outer] = encode.name_bytes(outer)
        parts += (prefix, encode.name_bytes(inner), data[entry.type_start : entry.type_end])
    return [*parts, *added]


def numbered_copy(wasm: bytes, number: int) -> bytes:
    """Copy a module so that its content differs from that of other copies, and nothing else does.

    Code is known by its content, also in stack traces. A program that holds two modules of the same content, and wants to tell
    them apart there, numbers the second one.

    Args:
        wasm: the module.
        number: which copy; 0 is the module itself, others get a custom section with their number at the end.
    """
    if not number:
        return wasm
    return wasm + encode.section(SECTION_CUSTOM, encode.name_bytes(_COPY_SECTION) + encode.unsigned(number))


def import_tags(module: WasmModule, names: Collection[str], kind: TagType) -> bytes:
    """Copy a module that imports, from `env`, exception tags that it defined and exported under certain names.

    So that it shares them with modules that were linked before it. Only the tags at the front of those it defines are
    taken: others would have to be renumbered.

    Args:
        module: what to copy.
        names: names under which the tags are exported, and then also imported.
        kind: the type that they have.

    Returns:
        The copy; the module's own bytes if there is no such tag.
    """
    first = module.import_counts["tag"]
    exported = {e.index: e.name for e in module.exports.values() if e.kind == "tag" and e.name in names}
    last = first
    while last in exported and module.tags[last] == kind:
        last += 1
    section = module.section(SECTION_TAG)
    if last == first or section is None:
        return module.data
    reader = Reader(module.data, section.payload_start, section.end, module.name)
    count = reader.count("tags")
    entries = []
    for index in range(first, last):
        start = reader.pos
        tag_type(reader, module.types)
        entry = encode.name_bytes("env") + encode.name_bytes(exported[index]) + b"\x04"
        entries.append(entry + module.data[start : reader.pos])
    return with_sections(
        module,
        {
            SECTION_IMPORT: appended(module, SECTION_IMPORT, entries),
            SECTION_TAG: [encode.unsigned(count - len(entries)), module.data[reader.pos : section.end]],
        },
    )


def contains_wait_instructions(module: WasmModule) -> bool:
    """Say whether the module has what `rewrite_waits` changes: a wait or notify on shared memory.

    On a memory that is not shared a wait traps and a notify wakes nobody, whoever executes them.

    Raises:
        MalformedModuleError: a body that had to be stepped through does not hold whole instructions.
        UnsupportedModuleError: such a body has an unknown instruction.
    """
    return any(shared_sites(module, body) for body in bodies_to_scan(module))


def uses_legacy_exceptions(module: WasmModule) -> bool:
    """Say whether a function handles exceptions in the old encoding (`try`, `catch`, `delegate`, `rethrow`).

    Steps through every body that has the byte of `try`, up to about a second for 10 MB of code: meant to
    explain why an engine refused a module, not for every load. Also where there is no tag: code that only cleans up
    catches all and names none.

    Raises:
        MalformedModuleError: a body that had to be stepped through does not hold whole instructions.
        UnsupportedModuleError: such a body has an unknown instruction.
    """
    data = module.data
    # Each of the other instructions must stand in a `try`.
    bodies = (body for body in walk_bodies(module) if data.find(b"\x06", body.code, body.end) >= 0)
    return any(scan_body(module, body).legacy_at is not None for body in bodies)


def rewrite_waits(
    module: WasmModule,
    *,
    notify_slot: int,
    wait32_slot: int,
    wait64_slot: int,
    memory: int = 0,
    table_import: tuple[str, str] = ("env", "__indirect_function_table"),
) -> bytes:
    """Copy a module with its waits and notifies on shared memory sent to functions in the table.

    Each `memory.atomic.notify`, `wait32` and `wait64` becomes a call of an appended function, which calls
    through a fixed element of table 0:

    * notify: (i32 address, i32 count) -> i32 woken;
    * wait32: (i32 address, i32 expected, i64 timeout) -> i32 0, 1 or 2;
    * wait64: (i32 address, i64 expected, i64 timeout) -> i32 0, 1 or 2.

    The address includes the instruction's offset. Before the call, the appended function loads from it with
    an atomic load of the same width, so that an address out of bounds or not aligned traps as it did before.
    A module with no table gets one as its last import. Positions of code in other custom sections (debugging
    information, branch hints) are not corrected.

    A module that defines table 0 itself runs its start function before anyone can put the three functions into
    that table (and wasm-ld's memory initialisation notifies there), or its table may be too small for ever. So
    in such a module the appended function executes the instruction itself while there is nothing to call.

    Args:
        module: what to copy.
        notify_slot: table index of the notify function.
        wait32_slot: table index of the wait32 function.
        wait64_slot: table index of the wait64 function.
        memory: index of the memory that the three functions know.
        table_import: names of the table's import, for a module that has none.

    Returns:
        The copy; the module's own bytes if it has none of the three instructions.

    Raises:
        MalformedModuleError: a body that had to be stepped through does not hold whole instructions.
        UnsupportedModuleError: such a body has an unknown instruction, or waits on another shared memory or
            on one with 64-bit addresses; or table 0 does not hold plain function references.
    """
    sites = {body: found for body in bodies_to_scan(module) if (found := shared_sites(module, body))}
    if not sites:
        return module.data
    _check_rewritable(module, sites, memory)

    slots = {ATOMIC_NOTIFY: notify_slot, ATOMIC_WAIT32: wait32_slot, ATOMIC_WAIT64: wait64_slot}
    helpers = sorted({(site.number, site.offset) for found in sites.values() for site in found})
    numbers = sorted({number for number, _ in helpers})
    types = {number: len(module.types) + position for position, number in enumerate(numbers)}
    calls = {key: encode.call(len(module.functions) + position) for position, key in enumerate(helpers)}
    is64 = bool(module.tables) and module.tables[0].limits.is64
    own_table = bool(module.tables) and module.import_counts["table"] == 0

    bodies: list[bytes] = []
    for number, offset in helpers:
        slot = encode.i64_const(slots[number]) if is64 else encode.i32_const(slots[number])
        call = slot + encode.call_indirect(types[number])
        unless_filled = _branch_if_empty(slot, is64=is64) if own_table else None
        bodies.append(_helper_body(number, offset, memory, call, unless_filled))
    changes: dict[int, Parts | None] = {
        SECTION_TYPE: appended(
            module, SECTION_TYPE, [encode.function_type(FUTEX_TYPES[number]) for number in numbers]
        ),
        SECTION_FUNCTION: appended(module, SECTION_FUNCTION, [encode.unsigned(types[n]) for n, _ in helpers]),
        SECTION_CODE: code_section(module, sites, lambda site: calls[site.number, site.offset], bodies),
    }
    if not module.tables:
        entry = encode.name_bytes(table_import[0]) + encode.name_bytes(table_import[1]) + b"\x01\x70\x00\x00"
        changes[SECTION_IMPORT] = appended(module, SECTION_IMPORT, [entry])
    return with_sections(module, changes)


def bodies_to_scan(module: WasmModule) -> Iterator[Body]:
    """List the bodies that may hold one of the three instructions, found by their bytes."""
    if not any(memory.limits.shared for memory in module.memories):
        return
    matches = _MAYBE_WAIT.finditer(module.data, module.code_start, module.code_end)
    match = next(matches, None)
    if match is None:
        return
    for body in walk_bodies(module):
        found = False
        while match is not None and match.start() < body.end:
            found = found or match.start() >= body.code
            match = next(matches, None)
        if found:
            yield body


def shared_sites(module: WasmModule, body: Body) -> list[AtomicSite]:
    """Return a body's waits and notifies on shared memory, in order."""
    memories = module.memories
    return [
        site
        for site in scan_body(module, body).atomics
        if site.memory < len(memories) and memories[site.memory].limits.shared
    ]


def _check_rewritable(module: WasmModule, sites: Mapping[Body, list[AtomicSite]], memory: int) -> None:
    if module.tables and module.tables[0].element != "funcref":
        reason = f"it waits by instruction, but its table 0 holds {module.tables[0].element}, not funcref"
        raise UnsupportedModuleError(module.name, reason)
    for body, found in sites.items():
        for site in found:
            is64 = module.memories[site.memory].limits.is64
            if site.memory == memory and not is64:
                continue
            why = "with 64-bit addresses" if is64 else f"on memory {site.memory}, not on memory {memory}"
            where = f"at byte {site.start:#x} in {function_label(module, body.function)}"
            raise UnsupportedModuleError(module.name, f"{_NAMES[site.number]} {why} ({where})")


def _branch_if_empty(slot: bytes, *, is64: bool) -> bytes:
    """Encode a branch out of the enclosing block, taken if table 0 ends before that element or it is null."""
    table, label = encode.unsigned(0), encode.unsigned(0)
    beyond = slot + op.TABLE_SIZE + table + (op.I64_GE_U if is64 else op.I32_GE_U)
    empty = slot + op.TABLE_GET + table + op.REF_IS_NULL
    return beyond + op.BR_IF + label + empty + op.BR_IF + label


def _helper_body(number: int, offset: int, memory: int, call: bytes, unless_filled: bytes | None) -> bytes:
    """Encode the body of one appended function.

    It loads atomically from the same effective address first: that traps exactly where the instruction would.
    So the addition that follows cannot wrap, since the address is inside a memory of at most 4 GiB.
    """
    load, align = (op.I64_ATOMIC_LOAD, 3) if number == ATOMIC_WAIT64 else (op.I32_ATOMIC_LOAD, 2)
    address = encode.local_get(0)
    operands = b"".join(
        encode.local_get(parameter) for parameter in range(1, len(FUTEX_TYPES[number].params))
    )
    add = encode.i32_const(offset) + op.I32_ADD if offset else b""
    check = address + encode.memory_access(load, align, offset, memory) + op.DROP
    code = check + address + add + operands + call
    if unless_filled is not None:
        instruction = encode.memory_access(op.ATOMIC_PREFIX + bytes([number]), align, offset, memory)
        code = op.BLOCK_VOID + unless_filled + code + op.RETURN + op.END + address + operands + instruction
    code = encode.vector([]) + code + op.END
    return encode.unsigned(len(code)) + code


def code_section(
    module: WasmModule,
    sites: Mapping[Body, list[AtomicSite]],
    call: Callable[[AtomicSite], bytes],
    new_bodies: Sequence[bytes],
) -> Parts:
    """Give the code section's contents, with other code for some instructions, and more bodies at its end."""
    view = memoryview(module.data)
    reader = Reader(module.data, module.code_start, module.code_end, module.name)
    count = reader.count("function bodies")
    parts: Parts = [encode.unsigned(count + len(new_bodies))]
    copied = reader.pos
    for body, found in sites.items():
        changed: Parts = []
        pos = body.code
        for site in found:
            changed += (view[pos : site.start], call(site))
            pos = site.end
        changed.append(view[pos : body.end])
        parts += (view[copied : body.start], encode.unsigned(_size(changed)), *changed)
        copied = body.end
    return [*parts, view[copied : module.code_end], *new_bodies]


def position_before_rewriting(
    original: WasmModule, body: Body, rewritten: WasmModule, new_body: Body, offset: int
) -> int:
    """Return where an instruction of a module that `rewrite_waits` has made was before, as a file offset.

    Args:
        original: the module before.
        body: the function's body there.
        rewritten: the module after; the order of the functions is the same.
        new_body: the function's body there.
        offset: bytes from the beginning of the new body, behind its length, to the instruction.
    """
    before, after, wanted = body.code, new_body.code, new_body.code + offset
    for site in shared_sites(original, body):
        if wanted < after + site.start - before:
            break
        after += site.start - before
        # The call that stands for the instruction: the opcode, and the number of an appended function.
        reader = Reader(rewritten.data, after + 1, new_body.end, rewritten.name)
        reader.u32("a function index")
        if wanted < reader.pos:
            return site.start
        before, after = site.end, reader.pos
    return before + wanted - after


def appended(module: WasmModule, number: int, items: Sequence[bytes]) -> Parts:
    """Give a section's contents, a vector, with more items after the ones it has."""
    section = module.section(number)
    if section is None:
        return [encode.unsigned(len(items)), *items]
    reader = Reader(module.data, section.payload_start, section.end, module.name)
    count = reader.count("items")
    return [encode.unsigned(count + len(items)), memoryview(module.data)[reader.pos : section.end], *items]


def with_sections(module: WasmModule, contents: Mapping[int, Parts | None]) -> bytes:
    """Copy a module with other contents in some sections; those that it lacks are made, None takes one out."""
    view = memoryview(module.data)
    parts: Parts = [view[:_HEADER_BYTES]]
    missing = sorted((number for number in contents if module.section(number) is None), key=_RANK.__getitem__)

    def put(number: int, new: Parts | None) -> None:
        if new is not None:
            parts.extend((bytes([number]), encode.unsigned(_size(new)), *new))

    for section in module.sections:
        while missing and section.id in _RANK and _RANK[missing[0]] < _RANK[section.id]:
            put(missing[0], contents[missing.pop(0)])
        if section.id == SECTION_CUSTOM or section.id not in contents:
            parts.append(view[section.start : section.end])
        else:
            put(section.id, contents[section.id])
    for number in missing:
        put(number, contents[number])
    return b"".join(parts)


def _size(parts: Parts) -> int:
    return sum(map(len, parts))
