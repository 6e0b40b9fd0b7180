"""What WASI answers without leaving WebAssembly in a program of threads: a module that each thread's store has an instance of.

The engine's functions work on the memory that the calling instance exports. This one exports a *scratch memory*, which all
programs of an engine share and no guest can reach: each store has a part of it, where the engine puts its results. So a call
needs no lock, and no address of the guest's ever comes to the engine: the module checks it, and copies.

Each function has one of the host's behind it, which answers until the store has a WASI context and its numbers (`PROVIDE`),
while the host asks for the thread's attention, and whatever cannot be answered here: clocks of CPU time, what lies outside
memory, large requests.

The engine's monotonic clock begins with its context, so each store's begins at another time. `SET_CLOCK` says how far it is
from the host's; that is known to some microseconds only. So that time never goes back from one thread to another, the latest
time that any thread was told lies at the scratch memory's beginning, and no thread is told less.
"""

from __future__ import annotations

from collections.abc import Mapping

from dl.engine.preview1 import FUNCTIONS, PREVIEW1, signature
from dl.glue.resolution import FromNamespace
from dl.wasm.encode import (
    ModuleBuilder,
    call,
    global_get,
    global_set,
    i32_const,
    i64_const,
    local_get,
    local_set,
    local_tee,
    memory_access,
    memory_copy,
    memory_size,
)
from dl.wasm.opcodes import (
    BR_IF,
    DROP,
    ELSE,
    END,
    I32_ADD,
    I32_AND,
    I32_EQ,
    I32_EQZ,
    I32_GT_U,
    I32_LT_U,
    I32_NE,
    I32_OR,
    I32_SUB,
    I64_ADD,
    I64_ATOMIC_LOAD,
    I64_ATOMIC_RMW_CMPXCHG,
    I64_EXTEND_I32_U,
    I64_GE_U,
    I64_LE_U,
    I64_NE,
    I64_SHL,
    I64_SUB,
    IF_I32,
    IF_VOID,
    LOADS,
    LOOP_VOID,
    RETURN,
    SELECT,
    STORES,
)
from dl.wasm.records import Import
from dl.wasm.types import FuncType, GlobalType, MemoryType

ANSWERED = {
    name: FUNCTIONS.get(name, signature(":i"))
    for name in (
        "args_sizes_get",
        "clock_res_get",
        "clock_time_get",
        "environ_sizes_get",
        "random_get",
        "sched_yield",
    )
}
"""What is answered, and by which signatures."""

SCRATCH_NAMESPACE = "scratch"
"""Where the scratch memory is importable, as `memory`."""

PART_BYTES = 512
"""Of the scratch memory, for each store. The first part holds the latest time, and is nobody's."""

ATTENTION = PART_BYTES - 8
"""Where in a part a number (i32) says whether the host wants the thread to call it; that of the first part is never 0."""

PROVIDE, READ_CLOCK, SET_CLOCK = "provide", "read_clock", "set_clock"
PROVIDE_TYPE = FuncType(("i32",) * 5 + ("i64",) * 5, ())
"""Address of the store's part; count and bytes of the arguments, and of the environment; resolutions of the four clocks; when
the program's monotonic clock began on the host's, nanoseconds."""
READ_CLOCK_TYPE = FuncType((), ("i64",))
"""The engine's monotonic clock, nanoseconds. Only after `PROVIDE`."""
SET_CLOCK_TYPE = FuncType(("i64",), ())
"""How much later the host's monotonic clock is than the engine's, nanoseconds."""

YIELDS = 64
"""Every so many calls of `sched_yield` give the processor up; the others are free. See `docs/wasix.md`."""

_CLOCK, _RANDOM = "clock_time_get", "random_get"
_MONOTONIC, _ENGINE_CLOCKS, _CLOCKS = 1, 2, 4
_SCRATCH, _PROGRAM = 0, 1  # the memories
_MOST_RANDOM_BYTES, _ROUND_BYTES = 4096, 256
_I32, _I64 = GlobalType("i32", mutable=True), GlobalType("i64", mutable=True)


