"""The seam to a WebAssembly engine: `protocol` says what the linker asks, the adapters answer."""

from __future__ import annotations

import threading

from dl.engine.protocol import Capabilities, Engine

_lock = threading.Lock()
_engines: dict[bool, Engine] = {}
"""The process's engines, with and without interrupts: code is compiled per engine, so programs share them.
Guarded by `_lock`."""


def default_engine(*, interrupts: bool = True) -> Engine:
    """Return the process's wasmtime engine.

    Args:
        interrupts: whether guest code can be interrupted.
    """
    from dl.engine.wasmtime.engine import WasmtimeEngine  # noqa: PLC0415  loaded when first needed

    with _lock:
        engine = _engines.get(interrupts)
        if engine is None:
            engine = _engines[interrupts] = WasmtimeEngine(interrupts=interrupts)
        return engine


__all__ = ["Capabilities", "Engine", "default_engine"]
