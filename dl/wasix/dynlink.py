"""`dlopen`, `dlsym` and `dl_invalid_handle` of WASIX.

ABI: functions of `wasix_32v1`; strings are pointer and length in bytes; the result is an errno, 0 or 79 (`unknown`), with
the reason in the caller's buffer. Flags are ignored: every load acts like `RTLD_GLOBAL`, data must be defined at once
and functions may come later.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from dl.errors import DlError
from dl.handles import MAIN_HANDLE, DlFlags
from dl.host import SystemFunction
from dl.wasix.preview1 import signature
from memory import InvalidStringError, OutOfBoundsError

if TYPE_CHECKING:
    from dl.linker import Linker

NAMESPACE = "wasix_32v1"

SUCCESS, INVALID, NOEXEC, MEMORY_VIOLATION, UNKNOWN = 0, 28, 45, 78, 79

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


def _checked(function: Callable[..., int]) -> Callable[..., int]:
    """Take addresses as unsigned, and turn bad ones into errnos."""

    def call(*arguments: int) -> int:
        try:
            return function(*(a & 0xFFFFFFFF for a in arguments))
        except OutOfBoundsError:
            return MEMORY_VIOLATION
        except InvalidStringError:
            return INVALID

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
        linker = self._linker
        linker.memory.read(out, 4)
        try:
            linker.check_dynamic()
            if not path:
                handle = MAIN_HANDLE
            else:
                name = linker.memory.read_string(path, path_size)
                first = linker.memory.read_string(search, search_size) if search_size else ""
                log.debug("guest: dlopen(%r, %s)", name, DlFlags(flags & 63))
                handle = linker.open_for_guest(name, first)
        except DlError as failure:
            write_error(linker, f"failed to load module: {failure}", error, error_size)
            return UNKNOWN
        linker.memory.write_u32(out, handle)
        return SUCCESS


class _DlSym:
    def __init__(self, linker: Linker) -> None:
        self._linker = linker

    def __call__(self, handle: int, name: int, name_size: int, error: int, error_size: int, out: int) -> int:
        linker = self._linker
        linker.memory.read(out, 4)
        symbol = linker.memory.read_string(name, name_size)
        try:
            address = linker.address_for_guest(handle, symbol)
        except DlError as failure:
            write_error(linker, f"failed to resolve symbol: {failure}", error, error_size)
            return UNKNOWN
        log.debug("guest: dlsym(%d, %r) = %#x", handle, symbol, address)
        linker.memory.write_u32(out, address)
        return SUCCESS
