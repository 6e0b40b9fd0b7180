"""Directories that a C library of WASIX expects to exist: `/tmp` and `/dev/shm`, private to the program.

They lie in a temporary directory of the host's, which is made for the program and removed at its end. A directory that the
host opens under one of these names, or above it (`/`, or `.` which is the same to the C library), takes precedence: what is in
it is the host's decision.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dl.engine.preview1 import WASIX
from dl.logs import logger
from dl.modules.guest_paths import guest_root
from dl.wasix.abi import PROCESS

if TYPE_CHECKING:
    from dl.wasm.module import WasmModule

log = logger("dl.wasix")

_DIRECTORIES = {"/tmp": "tmp", "/dev": "dev"}  # noqa: S108  the guest's
_INSIDE = ("tmp", "dev", "dev/shm")


def is_wasix(main: WasmModule) -> bool:
    """Whether a main module's C library is that of WASIX, by what it imports, and not that of plain WASI."""
    return any(i.module == WASIX and i.name in PROCESS for i in main.imports)


class DefaultFiles:
    """What one program finds without the host having given it. The directories are for programs of WASIX only.

    Args:
        preopens: directories that the host opens for the program, guest name to host path.
        main: the main module, if there is one.
        wanted: whether the program gets anything.

    Attributes:
        wanted: whether there are devices.
        preopens: the host's directories, and after them the program's own.

    Raises:
        OSError: the host cannot make the directories.
    """

    def __init__(
        self, preopens: Mapping[str, str | os.PathLike[str]], main: WasmModule | None, *, wanted: bool = True
    ) -> None:
        self.wanted = wanted
        self.preopens = {guest: os.fspath(host) for guest, host in preopens.items()}
        taken = {guest_root(name) for name in preopens}
        missing = [name for name in _DIRECTORIES if not taken & {"/", name}]
        if wanted and missing and main is not None and is_wasix(main):
            import tempfile  # noqa: PLC0415  needed by programs of WASIX alone

            root = Path(tempfile.mkdtemp(prefix="wasix-dl-"))
            # Also for a program that could not be linked, and when the host ends without closing it.
            self._remove: Callable[[], object] = weakref.finalize(self, _remove, root, os.getpid())
            for name in _INSIDE:
                (root / name).mkdir()
            self.preopens |= {name: str(root / _DIRECTORIES[name]) for name in missing}
        else:
            self._remove = lambda: None

    def close(self) -> None:
        """Remove the directories and all that is in them; idempotent. What cannot be removed stays, and is logged."""
        self._remove()


def _remove(root: Path, creator: int) -> None:
    if os.getpid() != creator:
        return  # a child made by `os.fork`, which ends before its parent's program does
    import shutil  # noqa: PLC0415  as tempfile, which has imported it

    shutil.rmtree(root, ignore_errors=True)
    if root.exists():
        log.warning("%s, the program's temporary directory, cannot be removed", root)
