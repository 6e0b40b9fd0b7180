"""Calls that are WASI's once descriptor and path are looked up: the common case of each, without a step too many.

A call on a file costs the engine 5 to 20 µs, most of them to hand it to a thread of its own; what comes before is Python, and
was as much again. So the common case is written out: one number to look up, a path that is relative and no device's. All else
goes to `Files.forward`, which has every case.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dl.wasix.abi import Errno, ErrnoError
from dl.wasix.files.devices import LONGEST as LONGEST_DEVICE

if TYPE_CHECKING:
    from collections.abc import Callable

    from dl.engine.protocol import RawFunction, Slots
    from dl.wasix.files.descriptors import OpenFile
    from dl.wasix.files.files import Files

_DEVICE_PART, _SLASH = b"dev", 0x2F


def by_descriptor(files: Files, name: str) -> RawFunction:
    """Return a function whose first argument is a descriptor, and that has no path."""
    entries, answer = files.table.entries, files.regular.calls[name]
    function: RawFunction | None = None

    def call(slots: Slots) -> None:
        nonlocal function
        if function is None:
            function = files.wasi.raw(name)
        entry = entries.get(slots.s32(0))
        if entry is not None and (host := entry.file.host) is not None:
            slots.set_32(0, answer(host, slots))
            return
        with files.wasi_lock:
            entry = entries.get(slots.s32(0))
            if entry is None:
                raise ErrnoError(Errno.BADF)
            number = entry.file.wasi
            if number is not None:
                slots.set_32(0, number)
                function(slots)
                return
        files.forward(name, slots)

    return call


def by_path(files: Files, name: str, descriptor: int, path: int) -> RawFunction:
    """Return a function with one path.

    Args:
        files: the program's files.
        name: the function.
        descriptor: which argument is the directory.
        path: which argument is the path's address; its size follows.
    """
    entries = files.table.entries
    function: RawFunction | None = None

    def call(slots: Slots) -> None:
        nonlocal function
        if function is None:
            function = files.wasi.raw(name)
        address, size = slots.u32(path), slots.u32(path + 1)
        with files.wasi_lock:
            entry = entries.get(slots.s32(descriptor))
            if entry is None:
                raise ErrnoError(Errno.BADF)
            file = entry.file
            number = file.wasi
            if number is not None and is_plain(files, file, address, size):
                slots.set_32(descriptor, number)
                function(slots)
                return
        files.forward(name, slots)

    return call


def closing(files: Files, keeps_preopens: Callable[[], bool]) -> RawFunction:
    """Return `fd_close`; `keeps_preopens` says for the program what `Files.close` asks."""
    table = files.table
    function: RawFunction | None = None

    def call(slots: Slots) -> None:
        nonlocal function
        if function is None:
            function = files.wasi.raw("fd_close")
        number = slots.s32(0)
        with files.wasi_lock:
            file = table.file(number)
            if file.host is not None:
                table.remove(number)
                slots.set_32(0, Errno.SUCCESS)
                return
            if file.wasi is not None and file.preopen is None and file.references == 1:
                table.remove(number)
                slots.set_32(0, file.wasi)
                function(slots)
                return
        slots.set_32(0, files.close(number, keeps_preopens=keeps_preopens()))

    return call


def is_plain(files: Files, directory: OpenFile, address: int, size: int) -> bool:
    """Whether a path is relative, and cannot be a device's.

    Raises:
        OutOfBoundsError: it is not in memory.
    """
    if not size:
        return True
    if size > LONGEST_DEVICE:
        return files.memory.read_u8(address) != _SLASH
    return is_plain_text(directory, files.memory.read(address, size))


def is_plain_text(directory: OpenFile, text: bytes) -> bool:
    """Whether a path, which is not empty, is relative and cannot be a device's."""
    preopen = directory.preopen
    return text[0] != _SLASH and _DEVICE_PART not in text and (preopen is None or "dev" not in preopen)
