"""`dlopen`, `dlsym` and `dl_invalid_handle` of WASIX.

ABI: functions of `wasix_32v1`; strings are pointer and length in bytes; the result is an errno, 0 or 79 (`unknown`), with
the reason in the caller's buffer. Flags are ignored: every load acts like `RTLD_GLOBAL`, data must be defined at once
and functions may come later.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from dl.dlfcn import ALL_FLAGS, MAIN_HANDLE, DlFlags
from dl.engine.preview1 import WASIX
from dl.errors import (
    DlError,
    GuestThreadError,
    LinkerClosedError,
    ProgramDeadlockedError,
    ProgramExited,
    ResourceLimitError,
    ThreadExited,
)
from dl.modules.beneath import MAX_PATH_BYTES
from dl.modules.guest_paths import MAX_SEARCH_BYTES
from dl.wasix.abi import Errno
from dl.wasix.adapter import running_guest

if TYPE_CHECKING:
    from dl.wasix.adapter import Adapter, Functions
    from dl.wasix.system import System

ENDINGS = (GuestThreadError, LinkerClosedError, ProgramDeadlockedError, ProgramExited, ThreadExited)
"""What ends a thread or the program: it unwinds the caller of `dlopen` too and is never the errno of its call."""

log = logging.getLogger("dl.link")


def linking_functions(system: System, adapter: Adapter) -> Functions:
    """Return the guest's interface to dynamic linking."""
    calls = _Linking(system)
    return adapter.functions(WASIX, {"dlopen": calls.dlopen, "dlsym": calls.dlsym}) | adapter.functions(
        WASIX, {"dl_invalid_handle": calls.dl_invalid_handle}, blocking=False
    )


class _Linking:
    def __init__(self, system: System) -> None:
        self._system = system

    def dlopen(
        self,
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
            if not path:
                handle = MAIN_HANDLE
            else:
                name = self._text(path, path_size, MAX_PATH_BYTES)
                first = self._text(search, search_size, MAX_SEARCH_BYTES) if search_size else ""
                log.debug("guest: dlopen(%r, %s)", name, DlFlags(flags & ALL_FLAGS))
                with running_guest():
                    handle = system.open_library(name, first)
        except ENDINGS:
            raise
        except DlError as failure:
            return self._fail(f"failed to load module: {system.text_for_guest(failure)}", error, error_size)
        system.memory.write_u32(out, handle)
        return Errno.SUCCESS

    def dlsym(self, handle: int, name: int, name_size: int, error: int, error_size: int, out: int) -> int:
        """`dlsym`; looks in one module only, or with handle 0 in the global scope."""
        system = self._system
        system.memory.read(out, 4)
        symbol = system.memory.read_string(name, name_size)
        try:
            with running_guest():
                address = system.address_of_symbol(handle, symbol)
        except ENDINGS:
            raise
        except DlError as failure:
            text = system.text_for_guest(failure)
            return self._fail(f"failed to resolve symbol: {text}", error, error_size)
        log.debug("guest: dlsym(%d, %r) = %#x", handle, symbol, address)
        system.memory.write_u32(out, address)
        return Errno.SUCCESS

    def dl_invalid_handle(self, handle: int) -> int:
        """`dl_invalid_handle`: 0 for the handle of a library, in spite of its name."""
        return Errno.SUCCESS if self._system.is_side_module(handle) else Errno.NOEXEC

    def _text(self, address: int, size: int, most: int) -> str:
        """Read a string of at most a number of bytes.

        Raises:
            ResourceLimitError: it has more; it is not read then.
        """
        memory = self._system.memory
        if most < size <= memory.size - address:
            raise ResourceLimitError("a library", f"a name or search path of more than {most} bytes")
        return memory.read_string(address, size)

    def _fail(self, text: str, buffer: int, size: int) -> Errno:
        """Write an error's text and its NUL into a buffer of `size` bytes, cut between two characters; 0 writes nothing."""
        if size:
            raw = text.encode()[: size - 1].decode(errors="ignore").encode()
            self._system.memory.write(buffer, raw + b"\0")
        return Errno.UNKNOWN
