"""What each import of a module was bound to: the resolution record that every instance group replays.

A binding says how an import is satisfied in *any* group, so it names namespaces and addresses, never objects of one store.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from dl.dlfcn import ModuleHandle
from dl.records import dataclass

LINKER: Final = ModuleHandle(0)
"""Provider of what the linker itself defines: memory, table, stack pointer, bases, tags."""

HOST: Final = ModuleHandle(-1)
"""Provider of what the host defines: the user's imports and the system interface."""

NOBODY: Final = ModuleHandle(-2)
"""Provider of what nothing defines: weak data that is null, and stubs before their first call."""


@dataclass(frozen=True, slots=True)
class FromNamespace:
    """Passed through from an instance or the host, inside the engine.

    Attributes:
        namespace: where each group defines it.
        name: its name there.
        provider: the module that defines it, or `LINKER` or `HOST`.
        takes_caller: whether it is a function of the host that gets the importing module's handle before its arguments.
    """

    namespace: str
    name: str
    provider: ModuleHandle = LINKER
    takes_caller: bool = False


@dataclass(frozen=True, slots=True)
class Constant:
    """A global with a fixed value: a base, a GOT entry, a number of the host's.

    Attributes:
        value: the number; of a floating-point global, its bits, so that 0.0 and -0.0 are two constants.
        provider: the module whose address or number it is, or `LINKER`, `HOST` or `NOBODY`.
    """

    value: int
    provider: ModuleHandle = LINKER


@dataclass(frozen=True, slots=True)
class ThroughTable:
    """A function whose instance does not exist yet when the importer is instantiated: called at its table index.

    Attributes:
        address: the table index.
        provider: the module that defines it.
    """

    address: int
    provider: ModuleHandle


@dataclass(frozen=True, slots=True)
class Place:
    """An address in a module as generated code has it: it stays right when the module is loaded again, somewhere else.

    Attributes:
        seat: the module.
        space: `MEMORY_BASE` or `TABLE_BASE`.
        offset: from that base on, bytes or table elements.
    """

    seat: int
    space: str
    offset: int


@dataclass(frozen=True, slots=True)
class LazyStub:
    """A function nothing defines yet: looked up at its first call.

    What it is bound to then is a record of its own, `dl.modules.linked_module.StubTarget`.
    """

    @property
    def provider(self) -> ModuleHandle:
        """`NOBODY`."""
        return NOBODY


@dataclass(frozen=True, slots=True)
class ThreadLocalAddress:
    """A GOT entry of a thread-local variable: its module's TLS base in this thread, plus an offset in bytes."""

    module: ModuleHandle
    offset: int

    @property
    def provider(self) -> ModuleHandle:
        """The module that defines the variable."""
        return self.module


Binding: TypeAlias = FromNamespace | Constant | ThroughTable | LazyStub | ThreadLocalAddress
"""One import's binding."""
