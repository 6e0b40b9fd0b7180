"""An engine that counts, and modules compiled as a new process would compile them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import wasmtime

from dl.engine.code_cache import CodeCache, Compiler
from dl.engine.disk_cache import DiskCache
from dl.engine.protocol import CompiledModule, Engine
from tests.support.engines import engine_class

if TYPE_CHECKING:
    from dl.engine.wasmtime.engine import WasmtimeEngine as OneEngine
else:
    OneEngine = engine_class()


class CountingEngine(OneEngine):
    """The engine of this run, which counts what it compiles, and what reaches its deserializer."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.compiled = 0
        self.loaded: list[bytes] = []

    def compile(self, wasm: bytes) -> Any:
        self.compiled += 1
        return super().compile(wasm)

    def deserialize(self, code: bytes) -> Any:
        self.loaded.append(code)
        return super().deserialize(code)


def module(number: int) -> bytes:
    return bytes(wasmtime.wat2wasm(f'(module (func (export "f") (result i32) i32.const {number}))'))


def compiled(engine: Engine, cache: DiskCache | None, wasm: bytes) -> CompiledModule:
    """Compile as a new process would, with nothing in memory."""
    return Compiler(engine, cache, CodeCache()).compile(wasm, "m")


def code_files(path: Path) -> list[Path]:
    return sorted(path.glob("*.code"))
