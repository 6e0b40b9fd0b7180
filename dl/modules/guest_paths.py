"""Paths that the guest gives, and where they lead on the host. `docs/security.md` states the rule.

A guest sees the directories that were opened for it, the *preopens*. A path in one of them is the host's path there. Any other
path is taken as the host's only if its text leads into a directory that the program was given for its libraries: the library
path, or the main module's own directory. Which of these a path means is decided by its text alone; no file system is asked.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from dl.errors import ResourceLimitError
from dl.modules.beneath import Identity, Place, absolute, identity_of, too_long
from dl.records import dataclass, field

MAX_SEARCH_BYTES = 32768
"""Longest search path that a guest may give, in bytes."""

MAX_SEARCH_DIRECTORIES = 256
"""Most directories of a search path, or of a library's run path."""

LIBRARY_PATH, PROGRAM_DIRECTORY = "<library path>", "<program directory>"
"""What the guest's messages call the directories that it does not see."""


def guest_root(preopen: str) -> str:
    """Return the absolute name of an open directory; as for the C library, `.` is the root."""
    return posixpath.normpath("/" + preopen).replace("//", "/")


@dataclass(frozen=True)
class Directory:
    """A directory that libraries may come from.

    Attributes:
        guest: its absolute path as the guest sees it, or what messages call it if the guest does not see it.
        host: the host's path of it, as it was given.
        path: the same, absolute.
        forms: texts that paths beneath it begin with: absolute, as given and with all links resolved.
        identity: which directory that was when the program was made; None for any.
    """

    guest: str
    host: str
    path: str
    forms: tuple[str, ...]
    identity: Identity | None = None


def preopened(preopens: Mapping[str, str]) -> tuple[Directory, ...]:
    """Record the directories that were opened for a guest; before any of its code runs, since it may move them later."""
    return tuple(_recorded(guest_root(guest), host, identity_of(host)) for guest, host in preopens.items())


def given(directories: Iterable[str | os.PathLike[str]], name: str = LIBRARY_PATH) -> tuple[Directory, ...]:
    """Record directories that the host gives a program for its libraries; before any guest code runs."""
    return tuple(_recorded(name, os.fspath(directory), None) for directory in directories)


def _recorded(guest: str, host: str, identity: Identity | None) -> Directory:
    try:
        path = absolute(host)
        forms = tuple(dict.fromkeys((os.path.normpath(path), os.path.realpath(path))))
    except (OSError, ValueError):  # no current directory any more, or a NUL
        return Directory(guest, host, host, ())
    return Directory(guest, host, path, forms, identity)


