"""What each import of a module was bound to: the resolution record that every instance group replays.

A binding says how an import is satisfied in *any* group, so it names namespaces and addresses, never objects of one store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from dl.dlfcn import ModuleHandle


@dataclass(frozen=True, slots=True)
class FromNamespace:
    """Passed through from an instance or the host, inside the engine."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Constant:
    """A global with a fixed value: a base, a GOT entry, a number of the host's.

    Attributes:
        value: the number; of a floating-point global, its bits, so that 0.0 and -0.0 are two constants.
    """

    value: int


@dataclass(frozen=True, slots=True)
class ThroughTable:
    """A function whose instance does not exist yet when the importer is instantiated: called at its table index."""

    address: int


@dataclass(frozen=True, slots=True)
class LazyStub:
    """A function nothing defines yet: looked up at its first call."""


@dataclass(frozen=True, slots=True)
class ThreadLocalAddress:
    """A GOT entry of a thread-local variable: its module's TLS base in this thread, plus an offset in bytes."""

    module: ModuleHandle
    offset: int


Binding: TypeAlias = FromNamespace | Constant | ThroughTable | LazyStub | ThreadLocalAddress
"""One import's binding."""
