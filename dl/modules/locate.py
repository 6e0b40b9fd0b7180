"""Where libraries are found.

Rules, those of ld.so and of WASIX where they agree: a name with a slash is a path; a bare name is looked for in the
library path, then in the run path of the module that needs it (`$ORIGIN` being that module's directory; run paths are
not inherited), and the current directory is not searched. A `.so` that is not there may be there as `.wasm`.
A module's identity is its resolved path, so `a.so`, `./a.so` and a link to it are one module.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dl.errors import LibraryNotFoundError, LinkError, MalformedModuleError
from dl.modules.image import ModuleImage, image_from_bytes, image_from_file

log = logging.getLogger("dl.link")

_MAX_NAME_BYTES = 4096
_WASM_MAGIC = b"\0asm"
_ORIGIN = re.compile(r"\$(?:\{ORIGIN\}|ORIGIN(?![A-Za-z0-9_]))")


@dataclass(frozen=True)
class Requester:
    """The module on whose behalf a library is looked for.

    Attributes:
        name: for messages; None when the host asks.
        origin: directory that `$ORIGIN` stands for; None when there is none.
        run_path: its run path.
    """

    name: str | None = None
    origin: Path | None = None
    run_path: tuple[str, ...] = ()


def requester_of(image: ModuleImage) -> Requester:
    """Return a module as the one that looks for the libraries it needs."""
    origin = image.path.parent if image.path else None
    return Requester(image.name, origin, image.wasm.dylink.runtime_path if image.wasm.dylink else ())


@dataclass
class Locator:
    """Finds libraries for one program.

    Attributes:
        library_path: directories, searched in order.
        libraries: modules held in memory, by name; found before any file of that name.
        loaded: returns the image of the loaded module with an identity, if there is one.

    `_lock` guards changes of `libraries`.
    """

    library_path: Sequence[Path] = ()
    libraries: Mapping[str, bytes] = field(default_factory=dict)
    loaded: Callable[[str], ModuleImage | None] = lambda _identity: None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, name: str, wasm: bytes) -> bool:
        """Hold a module in memory from now on; False, and nothing is done, if the name is one's already."""
        with self._lock:
            if name in self.libraries:
                return False
            # A new mapping: readers take no lock.
            self.libraries = {**self.libraries, name: wasm}
            return True

    def remove(self, name: str) -> None:
        """Forget a module held in memory."""
        with self._lock:
            self.libraries = {n: wasm for n, wasm in self.libraries.items() if n != name}

    def find(
        self,
        name: str,
        requester: Requester = Requester(),
        first: Iterable[Path] = (),
        admits: Callable[[Path], bool] = lambda _path: True,
    ) -> ModuleImage:
        """Find a library; read and parse it, unless it is loaded.

        Args:
            name: its path, or its bare name.
            requester: who needs it.
            first: directories to search before the library path, for a bare name.
            admits: says whether a file may be looked at.

        Raises:
            LibraryNotFoundError: there is no such file; tells every path tried.
            LinkError: the file named by a path cannot be read.
            MalformedModuleError: the file is not a valid module.
        """
        if not name or "\0" in name or not 0 < _length(name) <= _MAX_NAME_BYTES:
            raise LibraryNotFoundError(
                name[:80], [(repr(name[:80]), f"not a name of 1 to {_MAX_NAME_BYTES} bytes")], requester.name
            )
        if name in self.libraries:
            identity = f"<memory>/{name}"
            return self.loaded(identity) or image_from_bytes(self.libraries[name], name, identity)
        asker = f"{requester.name} needs " if requester.name else ""
        tried: list[tuple[str, str]] = []
        is_path = "/" in name
        places = (
            [Path(name)]
            if is_path
            else [d / name for d in (*first, *self.library_path, *run_path(requester))]
        )
        for place in places:
            for path in _spellings(place):
                if not admits(path):
                    tried.append((str(path), "outside the directories that the program may load from"))
                    continue
                loaded = self._loaded_from(path)
                if loaded is not None:
                    log.debug("%s%s is loaded: %s", asker, name, loaded.name)
                    return loaded
                if _present(path, tried) and (is_path or _is_module(path, tried)):
                    log.debug("%s%s found: %s", asker, name, path)
                    return image_from_file(path, str(path))
        for where, reason in tried:
            log.debug("%s%s not found: %s: %s", asker, name, where, reason)
        raise LibraryNotFoundError(name, tried, requester.name)

    def _loaded_from(self, path: Path) -> ModuleImage | None:
        """Return the loaded module that a path stands for, whatever has become of its file."""
        try:
            return self.loaded(str(path.resolve()))
        except (OSError, RuntimeError, ValueError):
            return None


def run_path(requester: Requester) -> list[Path]:
    """Return the directories of a module's run path, `$ORIGIN` filled in; entries that need an unknown origin are left out."""
    directories = []
    for entry in requester.run_path:
        for part in entry.split(":"):
            if requester.origin is None and _ORIGIN.search(part):
                continue
            origin = str(requester.origin)
            text = _ORIGIN.sub(lambda _match: origin, part)  # noqa: B023  used at once
            if text:
                directories.append(Path(text))
    return directories


def _length(name: str) -> int:
    """Bytes of a name as the host's file system has it; 0 if it can have no such name."""
    try:
        return len(os.fsencode(name))
    except UnicodeEncodeError:
        return 0


def _spellings(path: Path) -> Iterable[Path]:
    yield path
    if path.suffix == ".so":
        yield path.with_suffix(".wasm")


def _present(path: Path, tried: list[tuple[str, str]]) -> bool:
    try:
        if path.is_file():
            return True
        tried.append((str(path), "is not a file" if path.exists() else "no such file"))
    except (OSError, ValueError) as error:
        tried.append((str(path), str(getattr(error, "strerror", None) or error).lower()))
    return False


def _is_module(path: Path, tried: list[tuple[str, str]]) -> bool:
    """Pass over files of other formats in a search, as ld.so passes over libraries of other machines."""
    try:
        with path.open("rb") as file:
            if file.read(4) == _WASM_MAGIC:
                return True
        tried.append((str(path), "not a WebAssembly module"))
    except OSError as error:
        tried.append((str(path), str(error.strerror).lower()))
    return False


def split_path(text: str) -> list[Path]:
    """Split a colon-separated list of directories; empty entries are left out."""
    return [Path(part) for part in text.split(os.pathsep) if part]


__all__ = [
    "LibraryNotFoundError",
    "LinkError",
    "Locator",
    "MalformedModuleError",
    "Requester",
    "run_path",
    "split_path",
]
