"""Paths that the guest gives, as paths of the host.

A guest sees the directories that were opened for it. A path under one of them is the host's path there. Any other path
is taken as the host's only if it leads into a directory that the program was given for its libraries: the library path,
or the main module's own directory. Nothing else of the host can be loaded, or probed for, from inside.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class GuestPaths:
    """How one program's paths map.

    Attributes:
        preopens: guest directory to host directory.
        trusted: host directories that libraries may come from.
        current: the guest's current directory.
    """

    preopens: Mapping[str, str]
    trusted: Sequence[Path]
    current: str = "/"

    def to_host(self, path: str) -> Path | None:
        """Return the host's path for a guest's path to a library or directory; None if the guest may not reach it."""
        inside = self._in_preopen(path)
        if inside is not None:
            return inside
        host = Path(path)
        try:
            resolved = host.resolve()
        except (OSError, RuntimeError, ValueError):
            return None
        for directory in self.trusted:
            root = directory.resolve()
            if resolved == root or root in resolved.parents:
                return host
        return None

    def admits(self, path: Path) -> bool:
        """Whether the guest may load a library from a host's path.

        A link must not lead out of the guest's directories, since the guest can make links; but what the library path
        itself holds was put there by the host, links too.
        """
        if path.parent in self.trusted:
            return True
        return _inside(path, (*self.trusted, *map(Path, self.preopens.values())))

    def may_have_written(self, path: Path) -> bool:
        """Whether a file is in a directory that the guest can write to, so that what it needs is the guest's wish."""
        return _inside(path, map(Path, self.preopens.values()))

    def _in_preopen(self, path: str) -> Path | None:
        best: tuple[int, Path] | None = None
        for name in (posixpath.normpath(path), posixpath.normpath(posixpath.join(self.current, path))):
            for guest, host in self.preopens.items():
                root = posixpath.normpath(guest)
                if root == ".":
                    rest = None if name.startswith(("/", "..")) else name
                elif name == root:
                    rest = "."
                else:
                    prefix = root if root.endswith("/") else root + "/"
                    rest = name[len(prefix) :] if name.startswith(prefix) else None
                if rest is None or rest.startswith(".."):
                    continue
                candidate = Path(host, rest)
                try:
                    outside = Path(host).resolve() not in (candidate.resolve(), *candidate.resolve().parents)
                except (OSError, RuntimeError, ValueError):
                    continue
                if not outside and (best is None or len(root) > best[0]):
                    best = (len(root), candidate)
        return best[1] if best else None


def _inside(path: Path, directories: Iterable[Path]) -> bool:
    """Whether a path leads into one of some directories, all links followed."""
    try:
        parents = {path.resolve(), *path.resolve().parents}
        return any(directory.resolve() in parents for directory in directories)
    except (OSError, RuntimeError, ValueError):
        return False
