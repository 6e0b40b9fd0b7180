"""What a module needs of an engine, and the refusal where the engine cannot do it.

An engine without some feature refuses modules that use it, in its own words, and may refuse generated modules first. So a
module is examined before, but only for what the engine lacks: an engine that can do everything costs nothing here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dl.errors import MalformedModuleError, UnsupportedModuleError
from dl.wasm.module import WasmModule

if TYPE_CHECKING:
    from dl.engine.protocol import Engine


def check_capabilities(engine: Engine, wasm: WasmModule) -> None:
    """Check that an engine has what a module uses.

    Raises:
        UnsupportedModuleError: it lacks something; names the module, the engine, and what is missing.
    """
    can = engine.capabilities
    if can.shared_memory and can.exceptions and can.simd and can.memory64:
        return
    missing = []
    if not can.shared_memory and any(memory.limits.shared for memory in wasm.memories):
        missing.append("shared memory")
    if not can.memory64 and _uses_wide_addresses(wasm):
        missing.append("64-bit addresses")
    if not can.exceptions and _uses_exceptions(wasm):
        missing.append("exception handling")
    if not can.simd and _uses_vectors(wasm):
        missing.append("vector instructions")
    if missing:
        raise UnsupportedModuleError(
            wasm.name, f"it uses {' and '.join(missing)}, which engine {engine.name} lacks"
        )


def _types(wasm: WasmModule) -> set[str]:
    """Return the value types that stand in a module's signatures and globals."""
    kinds = {kind for one in wasm.types if one is not None for kind in (*one.params, *one.results)}
    return kinds | {one.type.value for one in wasm.globals}


def _uses_wide_addresses(wasm: WasmModule) -> bool:
    limits = [memory.limits for memory in wasm.memories] + [table.limits for table in wasm.tables]
    return any(one.is64 for one in limits)


def _uses_exceptions(wasm: WasmModule) -> bool:
    # Without a tag nothing is thrown, and there is no exception to throw again but one that a `try_table` caught.
    return bool(wasm.tags) or "exnref" in _types(wasm) or _scan_finds(wasm, "try_table_at")


def _uses_vectors(wasm: WasmModule) -> bool:
    return "v128" in _types(wasm) or _scan_finds(wasm, "vector_at")


def _scan_finds(wasm: WasmModule, what: str) -> bool:
    from dl.wasm.instructions import scan_body, walk_bodies  # noqa: PLC0415  only where an engine lacks something

    try:
        return any(getattr(scan_body(wasm, body), what) is not None for body in walk_bodies(wasm))
    except (MalformedModuleError, UnsupportedModuleError):
        return False  # the engine says what is wrong with it
