"""`path_open`: by the host where it can, else by the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dl.modules.beneath import MAX_PATH_BYTES
from dl.wasix.abi import Errno, ErrnoError
from dl.wasix.files.descriptors import OpenFile
from dl.wasix.files.forwarding import is_plain_text

if TYPE_CHECKING:
    from dl.engine.protocol import Slots
    from dl.wasix.files.files import Files

_SLASH = 0x2F


def path_open(files: Files, slots: Slots, *, cloexec: bool = False) -> None:
    """`path_open`, whose number is one of ours.

    Args:
        files: the program's files.
        slots: the arguments of preview 1's `path_open`.
        cloexec: the new descriptor's flag.
    """
    place, address, size = slots.u32(8), slots.u32(2), slots.u32(3)
    memory = files.memory
    # Opening may make a file, or empty one: so what cannot have a number, or whose number cannot be told, is not opened.
    memory.borrow(place, 4)
    files.table.check_room()
    entry = files.table.entries.get(slots.s32(0))
    if entry is None:
        raise ErrnoError(Errno.BADF)
    directory, path = entry.file, memory.read(address, size) if 0 < size <= MAX_PATH_BYTES else b""
    if path and not is_plain_text(directory, path):
        device = files.device(slots.s32(0), address, size)
        if device is not None:
            number = files.open_device(device, slots.u32(4), cloexec=cloexec)
            memory.write_u32(place, number)
            slots.set_32(0, Errno.SUCCESS)
            return
        found = files.placed(path) if path[0] == _SLASH else None
        if found is not None:
            directory, path = found[0], path[found[1] :]
    held = directory.directory
    opened = None
    if held is not None:
        opened = held.open(path, slots.u32(1), slots.u32(4), slots.u64(5), slots.u32(7))
    if opened is None:
        _by_engine(files, slots, place, cloexec=cloexec)
    elif isinstance(opened, Errno):
        slots.set_32(0, opened)
    else:
        with files.wasi_lock:
            number = files.table.add(OpenFile(host=opened), cloexec=cloexec)
        memory.write_u32(place, number)
        slots.set_32(0, Errno.SUCCESS)


def _by_engine(files: Files, slots: Slots, place: int, *, cloexec: bool) -> None:
    """Open by the engine's WASI; its number is replaced by ours."""
    memory, wasi = files.memory, files.wasi
    with files.wasi_lock:
        files.forward("path_open", slots)
        if slots.u32(0):
            return
        opened = memory.read_u32(place)
        try:
            number = files.table.add(OpenFile(wasi=opened), cloexec=cloexec)
        except ErrnoError:
            wasi.call("fd_close", opened)
            raise
        if number != opened:
            memory.write_u32(place, number)
