"""Names that callers hold: module handles, dlopen flags, kinds of addresses."""

from __future__ import annotations

from enum import Enum, IntFlag
from typing import Final


class ModuleHandle(int):
    """A loaded module: 1 is the main module, 2, 3, … side modules in load order, never reused.

    An int, because that is what the guest holds; ordered by load order.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"ModuleHandle({int(self)})"


class DlFlags(IntFlag):
    """Flags of dlopen, with the values of the WASIX ABI (`__wasi_dl_flags_t`).

    One of LAZY and NOW; LAZY leaves functions that nothing defines yet to their first call, NOW demands them all.
    GLOBAL puts the module and what it needs into the global scope; without it (LOCAL) only the tree opened by the same
    dlopen sees them. NOLOAD finds a module that is loaded already, and loads nothing. NODELETE keeps the module
    loaded for good. DEEPBIND lets a LOCAL tree find its own symbols before the global ones.
    """

    LOCAL = 0
    LAZY = 1
    NOW = 2
    GLOBAL = 4
    NOLOAD = 8
    NODELETE = 16
    DEEPBIND = 32


ALL_FLAGS: Final = 63
"""All bits that dlopen knows."""


def has_flag(flags: DlFlags, flag: DlFlags) -> bool:
    """Whether some flags have one of others; `&` would make a member of the enumeration, in ten times the time."""
    return int.__and__(flags, flag) != 0


RTLD_LOCAL: Final = DlFlags.LOCAL
RTLD_LAZY: Final = DlFlags.LAZY
RTLD_NOW: Final = DlFlags.NOW
RTLD_GLOBAL: Final = DlFlags.GLOBAL
RTLD_NOLOAD: Final = DlFlags.NOLOAD
RTLD_NODELETE: Final = DlFlags.NODELETE
RTLD_DEEPBIND: Final = DlFlags.DEEPBIND

RTLD_DEFAULT: Final = ModuleHandle(0)
"""For dlsym: search the main module, then the global scope in load order."""

MAIN_HANDLE: Final = ModuleHandle(1)
"""The main module, also when there is none: its number is not given to another."""

INVALID_HANDLE: Final = ModuleHandle(0xFFFFFFFF)
"""What the WASIX ABI calls an invalid handle."""

RTLD_NEXT: Final = ModuleHandle(0xFFFFFFFF)
"""For dlsym: search what comes after the module that asks; the number is that of C's `(void *)-1`."""


class AddressKind(Enum):
    """What is at an address."""

    FUNCTION = "function"
    DATA = "data"
    THREAD_LOCAL = "thread-local"
