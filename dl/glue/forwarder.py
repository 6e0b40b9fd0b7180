"""Forwarders: modules that export the program's memory and call an engine's functions, which work on their caller's memory."""

from __future__ import annotations

from collections.abc import Iterable

from dl.glue.resolution import FromNamespace
from dl.wasm.encode import ModuleBuilder, call, i32_const, local_get
from dl.wasm.opcodes import ELSE, END, I32_AND, I32_EQZ, I32_LT_U, I32_SHR_U, IF_I32, MEMORY_SIZE
from dl.wasm.records import Import
from dl.wasm.types import FuncType

_CLOCK = "clock_time_get"
CLOCK = "clock"
"""The export that tells the time: the engine's clock, or the host's where the engine has none or would trap."""

_ENGINE_CLOCKS = 2
"""Real time and monotonic time, the clocks that every engine has: ids 0 and 1."""


def forwarder_module(
    functions: Iterable[tuple[str, FuncType]],
    memory: Import | None,
    source: str,
    clock: FromNamespace | None = None,
) -> bytes:
    """Generate a module through which functions see the program's memory as their caller's.

    An engine's WASI functions work on the memory that the calling instance exports as `memory`; programs that import
    their memory do not export it. This module imports it, exports it, and calls each function in their place.

    Args:
        functions: names and signatures.
        memory: an import of the memory, with its namespace, name and type.
        source: namespace of the functions.
        clock: the host's `clock_time_get`, for `CLOCK`; None for none.
    """
    build = ModuleBuilder()
    kinds = list(functions)
    imported = [build.import_(source, name, kind) for name, kind in kinds]
    host_clock = None if clock is None else build.import_(clock.namespace, clock.name, dict(kinds)[_CLOCK])
    if memory is not None:
        build.export("memory", "memory", build.import_(memory.module, memory.name, memory.type))
    for (name, kind), index in zip(kinds, imported, strict=True):
        arguments = b"".join(local_get(i) for i in range(len(kind.params)))
        build.export(name, "func", build.function(kind, arguments + call(index)))
        if name == _CLOCK and host_clock is not None:
            body = (
                local_get(0) + i32_const(_ENGINE_CLOCKS) + I32_LT_U
                # The engine traps at an address that is not aligned or not in memory.
                + local_get(2) + i32_const(7) + I32_AND + I32_EQZ + I32_AND
                + local_get(2) + i32_const(16) + I32_SHR_U + MEMORY_SIZE + I32_LT_U + I32_AND
                + IF_I32 + arguments + call(index) + ELSE + arguments + call(host_clock) + END
            )  # fmt: skip
            build.export(CLOCK, "func", build.function(kind, body))
    return build.build()
