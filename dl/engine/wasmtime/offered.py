"""Instances whose exports a store's linker learns when something imports them, and not before.

Entering an export into the linker by its name takes longer than all else that it costs (0.3 µs), and most libraries that a
program opens are looked into by handle: nobody imports from them by name. To find out what is missing takes the engine 7 µs, so
that a few exports are entered as they are asked for, and where more are, all.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from dl.engine.wasmtime import c
from dl.engine.wasmtime.errors import take_bytes

if TYPE_CHECKING:
    from dl.engine.wasmtime.instance import WasmtimeInstance

_UNKNOWN = r"unknown import: `([^`]+?)::([^`]*)`"
"""How the engine says, before it makes anything of an instance, that its linker knows nothing under an import's names."""


_FEW = 6


class OfferedInstances:
    """Those of one store, by namespace."""

    def __init__(self) -> None:
        self._waiting: dict[str, WasmtimeInstance] = {}
        self._defined: set[str] = set()
        self._entered: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def offer(self, namespace: str, instance: WasmtimeInstance) -> bool:
        """Keep an instance; returns False if it cannot wait, because the linker knows another one under the namespace.

        What it knows would be found in the instance's place.
        """
        if namespace in self._defined or namespace in self._entered:
            self._waiting.pop(namespace, None)
            self._defined.add(namespace)
            return False
        self._waiting[namespace] = instance
        return True

    def waiting(self, namespace: str) -> WasmtimeInstance | None:
        """Return an instance that waits; None if none does under the namespace."""
        return self._waiting.get(namespace)

    def take(self, namespace: str) -> WasmtimeInstance | None:
        """Return an instance that waits, which is to be defined now; None if none does."""
        instance = self._waiting.pop(namespace, None)
        if instance is not None:
            self._defined.add(namespace)
        return instance

    def enters_one(self, namespace: str) -> bool:
        """Whether the next export of an instance that waits is to be entered alone; counts it."""
        self._entered[namespace] += 1
        return self._entered[namespace] <= _FEW

    def wanted(self, error: int) -> tuple[str, str] | None:
        """Return namespace and name of the export that is missing according to an error; None if it is about something else."""
        text = take_bytes(lambda out: c.error_message(error, out)).decode(errors="replace")
        found = re.match(_UNKNOWN, text)
        return (found[1], found[2]) if found and found[1] in self._waiting else None