def _fits(address: bytes, size: bytes) -> bytes:
    """Whether so many bytes (an i64) from an address on lie in the program's memory."""
    end = address + I64_EXTEND_I32_U + size + I64_ADD
    return end + memory_size(_PROGRAM) + I64_EXTEND_I32_U + i64_const(16) + I64_SHL + I64_LE_U


def _store(address: bytes, value: bytes, kind: str) -> bytes:
    return address + value + memory_access(STORES[kind], 0, 0, _PROGRAM)


class _Numbers:
    """The module's globals."""

    def __init__(self, build: ModuleBuilder) -> None:
        self.part, self.arguments, self.argument_bytes, self.variables, self.variable_bytes = (
            build.global_(_I32, 0) for _ in range(5)
        )
        self.resolutions = [build.global_(_I64, 0) for _ in range(_CLOCKS)]
        self.began = build.global_(_I64, 0)
        self.offset = build.global_(_I64, 0)
        self.has_clock = build.global_(_I32, 0)
        self.yields = build.global_(_I32, 0)


def guest_wasi_module(scratch: MemoryType, program: Import, host: Mapping[str, FromNamespace]) -> bytes:
    """Generate the module.

    Args:
        scratch: type of the scratch memory.
        program: an import of the program's memory.
        host: for each name of `ANSWERED`, what answers the rest.
    """
    build = ModuleBuilder()
    clock, random = (build.import_(PREVIEW1, name, FUNCTIONS[name]) for name in (_CLOCK, _RANDOM))
    rest = {
        name: build.import_(host[name].namespace, host[name].name, kind) for name, kind in ANSWERED.items()
    }
    build.export("memory", "memory", build.import_(SCRATCH_NAMESPACE, "memory", scratch))
    build.import_(program.module, program.name, program.type)
    numbers = _Numbers(build)
    part = global_get(numbers.part)
    free = part + memory_access(LOADS["i32"], 2, ATTENTION, _SCRATCH) + I32_EQZ

    def answer(name: str, can: bytes, body: bytes, local_types: tuple[str, ...] = ()) -> None:
        """Define a function: its body if it can, else the host's."""
        kind = ANSWERED[name]
        arguments = b"".join(local_get(position) for position in range(len(kind.params)))
        whole = can + IF_I32 + body + ELSE + arguments + call(rest[name]) + END
        build.export(name, "func", build.function(kind, whole, local_types))

    _add_setters(build, numbers)
    read = (
        i32_const(_MONOTONIC)
        + i64_const(0)
        + part
        + call(clock)
        + DROP
        + part
        + memory_access(LOADS["i64"], 3)
    )
    build.export(READ_CLOCK, "func", build.function(READ_CLOCK_TYPE, read))
    latest = build.function(FuncType(("i64",), ("i64",)), _latest(), ("i64",))

    for name, count, size in (
        ("args_sizes_get", numbers.arguments, numbers.argument_bytes),
        ("environ_sizes_get", numbers.variables, numbers.variable_bytes),
    ):
        aligned = local_get(0) + local_get(1) + I32_OR + i32_const(3) + I32_AND + I32_EQZ
        fit = _fits(local_get(0), i64_const(4)) + _fits(local_get(1), i64_const(4)) + I32_AND
        answer(
            name,
            free + aligned + I32_AND + fit + I32_AND,
            _store(local_get(0), global_get(count), "i32")
            + _store(local_get(1), global_get(size), "i32")
            + i32_const(0),
        )

    first, second, third, fourth = (global_get(number) for number in numbers.resolutions)
    is_even = local_get(0) + i32_const(1) + I32_AND + I32_EQZ
    resolution = (
        first + second + is_even + SELECT + third + fourth + is_even + SELECT
        + local_get(0) + i32_const(2) + I32_LT_U + SELECT
    )  # fmt: skip
    known = local_get(0) + i32_const(_CLOCKS) + I32_LT_U + free + I32_AND
    answer(
        "clock_res_get",
        known + _fits(local_get(1), i64_const(8)) + I32_AND,
        _store(local_get(1), resolution, "i64") + i32_const(0),
    )

    # Locals: the clock, the precision, where the time goes; the time, an errno.
    told = (
        local_get(0) + local_get(1) + part + call(clock) + local_tee(4)
        + IF_I32 + local_get(4) + ELSE
        + part + memory_access(LOADS["i64"], 3) + local_set(3)
        + local_get(0) + i32_const(_MONOTONIC) + I32_EQ + IF_VOID
        + local_get(3) + global_get(numbers.offset) + I64_ADD + call(latest)
        + global_get(numbers.began) + I64_SUB + local_set(3) + END
        + _store(local_get(2), local_get(3), "i64") + i32_const(0) + END
    )  # fmt: skip
    ready = (
        free
        + global_get(numbers.has_clock)
        + I32_AND
        + local_get(0)
        + i32_const(_ENGINE_CLOCKS)
        + I32_LT_U
        + I32_AND
    )
    answer(_CLOCK, ready + _fits(local_get(2), i64_const(8)) + I32_AND, told, ("i64", "i32"))

    # Locals: address, bytes; bytes of one round, an errno.
    left = local_get(1) + i32_const(_ROUND_BYTES)
    given = (
        LOOP_VOID + left + left + I32_LT_U + SELECT + local_set(2)
        + part + local_get(2) + call(random) + local_tee(3) + IF_VOID + local_get(3) + RETURN + END
        + local_get(0) + part + local_get(2) + memory_copy(_PROGRAM, _SCRATCH)
        + local_get(0) + local_get(2) + I32_ADD + local_set(0)
        + local_get(1) + local_get(2) + I32_SUB + local_tee(1) + BR_IF + b"\x00" + END
        + i32_const(0)
    )  # fmt: skip
    small = free + i32_const(_MOST_RANDOM_BYTES + 1) + local_get(1) + I32_GT_U + I32_AND
    answer(
        _RANDOM, small + _fits(local_get(0), local_get(1) + I64_EXTEND_I32_U) + I32_AND, given, ("i32", "i32")
    )

    one_more = global_get(numbers.yields) + i32_const(1) + I32_ADD + global_set(numbers.yields)
    not_yet = global_get(numbers.yields) + i32_const(YIELDS - 1) + I32_AND + i32_const(0) + I32_NE
    answer("sched_yield", one_more + not_yet + free + I32_AND, i32_const(0))
    return build.build()