@dataclass(frozen=True)
class GuestPaths:
    """How one program's paths map.

    Attributes:
        preopens: the directories that the guest sees, and can write to.
        trusted: other directories that libraries may come from.
        current: the guest's current directory.
    """

    preopens: tuple[Directory, ...] = ()
    trusted: tuple[Directory, ...] = ()
    current: str = "/"
    identities: frozenset[Identity] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        known = frozenset(d.identity for d in self.preopens if d.identity is not None)
        object.__setattr__(self, "identities", known)

    def places(self, path: str) -> tuple[Place, ...]:
        """Return where a path of the guest may lead, in the order to try them; nothing if the guest may not go there."""
        if not path or too_long(path):
            return ()
        found = self._in_preopens(posixpath.normpath(posixpath.join(self.current, path)), path)
        try:
            host = posixpath.normpath(absolute(path))
        except OSError:  # the host has no current directory any more
            return found
        return (*found, *self._in_trusted(host, path))

    def directories(self, search: str, name: str) -> tuple[Place, ...]:
        """Return where the directories of a guest's LD_LIBRARY_PATH may be.

        Args:
            search: directories, separated by colons; empty entries are left out.
            name: what is being opened, for errors.

        Raises:
            ResourceLimitError: it is longer than `MAX_SEARCH_BYTES`, or has more than `MAX_SEARCH_DIRECTORIES` entries.
        """
        if len(os.fsencode(search)) > MAX_SEARCH_BYTES:
            raise ResourceLimitError(name, f"a search path of more than {MAX_SEARCH_BYTES} bytes")
        entries = [entry for entry in search.split(":") if entry]
        if len(entries) > MAX_SEARCH_DIRECTORIES:
            raise ResourceLimitError(name, f"a search path of more than {MAX_SEARCH_DIRECTORIES} directories")
        return tuple(place for entry in entries for place in self.places(entry))

    def places_of_host(self, path: str, guest: str) -> tuple[Place, ...]:
        """Return where a path of the host lies in the program's directories; nothing if it is outside of all.

        Args:
            path: absolute and resolved, as the `$ORIGIN` of a library is.
            guest: what the guest's messages call it.
        """
        host = posixpath.normpath(path)
        found: list[tuple[int, Place]] = []
        for directory in self.preopens:
            for form in directory.forms:
                rest = _below(host, form)
                if rest is not None:
                    place = Place(
                        directory.path, rest, directory.identity, True, host, _join(directory.guest, rest)
                    )
                    found.append((len(form), place))
        best = [max(found, key=lambda item: item[0])[1]] if found else []
        return (*best, *self._in_trusted(host, guest))

    def reaches(self, path: str) -> bool:
        """Whether a file of the host lies in a directory that the guest can write to.

        Args:
            path: absolute and resolved.
        """
        return any(_below(path, form) is not None for d in self.preopens for form in d.forms)

    def as_guest_sees(self, text: str, modules: Iterable[tuple[str, str]] = ()) -> str:
        """Return a message for the guest: without the host's paths of its directories and modules.

        Args:
            text: a message, as the host may read it.
            modules: further texts to replace, and what stands for each.
        """
        known: dict[str, str] = {}
        for directory in (*self.preopens, *self.trusted):
            for form in (*directory.forms, os.path.normpath(directory.host)):
                if form not in ("/", "."):
                    known.setdefault(form, directory.guest)
        known.update((name, guest) for name, guest in modules if "/" in name)
        if not known:
            return text
        longest_first = sorted(known, key=len, reverse=True)
        pattern = rf"(?<![\w./-])(?:{'|'.join(map(re.escape, longest_first))})(?![\w-])"
        return re.sub(pattern, lambda match: known[match[0]], text)

    def _in_preopens(self, name: str, guest: str) -> tuple[Place, ...]:
        best: tuple[int, Place] | None = None
        for directory in self.preopens:
            rest = _below(name.replace("//", "/"), directory.guest)
            if rest is not None and (best is None or len(directory.guest) > best[0]):
                shown = _join(directory.host, rest)
                place = Place(directory.path, rest, directory.identity, True, shown, guest)
                best = (len(directory.guest), place)
        return () if best is None else (best[1],)

    def _in_trusted(self, host: str, guest: str) -> tuple[Place, ...]:
        for directory in self.trusted:
            for form in directory.forms:
                rest = _below(host, form)
                if rest is None:
                    continue
                shown = _join(directory.host, rest)
                if rest != "." and "/" not in rest:
                    # As a search for the bare name: what the directory itself holds, links too, is the host's.
                    return (Place(_join(directory.path, rest), None, None, True, shown, guest),)
                return (Place(directory.path, rest, None, True, shown, guest),)
        return ()


def _below(path: str, root: str) -> str | None:
    """Return what follows a directory in a path, `.` for the directory itself; None if the path leads elsewhere."""
    if path == root:
        return "."
    prefix = root if root.endswith("/") else root + "/"
    return path[len(prefix) :] if path.startswith(prefix) else None


def _join(directory: str, rest: str) -> str:
    return directory if rest == "." else posixpath.join(directory, rest)


def paths_of_program(
    preopens: Mapping[str, str], library_path: Iterable[str | os.PathLike[str]], main: Path | None
) -> GuestPaths:
    """Record the paths of a program; before any of its code runs.

    Args:
        preopens: guest directory to host directory.
        library_path: directories that bare names are looked for in.
        main: the main module's file; None if it has none.
    """
    beside = () if main is None else given([main.parent], PROGRAM_DIRECTORY)
    return GuestPaths(preopened(preopens), (*given(library_path), *beside))
