"""The engine's own WASI, called with the interface of `tests.support.wasi.Calls`: what ours is held against."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import wasmtime

from dl.engine.preview1 import FUNCTIONS
from tests.support.wasi import BUFFER, RESULT, TEXT


class EngineMemory:
    """Reads and writes the program's memory, as `LinearMemory` does."""

    def __init__(self, store: wasmtime.Store, memory: wasmtime.Memory) -> None:
        self._store, self._memory = store, memory

    def read(self, address: int, size: int) -> bytes:
        """A copy of bytes."""
        return bytes(self._memory.read(self._store, address, address + size))

    def write(self, address: int, data: bytes) -> None:
        """Write bytes."""
        self._memory.write(self._store, data, address)

    def read_struct(self, layout: str, address: int) -> tuple[Any, ...]:
        """The values of a structure."""
        return struct.unpack("<" + layout, self.read(address, struct.calcsize("<" + layout)))

    def write_struct(self, layout: str, address: int, *values: int) -> None:
        """Write a structure."""
        self.write(address, struct.pack("<" + layout, *values))

    def read_u32(self, address: int) -> int:
        """A number of 32 bits."""
        return int(self.read_struct("I", address)[0])


class EngineCalls:
    """A program that does nothing but call functions of preview 1, under the engine alone."""

    def __init__(self, folder: Path) -> None:
        imports, exports = [], []
        for name, kind in FUNCTIONS.items():
            if name in ("poll_oneoff", "proc_raise"):
                continue
            params = " ".join(f"(param {p})" for p in kind.params)
            arguments = " ".join(f"(local.get {i})" for i in range(len(kind.params)))
            imports.append(f'(import "wasi_snapshot_preview1" "{name}" (func ${name} {params} (result i32)))')
            exports.append(f'(func (export "{name}") {params} (result i32) (call ${name} {arguments}))')
        text = f'(module {"".join(imports)} (memory (export "memory") 2) {"".join(exports)})'
        engine = wasmtime.Engine()
        self._store, linker = wasmtime.Store(engine), wasmtime.Linker(engine)
        linker.define_wasi()
        options = wasmtime.WasiConfig()
        options.preopen_dir(str(folder), "/")
        self._store.set_wasi(options)
        self._exports = linker.instantiate(self._store, wasmtime.Module(engine, text)).exports(self._store)
        memory = self._exports["memory"]
        assert isinstance(memory, wasmtime.Memory)
        self.memory = EngineMemory(self._store, memory)

    def __getattr__(self, name: str) -> Callable[..., int]:
        function = self._exports[name]
        assert isinstance(function, wasmtime.Func)
        return lambda *arguments: int(function(self._store, *arguments))

    def text(self, text: str, at: int = TEXT) -> tuple[int, int]:
        """Put a text into memory; return its address and size."""
        self.memory.write(at, text.encode())
        return at, len(text.encode())


__all__ = ["BUFFER", "RESULT", "TEXT", "EngineCalls", "EngineMemory"]