def _add_setters(build: ModuleBuilder, numbers: _Numbers) -> None:
    # The part comes first among the parameters, but is set last: it says that the others are there.
    targets = (
        numbers.arguments, numbers.argument_bytes, numbers.variables, numbers.variable_bytes,
        *numbers.resolutions, numbers.began, numbers.part,
    )  # fmt: skip
    positions = (*range(1, len(PROVIDE_TYPE.params)), 0)
    body = b"".join(
        local_get(position) + global_set(target) for position, target in zip(positions, targets, strict=True)
    )
    build.export(PROVIDE, "func", build.function(PROVIDE_TYPE, body))
    body = local_get(0) + global_set(numbers.offset) + i32_const(1) + global_set(numbers.has_clock)
    build.export(SET_CLOCK, "func", build.function(SET_CLOCK_TYPE, body))


def _latest() -> bytes:
    """Make a time the latest, and return it; or the latest, if that is later. Local 1 is what lies there."""
    at = i32_const(0)
    swap = at + local_get(1) + local_get(0) + memory_access(I64_ATOMIC_RMW_CMPXCHG, 3, 0, _SCRATCH)
    return (
        LOOP_VOID
        + at + memory_access(I64_ATOMIC_LOAD, 3, 0, _SCRATCH) + local_tee(1) + local_get(0) + I64_GE_U
        + IF_VOID + local_get(1) + RETURN + END
        + swap + local_get(1) + I64_NE + BR_IF + b"\x00" + END
        + local_get(0)
    )  # fmt: skip
