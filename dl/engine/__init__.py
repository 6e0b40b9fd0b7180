"""The seam to a WebAssembly engine: `protocol` says what the linker asks, the adapters answer.

Engines are chosen by name: wasmtime, or what DLRUN_ENGINE says, unless a program chooses. An adapter from another
distribution announces itself by an entry point of the group
`wasix_dl.engines`: its name is the engine's, its object a function `make(*, interrupts: bool) -> Engine`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dl.engine.capabilities import Capabilities
from dl.errors import EngineNotFoundError, LinkerUsageError
from dl.forks import in_forked_child, renew

if TYPE_CHECKING:
    from dl.engine.protocol import Engine

ENTRY_POINTS = "wasix_dl.engines"
DEFAULT_ENGINE = "wasmtime"
VARIABLE = "DLRUN_ENGINE"
"""The environment variable that names the engine of programs that choose none."""

_EXTRAS = {"wasmer": "wasix_dl_wasmer"}
"""Engines whose native library is a distribution of its own, and the package it installs; the extra is called as the engine."""

_lock = threading.Lock()
_engines: dict[tuple[str, bool, str | None], Engine] = {}
"""The process's engines, with and without interrupts: code is compiled per engine, so programs share them.
Guarded by `_lock`."""


_inherited: list[Engine] = []
"""In a forked child, the parent's engines: kept, since what they were doing there can be neither continued nor freed."""


def _forked() -> None:
    renew(_lock)
    _inherited.extend(_engines.values())
    _engines.clear()


in_forked_child(_forked)


def _wasmer(**options: Any) -> Engine:
    from dl.engine.wasmer.engine import WasmerEngine  # noqa: PLC0415  loaded when first needed

    return WasmerEngine(**options)


def _wasmtime(**options: Any) -> Engine:
    from dl.engine.wasmtime.engine import WasmtimeEngine  # noqa: PLC0415  loaded when first needed

    return WasmtimeEngine(**options)


_BUILT_IN: dict[str, Callable[..., Engine]] = {DEFAULT_ENGINE: _wasmtime, "wasmer": _wasmer}


def _is_there(name: str) -> bool:
    """Whether the library of an engine whose adapter is ours is installed."""
    from importlib.util import find_spec  # noqa: PLC0415  seldom needed

    return name not in _EXTRAS or find_spec(_EXTRAS[name]) is not None


def known_engines() -> list[str]:
    """Return the names of the engines that are installed, the default one first."""
    from importlib.metadata import entry_points  # noqa: PLC0415  slow, and seldom needed

    others = {point.name for point in entry_points(group=ENTRY_POINTS)} - _BUILT_IN.keys()
    return [*filter(_is_there, _BUILT_IN), *sorted(others)]


def engine_named(name: str, *, interrupts: bool = True, profiler: str | None = None) -> Engine:
    """Return the process's engine of a name.

    Args:
        name: such as `wasmtime`; see `known_engines`.
        interrupts: whether guest code can be interrupted, if the engine can do that at all.
        profiler: for which profiler of the system it writes down where code is; None for none.

    Raises:
        EngineNotFoundError: there is no such engine, or it cannot be loaded.
        EngineError: it does not write for this profiler.
    """
    with _lock:
        engine = _engines.get((name, interrupts, profiler))
        if engine is None:
            more = {} if profiler is None else {"profiler": profiler}
            engine = _engines[name, interrupts, profiler] = _factory(name)(interrupts=interrupts, **more)
        return engine


def _factory(name: str) -> Callable[..., Engine]:
    built_in = _BUILT_IN.get(name)
    if built_in is not None:
        if not _is_there(name):
            raise EngineNotFoundError(name, known_engines(), f"pip install 'wasix-dl[{name}]'")
        return _loading(name, built_in)
    from importlib.metadata import entry_points  # noqa: PLC0415

    for point in entry_points(group=ENTRY_POINTS, name=name):
        try:
            factory: Callable[..., Engine] = point.load()
        except Exception as error:
            raise EngineNotFoundError(name, known_engines(), f"it cannot be loaded: {error}") from error
        return factory
    raise EngineNotFoundError(name, known_engines(), "there is none of that name")


def _loading(name: str, make: Callable[..., Engine]) -> Callable[..., Engine]:
    """Return a factory whose native library may be of another platform or version."""

    def factory(**options: Any) -> Engine:
        try:
            return make(**options)
        except (ImportError, OSError) as error:
            raise EngineNotFoundError(name, known_engines(), f"it cannot be loaded: {error}") from error

    return factory


def chosen_engine(
    engine: str | Engine | None,
    program: str,
    *,
    interrupts: bool | None,
    shared: bool,
    profiler: str | None = None,
) -> Engine:
    """Return the engine that a program shall run on.

    Args:
        engine: a name, an engine, or None for the default.
        program: what messages call the program.
        interrupts: whether guest code must be interruptible; None for: if the program has threads and the engine can.
        shared: whether the program shares its memory, and so can have threads.
        profiler: for which profiler of the system the engine writes down where code is; None for none.

    Raises:
        EngineNotFoundError: no engine has that name.
        EngineError: it does not write for this profiler.
        LinkerUsageError: the engine lacks what was asked for.
    """
    if engine is None or isinstance(engine, str):
        wanted = shared if interrupts is None else interrupts
        name = engine or default_name()
        if profiler is not None and not engine_named(name, interrupts=wanted).capabilities.profiling:
            raise LinkerUsageError(
                f"{program} is to be profiled, which engine {name} cannot (no capability profiling)"
            )
        engine = engine_named(name, interrupts=wanted, profiler=profiler)
    elif profiler is not None:
        raise LinkerUsageError(
            "a profiler is chosen with the engine's name; give this engine its own when it is made"
        )
    if interrupts and not engine.capabilities.interrupts:
        raise LinkerUsageError(f"{program} asks for interrupts, which engine {engine.name} lacks")
    return engine


def default_name() -> str:
    """Return the name of the engine of programs that choose none: what the environment says, or wasmtime."""
    return os.environ.get(VARIABLE) or DEFAULT_ENGINE


def default_engine(*, interrupts: bool = True) -> Engine:
    """Return the process's engine of the default name; see `engine_named`."""
    return engine_named(default_name(), interrupts=interrupts)


__all__ = [
    "DEFAULT_ENGINE",
    "Capabilities",
    "chosen_engine",
    "default_engine",
    "default_name",
    "engine_named",
    "known_engines",
]
