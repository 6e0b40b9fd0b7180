"""What differs in `wasi_unstable`, the snapshot before preview 1.

Source: the `wasi_unstable` witx definitions. The directions of `fd_seek` have other numbers, a file's status has a link
count of 32 bits and so 56 bytes, and a clock's subscription has one field more (see `dl.wasix.files.poll`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from dl.wasix.abi import Errno
from dl.wasix.files.files import Files

_WHENCE = {0: 1, 1: 2, 2: 0}
"""CUR, END, SET there, to what they are in preview 1."""


def snapshot0_functions(files: Files) -> dict[str, Callable[..., int]]:
    """Return the functions that preview 1's cannot stand in for."""
    calls = _Calls(files)
    return {
        "fd_seek": calls.fd_seek,
        "fd_filestat_get": calls.fd_filestat_get,
        "path_filestat_get": calls.path_filestat_get,
    }


class _Calls:
    def __init__(self, files: Files) -> None:
        self._files = files
        self._lock = threading.Lock()  # one status at a time

    def fd_seek(self, number: int, offset: int, whence: int, out: int) -> int:
        if whence not in _WHENCE:
            return Errno.INVAL
        return self._files.seek(number, offset, _WHENCE[whence], out)

    def fd_filestat_get(self, number: int, out: int) -> int:
        return self._status(out, lambda: self._files.filestat_get(number, out))

    def path_filestat_get(self, number: int, flags: int, path: int, size: int, out: int) -> int:
        return self._status(out, lambda: self._files.path_filestat_get(number, flags, path, size, out))

    def _status(self, out: int, get: Callable[[], int]) -> int:
        """Get a status of preview 1's form and make it one of the older form.

        Preview 1's is 8 bytes longer. The bytes that follow the guest's structure are restored afterwards.
        """
        memory = self._files.memory
        with self._lock:
            following = memory.read(out + 56, 8)
            error = get()
            status = memory.read_struct("QQB7xQQQQQ", out) if not error else ()
            memory.write(out + 56, following)
        if status:
            device, inode, kind, links, size, *times = status
            memory.write_struct("QQB3xIQQQQ", out, device, inode, kind, min(links, 0xFFFFFFFF), size, *times)
        return error
