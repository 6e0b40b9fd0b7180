"""Forwarders: modules that export the program's memory and call an engine's functions, which work on their caller's memory."""

from __future__ import annotations

from collections.abc import Iterable

from dl.wasm.encode import ModuleBuilder, call, local_get
from dl.wasm.records import Import
from dl.wasm.types import FuncType


def forwarder_module(functions: Iterable[tuple[str, FuncType]], memory: Import | None, source: str) -> bytes:
    """Generate a module through which functions see the program's memory as their caller's.

    An engine's WASI functions work on the memory that the calling instance exports as `memory`; programs that import
    their memory do not export it. This module imports it, exports it, and calls each function in their place.

    Args:
        functions: names and signatures.
        memory: an import of the memory, with its namespace, name and type.
        source: namespace of the functions.
    """
    build = ModuleBuilder()
    kinds = list(functions)
    imported = [build.import_(source, name, kind) for name, kind in kinds]
    if memory is not None:
        build.export("memory", "memory", build.import_(memory.module, memory.name, memory.type))
    for (name, kind), index in zip(kinds, imported, strict=True):
        arguments = b"".join(local_get(i) for i in range(len(kind.params)))
        build.export(name, "func", build.function(kind, arguments + call(index)))
    return build.build()
