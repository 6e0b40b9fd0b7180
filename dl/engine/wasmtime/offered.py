"""Instances whose exports a store's linker learns when something imports from them, and not before.

Entering an export into the linker by its name takes longer than all else that it costs (0.3 µs), and most libraries that a
program opens are looked into by handle: nobody imports from them by name.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dl.engine.wasmtime import c
from dl.engine.wasmtime.errors import take_bytes

if TYPE_CHECKING:
    from dl.engine.wasmtime.instance import WasmtimeInstance

_UNKNOWN = r"unknown import: `([^`]+?)::"
"""How the engine says, before it makes anything of an instance, that its linker knows nothing under an import's names."""


class OfferedInstances:
    """Those of one store, by namespace."""

    def __init__(self) -> None:
        self._waiting: dict[str, WasmtimeInstance] = {}
        self._defined: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def offer(self, namespace: str, instance: WasmtimeInstance) -> bool:
        """Keep an instance; returns False if it cannot wait, because the linker knows another one under the namespace.

        What it knows would be found in the instance's place.
        """
        if namespace in self._defined:
            return False
        self._waiting[namespace] = instance
        return True

    def take(self, namespace: str) -> WasmtimeInstance | None:
        """Return an instance that waits, which is to be defined now; None if none does."""
        instance = self._waiting.pop(namespace, None)
        if instance is not None:
            self._defined.add(namespace)
        return instance

    def wanted(self, error: int) -> str | None:
        """Return the namespace of the instance that is missing according to an error; None if it is about something else."""
        text = take_bytes(lambda out: c.error_message(error, out)).decode(errors="replace")
        found = re.match(_UNKNOWN, text)
        return found[1] if found and found[1] in self._waiting else None
