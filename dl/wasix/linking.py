"""`dlopen`, `dlsym` and `dl_invalid_handle` of WASIX.

ABI: functions of `wasix_32v1`; strings are pointer and length in bytes; the result is an errno: 0, or 79 (`unknown`), or
28 (`inval`) for what is no UTF-8, both with the reason in the caller's buffer. Flags are ignored: every load acts like
`RTLD_GLOBAL`, data must be defined at once and functions may come later. Unless the host has asked for ELF's ways: then flags,
scopes and `RTLD_NEXT` mean what they mean there, of the module whose import is called.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from dl.dlfcn import ALL_FLAGS, MAIN_HANDLE, DlFlags
from dl.engine.preview1 import WASIX
from dl.errors import (
    DlError,
    GuestThreadError,
    LinkerClosedError,
    LinkerUsageError,
    ProgramDeadlockedError,
    ProgramExited,
    ResourceLimitError,
    ThreadExited,
)
from dl.logs import logger
from dl.modules.beneath import MAX_PATH_BYTES
from dl.modules.guest_paths import MAX_SEARCH_BYTES
from dl.wasix.abi import Errno
from dl.wasix.adapter import running_guest
from memory import InvalidStringError

if TYPE_CHECKING:
    from dl.wasix.adapter import Adapter, Functions
    from dl.wasix.system import System

ENDINGS = (GuestThreadError, LinkerClosedError, ProgramDeadlockedError, ProgramExited, ThreadExited)
"""What ends a thread or the program: it unwinds the caller of `dlopen` too and is never the errno of its call."""

_NOBODY = 0
"""The caller, where WASIX does not say who calls."""

MAX_SYMBOL_BYTES = 65536
"""Longest symbol that is looked up, in bytes: C++ makes long ones."""

_MOST_BYTES_SHOWN = 256

log = logger("dl.link")
symbols_log = logger("dl.link.symbols")


def linking_functions(system: System, adapter: Adapter) -> Functions:
    """Return the guest's interface to dynamic linking."""
    calls = _Linking(system)
    opening: dict[str, Callable[..., int]] = {"dlopen": calls.dlopen, "dlsym": calls.dlsym}
    if not system.guest_elf:  # nobody asks who calls, so that all modules share one function
        opening = {name: partial(function, _NOBODY) for name, function in opening.items()}
    return adapter.functions(WASIX, opening, takes_caller=system.guest_elf) | adapter.functions(
        WASIX, {"dl_invalid_handle": calls.dl_invalid_handle}, blocking=False
    )


def read_text(system: System, address: int, size: int, most: int) -> str:
    """Read a string of the guest's of at most a number of bytes.

    Raises:
        ResourceLimitError: it has more; it is not read then.
        OutOfBoundsError: it is not in memory.
        InvalidStringError: it is no UTF-8.
    """
    memory = system.memory
    if most < size <= memory.size - address:
        raise ResourceLimitError("a name or search path", f"it has more than {most} bytes")
    return memory.read_string(address, size)


def cut(text: str, size: int) -> bytes:
    """Return a text and its NUL for a buffer of `size` bytes, at least 1, cut between two characters."""
    return text.encode()[: size - 1].decode(errors="ignore").encode() + b"\0"


def elf_flags(flags: int) -> DlFlags:
    """Return flags as dlopen of ELF takes them: unknown bits are ignored, but it must be said when to bind.

    Raises:
        LinkerUsageError: it is not said.
    """
    if not flags & (DlFlags.LAZY | DlFlags.NOW):
        raise LinkerUsageError("invalid mode for dlopen(): neither RTLD_LAZY nor RTLD_NOW")
    return DlFlags(flags & ALL_FLAGS)


def not_utf8(system: System, error: InvalidStringError) -> str:
    """Return what to tell the guest about a name that is no text: its bytes, escaped and at most 256."""
    raw = system.memory.read(error.address, min(error.length, _MOST_BYTES_SHOWN))
    return f"a name or search path is {error.reason}: {bytes(raw).decode(errors='backslashreplace')}"


class _Linking:
    def __init__(self, system: System) -> None:
        self._system = system

    def dlopen(
        self,
        caller: int,
        path: int,
        path_size: int,
        flags: int,
        error: int,
        error_size: int,
        search: int,
        search_size: int,
        out: int,
    ) -> int:
        """`dlopen`; a null path is the program itself."""
        system = self._system
        system.memory.read(out, 4)
        try:
            system.check_dynamic()
            honoured = elf_flags(flags) if system.guest_elf else None
            if not path:
                handle = MAIN_HANDLE
            else:
                name = read_text(system, path, path_size, MAX_PATH_BYTES)
                first = read_text(system, search, search_size, MAX_SEARCH_BYTES) if search_size else ""
                log.debug("guest: dlopen(%r, %s)", name, DlFlags(flags & ALL_FLAGS))
                with running_guest():
                    handle = system.open_library(name, first, honoured, caller)
        except ENDINGS:
            raise
        except InvalidStringError as failure:
            return self._fail(
                f"failed to load module: {not_utf8(system, failure)}", error, error_size, Errno.INVAL
            )
        except DlError as failure:
            return self._fail(f"failed to load module: {system.text_for_guest(failure)}", error, error_size)
        system.memory.write_u32(out, handle)
        return Errno.SUCCESS

    def dlsym(
        self, caller: int, handle: int, name: int, name_size: int, error: int, error_size: int, out: int
    ) -> int:
        """`dlsym`; looks in one module only, or with handle 0 in the global scope."""
        system = self._system
        system.memory.read(out, 4)
        try:
            symbol = read_text(system, name, name_size, MAX_SYMBOL_BYTES)
            with running_guest():
                address = system.address_of_symbol(handle, symbol, caller if system.guest_elf else None)
        except ENDINGS:
            raise
        except InvalidStringError as failure:
            return self._fail(
                f"failed to resolve symbol: {not_utf8(system, failure)}", error, error_size, Errno.INVAL
            )
        except DlError as failure:
            text = system.text_for_guest(failure)
            return self._fail(f"failed to resolve symbol: {text}", error, error_size)
        symbols_log.debug("guest: dlsym(%d, %r) = %#x", handle, symbol, address)
        system.memory.write_u32(out, address)
        return Errno.SUCCESS

    def dl_invalid_handle(self, handle: int) -> int:
        """`dl_invalid_handle`: 0 for the handle of a library, in spite of its name."""
        return Errno.SUCCESS if self._system.is_side_module(handle) else Errno.NOEXEC

    def _fail(self, text: str, buffer: int, size: int, errno: Errno = Errno.UNKNOWN) -> Errno:
        """Write an error's text and its NUL into a buffer of `size` bytes, cut between two characters; 0 writes nothing."""
        if size:
            self._system.memory.write(buffer, cut(text, size))
        return errno
