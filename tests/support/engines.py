"""What tests of engines share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import wasmtime

from dl.engine import default_engine
from dl.engine.protocol import CompiledModule, Engine, EngineInstance, HostFunctions
from dl.errors import EngineError


class NoBoundary:
    """Nothing happens around host functions."""

    def enter_host(self) -> None:
        return None

    def exit_host(self, token: None) -> None:
        pass


def switched_off(*names: str) -> dict[str, bool]:
    """Return the options that switch capabilities off; what the engine of this run can never do has no option."""
    can = vars(default_engine().capabilities)
    return dict.fromkeys((name for name in names if can[name]), False)


def fresh_engine(*without: str) -> Engine:
    """Make an engine of the kind that this run chose, without some capabilities, which no other test has used."""
    make: Callable[..., Engine] = type(default_engine())
    return make(**switched_off(*without))


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


def need(capability: str) -> None:
    """Skip the test unless the engine of this run has a capability, by its name in `Capabilities`."""
    engine = default_engine()
    if not getattr(engine.capabilities, capability):
        pytest.skip(f"engine {engine.name} lacks {capability}")


def need_code(text: str) -> None:
    """Skip the test unless the engine of this run takes a module."""
    engine = default_engine()
    try:
        compiled(engine, text)
    except EngineError as refusal:
        pytest.skip(f"engine {engine.name} refuses {text}: {refusal}")
