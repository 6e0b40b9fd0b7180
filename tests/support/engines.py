"""What tests of engines share."""

from __future__ import annotations

import wasmtime

from dl.engine.protocol import CompiledModule, Engine, EngineInstance, HostFunctions


class NoBoundary:
    """Nothing happens around host functions."""

    def enter_host(self) -> None:
        return None

    def exit_host(self, token: None) -> None:
        pass


def compiled(engine: Engine, text: str) -> CompiledModule:
    """Compile a module from its text form."""
    return engine.compile(bytes(wasmtime.wat2wasm(text)))


def instantiated(
    engine: Engine, text: str, name: str = "guest", host: HostFunctions | None = None
) -> EngineInstance:
    """Instantiate a module in a store of its own."""
    return engine.new_store(host or engine.host_functions(NoBoundary())).instantiate(
        compiled(engine, text), name
    )
