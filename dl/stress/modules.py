"""The modules of the stress run: a program and libraries, generated, small, and different where it matters.

Every library does the same and says who it is: `value(x)` adds a number that only its kind has, `where()` tells the bases
and GOT values its instance was given. So one compiled code serves thousands of libraries, opened under different names,
and any thread can check in any of them that it reached the right function of the right instance.
"""

from __future__ import annotations

from dl.records import dataclass
from dl.wasm.encode import (
    ModuleBuilder,
    call,
    call_indirect,
    global_get,
    global_set,
    i32_const,
    local_get,
    local_set,
    local_tee,
    memory_access,
    name_bytes,
    section,
    unsigned,
    vector,
)
from dl.wasm.opcodes import (
    BR_IF,
    END,
    I32_ADD,
    I32_ATOMIC_LOAD,
    I32_ATOMIC_RMW_ADD,
    I32_EQZ,
    LOADS,
    LOOP_VOID,
    MEMORY_ATOMIC_NOTIFY,
    MEMORY_ATOMIC_WAIT32,
    STORES,
    UNREACHABLE,
)  # fmt: skip
from dl.wasm.types import FuncType, GlobalType, Limits, MemoryType, TableType

_MAGIC_BYTES = 8
_NO_LIMITS = Limits(0, None, shared=False, is64=False)
MEMORY = MemoryType(Limits(1, 1 << 14, shared=True, is64=False))
TABLE = TableType("funcref", _NO_LIMITS)
BASE, VARIABLE = GlobalType("i32", mutable=False), GlobalType("i32", mutable=True)

ONE_TO_ONE = FuncType(("i32",), ("i32",))
TWO_TO_ONE = FuncType(("i32", "i32"), ("i32",))
TO_NOTHING = FuncType(("i32",), ())
PAIR_TO_NOTHING = FuncType(("i32", "i32"), ())
NOTHING = FuncType((), ())
WHERE = FuncType((), ("i32",) * 4)
WHERE_AT = FuncType(("i32",), WHERE.results)
WAIT = FuncType(("i32", "i32", "i64"), ("i32",))

_LOAD, _STORE = memory_access(LOADS["i32"], 2), memory_access(STORES["i32"], 2)
_ATOMIC_LOAD, _ATOMIC_ADD = memory_access(I32_ATOMIC_LOAD, 2), memory_access(I32_ATOMIC_RMW_ADD, 2)
_NOTIFY, _WAIT32 = memory_access(MEMORY_ATOMIC_NOTIFY, 2), memory_access(MEMORY_ATOMIC_WAIT32, 2)
_REPEAT = BR_IF + unsigned(0)

WORDS_BYTES = 1 << 14
"""Bytes of the program's data that threads wait, spin and write at; the rest is stacks of the guest's threads."""

STACK_BYTES, STACKS = 1024, 256


def dylink_section(
    memory_bytes: int, needed: tuple[str, ...] = (), align_log2: int = 4, *, table_elements: int = 0
) -> bytes:
    """Return a `dylink.0` section, which comes first in a module.

    Args:
        memory_bytes: linear memory from `__memory_base` on.
        needed: names of libraries to load first.
        align_log2: alignment of that memory.
        table_elements: table elements from `__table_base` on.
    """
    info = b"".join(unsigned(n) for n in (memory_bytes, align_log2, table_elements, 0))
    parts = section(1, info)
    if needed:
        parts += section(2, vector([name_bytes(name) for name in needed]))
    return section(0, name_bytes("dylink.0") + parts)


def with_dylink(build: ModuleBuilder, dylink: bytes) -> bytes:
    """Return a module's bytes with a section in front."""
    wasm = build.build()
    return wasm[:_MAGIC_BYTES] + dylink + wasm[_MAGIC_BYTES:]


