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
    LibraryNotFoundError,
    LinkerClosedError,
    ProgramDeadlockedError,
    ProgramExited,
    ThreadExited,
)
from dl.program.host_symbols import SystemFunction
from memory import InvalidStringError, OutOfBoundsError

if TYPE_CHECKING:
    from dl.wasix.system import System

NAMESPACE = "wasix_32v1"

SUCCESS, INVALID, NOEXEC, MEMORY_VIOLATION, UNKNOWN = 0, 28, 45, 78, 79

ENDINGS = (GuestThreadError, LinkerClosedError, ProgramDeadlockedError, ProgramExited, ThreadExited)
"""What ends a thread or the program; never the errno of a call that a constructor's ending cut short."""

T = TypeVar("T")

log = logging.getLogger("dl.link")


def dynlink_functions(system: System) -> dict[str, SystemFunction]:
    """Return the guest's interface to the linker."""
    return {
        "dlopen": SystemFunction(signature("iiiiiiii:i"), function=_checked(_DlOpen(system))),
        "dlsym": SystemFunction(signature("iiiiii:i"), function=_checked(_DlSym(system))),
        "dl_invalid_handle": SystemFunction(
            signature("i:i"), function=lambda handle: _invalid_handle(system, handle & 0xFFFFFFFF)
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

    def __init__(self, system: System) -> None:
        self._system = system

    def check_result(self, address: int) -> None:
        """Check that a result of 4 bytes can be written."""
        self._reading(lambda: self._system.memory.read(address, 4))

    def text(self, address: int, size: int) -> str:
        """Read a string."""
        return self._reading(lambda: self._system.memory.read_string(address, size))

    def put(self, address: int, value: int) -> None:
        """Write a result."""
        self._reading(lambda: self._system.memory.write_u32(address, value))

    def error(self, text: str, buffer: int, size: int) -> int:
        """Write an error text; return the errno that goes with it."""
        self._reading(lambda: write_error(self._system, text, buffer, size))
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


def _invalid_handle(system: System, handle: int) -> int:
    return SUCCESS if system.is_side_module(handle) else NOEXEC


def write_error(system: System, text: str, buffer: int, size: int) -> None:
    """Write an error text, cut at a character's boundary, with its NUL, into a buffer of `size` bytes; 0 writes nothing."""
    if size:
        raw = text.encode()[: size - 1].decode(errors="ignore").encode()
        system.memory.write(buffer, raw + b"\0")


def _as_asked(name: str, failure: DlError) -> str:
    """Return the text of an error; a path that the guest gave stands in it as given, not as it is on the host."""
    text = str(failure)
    if isinstance(failure, LibraryNotFoundError) and "/" in name and failure.needed_by is None:
        text = text.replace(failure.module.removesuffix(".so"), name.removesuffix(".so"))
    return text


class _DlOpen:
    def __init__(self, system: System) -> None:
        self._system = system
        self._guest = _Guest(system)

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
        system, guest = self._system, self._guest
        guest.check_result(out)
        name = ""
        try:
            system.check_dynamic()
            if not path:
                handle = MAIN_HANDLE
            else:
                name = guest.text(path, path_size)
                first = guest.text(search, search_size) if search_size else ""
                log.debug("guest: dlopen(%r, %s)", name, DlFlags(flags & ALL_FLAGS))
                handle = system.open_library(name, first)
        except ENDINGS:
            raise
        except DlError as failure:
            return guest.error(f"failed to load module: {_as_asked(name, failure)}", error, error_size)
        guest.put(out, handle)
        return SUCCESS


class _DlSym:
    def __init__(self, system: System) -> None:
        self._system = system
        self._guest = _Guest(system)

    def __call__(self, handle: int, name: int, name_size: int, error: int, error_size: int, out: int) -> int:
        guest = self._guest
        guest.check_result(out)
        symbol = guest.text(name, name_size)
        try:
            address = self._system.address_of_symbol(handle, symbol)
        except ENDINGS:
            raise
        except DlError as failure:
            return guest.error(f"failed to resolve symbol: {failure}", error, error_size)
        log.debug("guest: dlsym(%d, %r) = %#x", handle, symbol, address)
        guest.put(out, address)
        return SUCCESS
