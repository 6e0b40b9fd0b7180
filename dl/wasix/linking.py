"""`dlopen`, `dlsym` and `dl_invalid_handle` of WASIX.

ABI: functions of `wasix_32v1`; strings are pointer and length in bytes; the result is an errno, 0 or 79 (`unknown`), with
the reason in the caller's buffer. Flags are ignored: every load acts like `RTLD_GLOBAL`, data must be defined at once
and functions may come later.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from dl.dlfcn import ALL_FLAGS, MAIN_HANDLE, DlFlags
from dl.engine.preview1 import signature
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
from dl.program.host_symbols import SystemFunction
from memory import InvalidStringError, OutOfBoundsError

if TYPE_CHECKING:
    from dl.linker import Linker

NAMESPACE = "wasix_32v1"

SUCCESS, INVALID, NOEXEC, MEMORY_VIOLATION, UNKNOWN = 0, 28, 45, 78, 79

ENDINGS = (GuestThreadError, LinkerClosedError, ProgramDeadlockedError, ProgramExited, ThreadExited)
"""What ends a thread or the program; never the errno of a call that a constructor's ending cut short."""

T = TypeVar("T")

log = logging.getLogger("dl.link")


def dynlink_functions(linker: Linker) -> dict[str, SystemFunction]:
    """Return the guest's interface to the linker."""
    return {
        "dlopen": SystemFunction(signature("iiiiiiii:i"), function=_checked(_DlOpen(linker))),
        "dlsym": SystemFunction(signature("iiiiii:i"), function=_checked(_DlSym(linker))),
        "dl_invalid_handle": SystemFunction(
            signature("i:i"), function=lambda handle: _invalid_handle(linker, handle & 0xFFFFFFFF)
        ),
    }


class _BadArgument(Exception):  # noqa: N818  an errno on its way, not a fault of ours
    """The guest gave a bad pointer or string; holds the errno."""

    def __init__(self, errno: int) -> None:
        self.errno = errno


class _Guest:
    """The caller's memory: bad addresses and strings in it are errnos.

    Only here, so that the same exception from a user's host function, which a constructor may call, is left alone.
    """

    def __init__(self, linker: Linker) -> None:
        self._linker = linker

    def check_result(self, address: int) -> None:
        """Check that a result of 4 bytes can be written."""
        self._reading(lambda: self._linker.memory.read(address, 4))

    def text(self, address: int, size: int, most: int | None = None) -> str:
        """Read a string.

        Raises:
            ResourceLimitError: it has more bytes than are allowed; it is not read then.
        """
        if most is not None and most < size <= self._linker.memory.size - address:
            raise ResourceLimitError("a library", f"a name or search path of more than {most} bytes")
        return self._reading(lambda: self._linker.memory.read_string(address, size))

    def put(self, address: int, value: int) -> None:
        """Write a result."""
        self._reading(lambda: self._linker.memory.write_u32(address, value))

    def error(self, text: str, buffer: int, size: int) -> int:
        """Write an error text; return the errno that goes with it."""
        self._reading(lambda: write_error(self._linker, text, buffer, size))
        return UNKNOWN

    def _reading(self, access: Callable[[], T]) -> T:
        try:
            return access()
        except OutOfBoundsError:
            raise _BadArgument(MEMORY_VIOLATION) from None
        except InvalidStringError:
            raise _BadArgument(INVALID) from None


def _checked(function: Callable[..., int]) -> Callable[..., int]:
    """Take addresses as unsigned, and return the errno of a bad one."""

    def call(*arguments: int) -> int:
        try:
            return function(*(a & 0xFFFFFFFF for a in arguments))
        except _BadArgument as bad:
            return bad.errno

    return call


def _invalid_handle(linker: Linker, handle: int) -> int:
    return SUCCESS if linker.is_side_module(handle) else NOEXEC


def write_error(linker: Linker, text: str, buffer: int, size: int) -> None:
    """Write an error text, cut at a character's boundary, with its NUL, into a buffer of `size` bytes; 0 writes nothing."""
    if size:
        raw = text.encode()[: size - 1].decode(errors="ignore").encode()
        linker.memory.write(buffer, raw + b"\0")


class _DlOpen:
    def __init__(self, linker: Linker) -> None:
        self._linker = linker
        self._guest = _Guest(linker)

    def __call__(
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
        linker, guest = self._linker, self._guest
        guest.check_result(out)
        try:
            linker.check_dynamic()
            if not path:
                handle = MAIN_HANDLE
            else:
                name = guest.text(path, path_size, MAX_PATH_BYTES)
                first = guest.text(search, search_size, MAX_SEARCH_BYTES) if search_size else ""
                log.debug("guest: dlopen(%r, %s)", name, DlFlags(flags & ALL_FLAGS))
                handle = linker.open_for_guest(name, first)
        except ENDINGS:
            raise
        except DlError as failure:
            return guest.error(f"failed to load module: {linker.text_for_guest(failure)}", error, error_size)
        guest.put(out, handle)
        return SUCCESS


class _DlSym:
    def __init__(self, linker: Linker) -> None:
        self._linker = linker
        self._guest = _Guest(linker)

    def __call__(self, handle: int, name: int, name_size: int, error: int, error_size: int, out: int) -> int:
        guest = self._guest
        guest.check_result(out)
        symbol = guest.text(name, name_size)
        try:
            address = self._linker.address_for_guest(handle, symbol)
        except ENDINGS:
            raise
        except DlError as failure:
            return guest.error(
                f"failed to resolve symbol: {self._linker.text_for_guest(failure)}", error, error_size
            )
        log.debug("guest: dlsym(%d, %r) = %#x", handle, symbol, address)
        guest.put(out, address)
        return SUCCESS
