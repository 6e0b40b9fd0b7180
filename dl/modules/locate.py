"""Where libraries are found.

Rules, those of ld.so and of WASIX where they agree: a name with a slash is a path; a bare name is that of a library which is
loaded under this base name, or it is looked for in the library path, then in the run path of the module that needs it
(`$ORIGIN` being that module's directory; run paths are not inherited), and the current directory is not searched. A `.so`
that is not there may be there as `.wasm`. A module's identity is its resolved path, so `a.so`, `./a.so` and a link to it are
one module. `docs/security.md` says which files may be opened on whose behalf.
"""

from __future__ import annotations

import errno
import itertools
import os
import posixpath
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from dl.errors import LibraryNotFoundError, LinkError, LinkerUsageError
from dl.logs import logger
from dl.modules.beneath import (
    MAX_COMPONENT_BYTES,
    MAX_PATH_BYTES,
    NotOpenedError,
    OpenedFile,
    Place,
    host_place,
    open_beneath,
    too_long,
)
from dl.modules.guest_paths import LIBRARY_PATH, MAX_SEARCH_DIRECTORIES, GuestPaths
from dl.modules.image import ModuleImage, image_from_bytes, image_from_opened
from dl.modules.reading import ReadBudget
from dl.records import dataclass, field

log = logger("dl.link")

_WASM_MAGIC = b"\0asm"
_ORIGIN = r"\$(?:\{ORIGIN\}|ORIGIN(?![A-Za-z0-9_]))"
_OUTSIDE = "outside the directories that the program may load from; -L or --dir adds one"


@dataclass(frozen=True)
class Requester:
    """The module on whose behalf a library is looked for.

    Attributes:
        name: for messages; None when the host asks.
        origin: directory that `$ORIGIN` stands for; None when there is none.
        run_path: its run path.
        guest_written: whether the guest may have written it, so that what it needs is the guest's wish.
    """

    name: str | None = None
    origin: Path | None = None
    run_path: tuple[str, ...] = ()
    guest_written: bool = False


@dataclass(frozen=True)
class SearchPolicy:
    """Who asked for a load, and what follows for the files that may be opened.

    Attributes:
        first: directories to search before the library path, for a bare name.
        guest: the program's directories as its guest sees them.
        by_guest: whether the guest asked, and not the host.
    """

    first: tuple[Place, ...] = ()
    guest: GuestPaths = field(default_factory=GuestPaths)
    by_guest: bool = False

    @classmethod
    def of_host(cls, first: Iterable[str | os.PathLike[str]], guest: GuestPaths) -> SearchPolicy:
        """Return the policy of a load that the host asks for."""
        return cls(tuple(host_place(os.fspath(directory)) for directory in first), guest)

    @classmethod
    def of_guest(cls, search: str, guest: GuestPaths, name: str) -> SearchPolicy:
        """Return the policy of a load that the guest asks for.

        Args:
            search: its LD_LIBRARY_PATH.
            guest: its paths.
            name: what it opens, for errors.

        Raises:
            ResourceLimitError: the search path is too long.
        """
        return cls(guest.directories(search, name), guest, by_guest=True)


THE_HOST, ANYWHERE = Requester(), SearchPolicy()


def requester_of(image: ModuleImage) -> Requester:
    """Return a module as the one that looks for the libraries it needs."""
    origin = image.path.parent if image.path else None
    run_path = image.wasm.dylink.runtime_path if image.wasm.dylink else ()
    return Requester(image.name, origin, run_path, image.guest_written)


