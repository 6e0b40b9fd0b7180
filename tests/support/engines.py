"""What tests of engines share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import wasmtime

from dl.engine import default_engine, default_name
from dl.engine.protocol import CompiledModule, Engine, EngineInstance, HostFunctions
from dl.errors import EngineError


class NoBoundary:
    """Nothing happens around host functions."""

    def enter_host(self) -> None:
        return None

    def exit_host(self, token: None) -> None:
        pass


def engine_class() -> Any:
    """Return the class of the engine of this run, of which none is made yet.

    An engine that is made while pytest reads its first conftest.py has its signal handlers below those of `faulthandler`, to
    which each trap then is a fatal error.
    """
    if default_name() == "wasmtime":
        from dl.engine.wasmtime.engine import WasmtimeEngine

        return WasmtimeEngine
    if default_name() == "wasmer":
        from dl.engine.wasmer.engine import WasmerEngine

        return WasmerEngine
    return type(default_engine())


def switched_off(*names: str) -> dict[str, bool]:
    """Return the options that switch capabilities off; what the engine of this run can never do has no option."""
    can = vars(default_engine().capabilities)
    return dict.fromkeys((name for name in names if can[name]), False)


def fresh_engine(*without: str) -> Engine:
    """Make an engine of the kind that this run chose, without some capabilities, which no other test has used."""
    make: Callable[..., Engine] = engine_class()
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