def program_module() -> bytes:
    """Generate the program.

    It exports `words` (data), `words_end`, and functions: `spin(word)` computes until the word is not 0, then calls the
    function at that table index with 1; `wait(word, expected, ns)` and `notify(word, count)` are the atomic instructions;
    `count(word)` adds 1; `call(function, x)` and `where_at(function)` call through the table; `trap()`; `start(record)` starts
    a thread, which calls the host's `on_thread(number, record)`.
    """
    build = ModuleBuilder()
    spawn = build.import_("wasix_32v1", "thread_spawn_v2", TWO_TO_ONE)
    on_thread = build.import_("env", "on_thread", PAIR_TO_NOTHING)
    build.import_("env", "__indirect_function_table", TABLE)
    build.import_("env", "memory", MEMORY)
    stack_pointer = build.import_("env", "__stack_pointer", VARIABLE)
    build.import_("env", "__memory_base", BASE)
    one = build.type_index(ONE_TO_ONE)
    found = local_get(1)
    spin = (
        LOOP_VOID
        + (local_get(0) + _ATOMIC_LOAD + local_tee(1) + I32_EQZ + _REPEAT)
        + END
        + (i32_const(1) + found + call_indirect(one))
    )
    functions = {
        "spin": build.function(ONE_TO_ONE, spin, ("i32",)),
        "wait": build.function(WAIT, local_get(0) + local_get(1) + local_get(2) + _WAIT32),
        "notify": build.function(TWO_TO_ONE, local_get(0) + local_get(1) + _NOTIFY),
        "count": build.function(ONE_TO_ONE, local_get(0) + i32_const(1) + _ATOMIC_ADD),
        "call": build.function(TWO_TO_ONE, local_get(1) + local_get(0) + call_indirect(one)),
        "where_at": build.function(WHERE_AT, local_get(0) + call_indirect(build.type_index(WHERE))),
        "trap": build.function(NOTHING, UNREACHABLE),
        "start": build.function(
            ONE_TO_ONE, local_get(0) + local_get(0) + i32_const(8) + I32_ADD + call(spawn)
        ),
        "wasi_thread_start": build.function(
            PAIR_TO_NOTHING,
            (local_get(1) + _LOAD + global_set(stack_pointer))
            + local_get(0)
            + local_get(1)
            + call(on_thread),
        ),
    }
    for name, index in functions.items():
        build.export(name, "func", index)
    for name, value in (("words", 0), ("words_end", WORDS_BYTES)):
        build.export(name, "global", build.global_(BASE, value))
    return with_dylink(build, dylink_section(WORDS_BYTES + STACKS * STACK_BYTES))


@dataclass(frozen=True)
class LibraryKind:
    """What a library is like.

    Attributes:
        addend: what `value` adds; unlike any other kind's.
        thread_local: whether it has a thread-local variable, which starts as `addend` and `local(n)` adds to.
        constructor: whether its constructor calls the host's `on_construct(addend)`.
        traps: whether its constructor traps.
        undefined: whether it imports what nobody defines.
        needed: libraries it needs.
    """

    addend: int
    thread_local: bool = False
    constructor: bool = False
    traps: bool = False
    undefined: bool = False
    needed: tuple[str, ...] = ()


def library_module(kind: LibraryKind) -> bytes:
    """Generate a library."""
    build = ModuleBuilder()
    on_construct = build.import_("env", "on_construct", TO_NOTHING) if kind.constructor else -1
    missing = build.import_("env", "nobody_defines_this", NOTHING) if kind.undefined else -1
    build.import_("env", "__indirect_function_table", TABLE)
    build.import_("env", "memory", MEMORY)
    memory_base = build.import_("env", "__memory_base", BASE)
    table_base = build.import_("env", "__table_base", BASE)
    words = build.import_("GOT.mem", "words", VARIABLE)
    count = build.import_("GOT.func", "count", VARIABLE)
    own = build.import_("GOT.func", "value", VARIABLE)
    value = build.function(ONE_TO_ONE, local_get(0) + i32_const(kind.addend) + I32_ADD)
    build.export("value", "func", value)
    told = global_get(memory_base) + global_get(table_base) + global_get(words) + global_get(count)
    build.export("where", "func", build.function(WHERE, told))
    build.export("own_value", "func", build.function(FuncType((), ("i32",)), global_get(own)))
    cell = global_get(memory_base) + i32_const(16) + I32_ADD
    build.export("bump", "func", build.function(FuncType((), ("i32",)), cell + i32_const(1) + _ATOMIC_ADD))
    build.export("cell", "global", build.global_(BASE, 16))
    if kind.thread_local:
        _add_thread_local(build, kind.addend)
    if kind.constructor or kind.traps or kind.undefined:
        body = i32_const(kind.addend) + call(on_construct) if kind.constructor else b""
        body += call(missing) if kind.undefined else b""
        body += UNREACHABLE if kind.traps else b""
        build.export("__wasm_call_ctors", "func", build.function(NOTHING, body))
    return with_dylink(build, dylink_section(32, kind.needed))


def _add_thread_local(build: ModuleBuilder, initial: int) -> None:
    base = build.global_(VARIABLE, 0)
    build.export("__tls_base", "global", base)
    build.export("__tls_size", "global", build.global_(BASE, 16))
    build.export("__tls_align", "global", build.global_(BASE, 16))
    init = local_get(0) + global_set(base) + local_get(0) + i32_const(initial) + _STORE
    build.export("__wasm_init_tls", "func", build.function(TO_NOTHING, init))
    add = (
        (global_get(base) + _LOAD + local_get(0) + I32_ADD + local_set(0))
        + (global_get(base) + local_get(0) + _STORE)
        + local_get(0)
    )
    build.export("local", "func", build.function(ONE_TO_ONE, add))