@dataclass
class Locator:
    """Finds libraries for one program.

    Attributes:
        library_path: directories, searched in order.
        libraries: modules held in memory, by name; found before any file of that name.
        loaded: returns the image of the loaded module with an identity, if there is one.
        budget: bounds what is read.
        finder: asked for a library that is not found otherwise: returns its bytes, its path, or None.
        map_name: given a name of a needed list and the kind of the module that needs it, returns the name to look for.

    `_lock` guards changes of `libraries`.
    """

    library_path: Sequence[Path] = ()
    libraries: Mapping[str, bytes] = field(default_factory=dict)
    loaded: Callable[[str], ModuleImage | None] = lambda _identity: None
    budget: ReadBudget = field(default_factory=ReadBudget)
    finder: Callable[[str], bytes | str | None] = lambda _name: None
    map_name: Callable[[str, str], str] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _anonymous: Iterator[int] = field(default_factory=lambda: itertools.count(1), repr=False)

    def next_anonymous_name(self) -> str:
        """Return a name for a module that was given as bytes without one: each is another module."""
        return f"<bytes {next(self._anonymous)}>"

    def add(self, name: str, wasm: bytes) -> bool:
        """Register a module in memory. Returns False, and changes nothing, if the name is taken."""
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
        requester: Requester = THE_HOST,
        policy: SearchPolicy = ANYWHERE,
        known: Callable[[str], ModuleImage | None] = lambda _name: None,
    ) -> ModuleImage:
        """Find a library; read and parse it, unless it is loaded.

        Args:
            name: its path, or its bare name.
            requester: the module that needs it.
            policy: whose load it is.
            known: returns the loaded module with a base name, if there is one; asked for bare names only.

        Raises:
            LibraryNotFoundError: there is no such file; lists every path tried.
            LinkError: the file named by a path cannot be read.
            ResourceLimitError: it is larger than is read.
            MalformedModuleError: the file is not a valid module.
        """
        if requester.name is not None and self.map_name is not None:
            name = self._mapped(name, requester.name)
        fault = _fault(name)
        if fault:
            raise LibraryNotFoundError(name[:80], [(repr(name[:80]), fault)], requester.name)
        if name in self.libraries:
            identity = f"<memory>/{name}"
            return self.loaded(identity) or image_from_bytes(self.libraries[name], name, identity)
        asker = f"{requester.name} needs " if requester.name else ""
        tried = _Tried()
        is_path = "/" in name
        for place in (
            self._by_path(name, requester, policy) if is_path else self._by_name(name, policy, known)
        ):
            found = (
                place if isinstance(place, ModuleImage) else self._at(place, policy, tried, is_path=is_path)
            )
            if found is not None:
                log.debug("%s%s found: %s", asker, name, found.name)
                return found
        if is_path and not tried.for_host:
            tried.add(name, name, _OUTSIDE)
        if not is_path:
            for place in self._in_run_path(name, requester, policy, tried):
                found = self._at(place, policy, tried, is_path=False)
                if found is not None:
                    log.debug("%s%s found: %s", asker, name, found.name)
                    return found
        answered = self._by_finder(name, policy, tried)
        if answered is not None:
            log.debug("%s%s found by a finder: %s", asker, name, answered.name)
            return answered
        for where, reason in tried.for_host:
            log.debug("%s%s not found: %s: %s", asker, name, where, reason)
        raise LibraryNotFoundError(name, tried.for_host, requester.name, guest_tried=tried.for_guest)

    def _by_finder(self, name: str, policy: SearchPolicy, tried: _Tried) -> ModuleImage | None:
        """Return what a finder of the host's gives for a name: its bytes are known by the name, a path is the host's own."""
        source = self.finder(name)
        if source is None:
            return None
        if isinstance(source, bytes):
            identity = f"<finder>/{name}"
            return self.loaded(identity) or image_from_bytes(source, name, identity)
        of_host = SearchPolicy.of_host((), policy.guest)
        return self._spelled(host_place(source, confined=False), of_host, tried, is_path=True)

    def _mapped(self, name: str, needed_by: str) -> str:
        """Return the name that the host's `map_name` gives for one of a needed list."""
        assert self.map_name is not None
        mapped = self.map_name(name, os.path.splitext(needed_by)[1])
        if not isinstance(mapped, str):
            raise LinkerUsageError(f"map_name must return a name, not {mapped!r}")
        if mapped != name:
            log.debug("%s needs %s: looked for as %s", needed_by, name, mapped)
        return mapped

    def _by_path(self, name: str, requester: Requester, policy: SearchPolicy) -> Iterable[Place]:
        if policy.by_guest or requester.guest_written:
            return policy.guest.places(name)
        # What the host itself names is opened with all its power; a needed list is no word of the host.
        return (host_place(name, confined=requester.name is not None),)

    def _by_name(
        self, name: str, policy: SearchPolicy, known: Callable[[str], ModuleImage | None]
    ) -> Iterator[Place | ModuleImage]:
        first = [directory.child(name) for directory in policy.first]
        if not policy.by_guest:
            yield from first
        loaded = known(name)
        if loaded is not None:
            yield loaded
        if policy.by_guest:
            yield from first
        for directory in self.library_path:
            path = str(directory / name)
            yield Place(path, shown=path, guest=f"{LIBRARY_PATH}/{name}")

    def _in_run_path(
        self, name: str, requester: Requester, policy: SearchPolicy, tried: _Tried
    ) -> Iterator[Place]:
        confined = policy.by_guest or requester.guest_written
        for entry, directory in _run_path(requester):
            guest = posixpath.join(entry, name)
            if too_long(directory):
                tried.add(guest[:80], guest[:80], f"longer than {MAX_PATH_BYTES} bytes")
            elif not confined:
                path = os.path.join(directory, name)
                yield Place(path, shown=path, guest=guest)
            else:
                paths = policy.guest
                places = paths.places(entry) if entry == directory else paths.places_of_host(directory, entry)
                if not places:
                    tried.add(os.path.join(directory, name), guest, _OUTSIDE)
                yield from (place.child(name) for place in places)

    def _at(self, place: Place, policy: SearchPolicy, tried: _Tried, *, is_path: bool) -> ModuleImage | None:
        """Return the module at a place, or where a `.so` may be as `.wasm`; None, with why, if there is none."""
        found = self._spelled(place, policy, tried, is_path=is_path)
        if found is None and place.suffix == ".so":
            found = self._spelled(place.with_suffix(".wasm"), policy, tried, is_path=is_path)
        return found

    def _spelled(
        self, place: Place, policy: SearchPolicy, tried: _Tried, *, is_path: bool
    ) -> ModuleImage | None:
        try:
            with open_beneath(place, policy.guest.identities) as file:
                loaded = self.loaded(file.path)
                if loaded is not None:
                    return loaded
                if is_path or _is_module(file, place, tried):
                    return image_from_opened(file, place.shown, self.budget)
        except NotOpenedError as error:
            # A module that is loaded stays what its path stands for, whatever has become of its file.
            loaded = None if error.path is None else self.loaded(error.path)
            if loaded is not None:
                return loaded
            if is_path and error.errno in (errno.EACCES, errno.EIO):
                raise LinkError(place.shown, str(error)) from None
            tried.add(place.shown, place.guest, _reason(error))
        return None


class _Tried:
    """The places that were tried in vain: as the host and as the guest know them, with what was wrong with each."""

    def __init__(self) -> None:
        self.for_host: list[tuple[str, str]] = []
        self.for_guest: list[tuple[str, str]] = []

    def add(self, shown: str, guest: str, reason: str) -> None:
        self.for_host.append((shown, reason))
        self.for_guest.append((guest, reason))


def _run_path(requester: Requester) -> Iterator[tuple[str, str]]:
    """Walk a run path: each entry as it is, and the directory that it means; not more than a search path may have."""
    entries = (part for entry in requester.run_path for part in entry.split(":") if part)
    for _, part in zip(range(MAX_SEARCH_DIRECTORIES), entries, strict=False):
        if not re.search(_ORIGIN, part):
            yield part, part
        elif requester.origin is not None:
            origin = str(requester.origin)
            # The origin is a resolved path, so that a `..` behind it may be applied to its text.
            yield part, os.path.normpath(re.sub(_ORIGIN, lambda _match: origin, part))  # noqa: B023  used at once


def _fault(name: str) -> str:
    """Return why a text can be no library's name; empty if it can."""
    try:
        length = len(os.fsencode(name))
    except UnicodeEncodeError:
        length = 0
    if "\0" in name or not 0 < length <= MAX_PATH_BYTES:
        return f"not a name of 1 to {MAX_PATH_BYTES} bytes"
    if too_long(name):
        return f"a part of it is longer than {MAX_COMPONENT_BYTES} bytes"
    return "a directory" if name in (".", "..") else ""


def _reason(error: NotOpenedError) -> str:
    if error.errno == errno.ENOENT:
        return "no such file"
    return "is not a file" if error.errno in (errno.EISDIR, errno.EINVAL) else str(error)


def _is_module(file: OpenedFile, place: Place, tried: _Tried) -> bool:
    """Pass over files of other formats in a search, as ld.so passes over libraries of other machines."""
    try:
        if os.pread(file.fd, len(_WASM_MAGIC), 0) == _WASM_MAGIC:
            return True
        tried.add(place.shown, place.guest, "not a WebAssembly module")
    except OSError as error:
        tried.add(place.shown, place.guest, os.strerror(error.errno or errno.EIO).lower())
    return False


def split_path(text: str) -> list[Path]:
    """Split a colon-separated list of directories; empty entries are left out."""
    return [Path(part) for part in text.split(os.pathsep) if part]
