"""Compiled code on disk, by content: a second process compiles nothing.

A file holds the code of one module for one engine. Its name is the digest of the module's bytes and that of the engine's
fingerprint (version, settings, machine). A trailer repeats both, with the length and the SHA-256 digest of the code, and all of
it is checked before the engine sees a byte: a file that is damaged, cut off, older, or of another engine counts as absent. The
digest guards against accidents. Against people, only files that the user alone can have written are read; see
`dl.engine.private_directory`.

A file begins with the code, so that the engine can map it: processes that run the same program have its pages in common. What
is checked is the open file, and what is mapped is that file. Nobody but the user could change it in between, or later, and
nothing here ever writes to a file that has its name.

Nothing here fails a link. What cannot be read is compiled, what cannot be written is compiled again next time, and a directory
that is not private is not used; the log says why.

Files are written aside and renamed, so any number of processes and threads may use one directory. When it holds too many
bytes, the files that were used longest ago are removed; when a file was read is recorded to the hour.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from dl.digests import sha256
from dl.engine.private_directory import TEMPORARY, NotPrivateError, PrivateDirectory, read_content
from dl.errors import EngineError
from dl.forks import in_forked_child, renew
from dl.logs import logger
from dl.records import NamedTuple, dataclass

if TYPE_CHECKING:
    from dl.engine.protocol import CompiledModule, Engine

log = logger("dl.cache")

VARIABLE = "DLRUN_CACHE"
"""Environment variable: the cache's directory, or `off`."""

NAME = "wasix-dl"
"""Name of the directory below the user's cache directory."""
_CHANGE_THE_PLACE = frozenset({"XDG_CACHE_HOME", "ANDROID_DATA", "ANDROID_ROOT"})
"""Environment variables on which it depends on Linux where the user's cache directory is, beside HOME."""

MOST_BYTES = 1 << 30
"""Bytes that the directory may hold: some hundred programs with their C library."""

MOST_FILES = 1 << 13
"""Files that it may hold. Each process that adds one looks at all of them once, which takes 15 µs for each."""

_MOST_FILE_BYTES = 1 << 30
_MOST_KNOWN = 1 << 16
_TOUCH_SECONDS = 3600
_MAPPED_BYTES = 64 << 10
"""Size from which on code is mapped. Smaller code is copied: a mapping takes whole pages, and one map more of the process's."""

_STALE_SECONDS = 3600
"""Age at which a file that was being written is taken for the remains of a process that died."""

_SUFFIX = ".code"
_RECORD = ".plan"
_SUFFIXES = (_SUFFIX, _RECORD)
_MOST_RECORD_BYTES = 8 << 20
_MAGIC = b"dl-code\n"
_RECORD_MAGIC = b"dl-plan\n"
_VERSION = 2
_TRAILER = struct.Struct("<8sI32s32sQ32s")
"""Magic, version, digest of the module, digest of the fingerprint, bytes of code, digest of the code."""


class Usage(NamedTuple):
    """What is in the cache.

    Attributes:
        files: number of files with code.
        bytes: size of all files.
        plans: number of files with plans (`dl.engine.prelink`).
    """

    files: int
    bytes: int
    plans: int = 0


@dataclass(frozen=True)
class Verified:
    """What `DiskCache.verify` found.

    Attributes:
        good: number of files that are whole.
        removed: names of those that were not, and are gone now.
    """

    good: int
    removed: tuple[str, ...]


class DiskCache:
    """A `dl.engine.code_cache.CodeStore` and a `dl.engine.prelink.RecordStore` in a directory.

    Concurrency: any thread and any process. `_lock` guards `_known` and `_held`; a leaf.

    Args:
        path: the directory.
        most_bytes: how much it may hold.
        most_files: how many files with code it may hold, about: a process counts those of others when it adds its first.

    Raises:
        NotPrivateError: others could have put files there.
        OSError: it cannot be opened or created.
    """

    def __init__(self, path: Path, most_bytes: int = MOST_BYTES, most_files: int = MOST_FILES) -> None:
        self.path = path
        self._most_bytes = most_bytes
        self._most_files = most_files
        self._directory = PrivateDirectory(path)
        self._lock = threading.Lock()
        self._known: set[tuple[str, bytes]] = set()
        self._held: Usage | None = (
            None  # what is in the directory, about; None before this process has looked
        )

    def load(self, engine: Engine, digest: bytes) -> CompiledModule | None:
        """Return the code of the module with a digest, or None."""
        fingerprint = _fingerprint(engine.fingerprint)
        name = _name(digest, fingerprint)
        try:
            fd = self._directory.open(name)
        except FileNotFoundError:
            return None
        except (OSError, NotPrivateError) as error:
            log.info("cache: %s not used: %s", name, error)
            return None
        try:
            with open(fd, "rb") as file:
                module = _loaded(engine, file, digest, fingerprint)
                if module is None:
                    log.info("cache: %s not used: damaged or of another version", name)
                    return None
                self._touch(file.fileno())
        except (OSError, EngineError) as error:
            log.info("cache: %s not used: %s", name, error)
            return None
        self._note(engine, digest)
        return module

    def save(self, engine: Engine, digest: bytes, module: CompiledModule) -> None:
        """Keep the code of the module with a digest, unless this process has read or written it already."""
        if (engine.fingerprint, digest) in self._known:
            return
        try:
            self.put(engine.fingerprint, digest, engine.serialize(module))
        except EngineError as error:
            log.info("cache: code not kept: %s", error)
        self._note(engine, digest)  # also if it failed: this process does not try again

    def put(self, of_engine: str, digest: bytes, code: bytes) -> None:
        """Keep code that an engine has serialized. Whoever calls this vouches for it: code that is loaded is run.

        Args:
            of_engine: the engine's fingerprint.
            digest: that of the module.
            code: its code.
        """
        fingerprint = _fingerprint(of_engine)
        name = _name(digest, fingerprint)
        trailer = _trailer(_MAGIC, digest, fingerprint, code)
        try:
            self._directory.write(name, (code, trailer))
            self._grown(len(code) + len(trailer))
        except (OSError, NotPrivateError) as error:
            log.info("cache: %s not kept: %s", name, error)

    def load_record(self, key: bytes) -> bytes | None:
        """Return the record that is kept under a key, or None."""
        name = _record_name(key)
        try:
            with open(self._directory.open(name), "rb") as file:
                content = read_content(file, _MOST_RECORD_BYTES)
                length = _record_length(content, key)
                if length is None:
                    log.info("cache: %s not used: damaged or of another version", name)
                    return None
                self._touch(file.fileno())
        except FileNotFoundError:
            return None
        except (OSError, NotPrivateError) as error:
            log.info("cache: %s not used: %s", name, error)
            return None
        return content[:length]

    def save_record(self, key: bytes, content: bytes) -> None:
        """Keep a record in place of a former one."""
        name = _record_name(key)
        trailer = _trailer(_RECORD_MAGIC, key, _NO_ENGINE, content)
        try:
            self._directory.write(name, (content, trailer))
            self._grown(len(content) + len(trailer))
        except (OSError, NotPrivateError) as error:
            log.info("cache: %s not kept: %s", name, error)

    def _note(self, engine: Engine, digest: bytes) -> None:
        with self._lock:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known.add((engine.fingerprint, digest))

    def _touch(self, fd: int) -> None:
        if time.time() - os.fstat(fd).st_mtime > _TOUCH_SECONDS:
            os.utime(fd)

    def _grown(self, count: int) -> None:
        """Count what was written, and make room when it is too much; other processes' files are counted at the first time."""
        with self._lock:
            files, size = (self._held.files, self._held.bytes) if self._held else (0, 0)
            full = self._held is None or files >= self._most_files or size + count > self._most_bytes
            self._held = Usage(files + 1, size + count)
        if full:
            left = self._trim()
            with self._lock:
                self._held = left

    def _trim(self) -> Usage:
        """Remove what was used longest ago until a tenth is free, if there is too much; return what is left."""
        entries = self._directory.entries()
        for name, found in entries:
            if name.endswith(TEMPORARY) and time.time() - found.st_mtime > _STALE_SECONDS:
                self._directory.remove(name)
        code = sorted(
            (found.st_mtime_ns, name, found.st_size) for name, found in entries if name.endswith(_SUFFIXES)
        )
        total, files = sum(size for _, _, size in code), len(code)
        if total <= self._most_bytes and files <= self._most_files:
            return Usage(files, total)
        for _, name, size in code:
            if total <= self._most_bytes * 9 // 10 and files <= self._most_files * 9 // 10:
                break
            self._directory.remove(name)
            total -= size
            files -= 1
        return Usage(files, total)

    # for people

    def usage(self) -> Usage:
        """Return how much is in the cache, of all engines."""
        return _usage(
            (name, found.st_size) for name, found in self._directory.entries() if name.endswith(_SUFFIXES)
        )

    def clear(self) -> Usage:
        """Remove all code and plans; return how much that was. What else is in the directory stays."""
        removed = [
            (name, found.st_size)
            for name, found in self._directory.entries()
            if name.endswith((*_SUFFIXES, TEMPORARY)) and self._directory.remove(name)
        ]
        with self._lock:
            self._known.clear()
            self._held = None
        return _usage(removed)

    def verify(self) -> Verified:
        """Check every file as a program would, but for the engine; remove those that no program would use."""
        good, removed = 0, []
        for name, problem in self._problems():
            if problem is None:
                good += 1
            elif self._directory.remove(name):
                log.info("cache: %s removed: %s", name, problem)
                removed.append(name)
        return Verified(good, tuple(removed))

    def _problems(self) -> Iterator[tuple[str, str | None]]:
        for name in sorted(name for name, _ in self._directory.entries() if name.endswith(_SUFFIXES)):
            try:
                with open(self._directory.open(name), "rb") as file:
                    data = read_content(file, _MOST_FILE_BYTES)
            except (OSError, NotPrivateError) as error:
                yield name, str(error)
                continue
            yield name, None if _matches_name(name, data) else "damaged or of another version"


def _usage(files: Iterable[tuple[str, int]]) -> Usage:
    code = plans = size = 0
    for name, each in files:
        code, plans, size = code + name.endswith(_SUFFIX), plans + name.endswith(_RECORD), size + each
    return Usage(code, size, plans)


@lru_cache(maxsize=64)
def _fingerprint(text: str) -> bytes:
    return sha256(text.encode())


def _name(digest: bytes, fingerprint: bytes) -> str:
    return f"{digest.hex()}-{fingerprint[:8].hex()}{_SUFFIX}"


def _loaded(engine: Engine, file: BinaryIO, digest: bytes, fingerprint: bytes) -> CompiledModule | None:
    """Return the code in a file; None if it is not whole, or for something else.

    Raises:
        EngineError: the engine refuses it.
        OSError: it cannot be read.
    """
    size = os.fstat(file.fileno()).st_size
    if _MAPPED_BYTES <= size <= _MOST_FILE_BYTES:
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as data:
            length = _length(data, digest, fingerprint)
        if length is None:
            return None
        module = engine.map_code(file.fileno(), length)
        if module is not None:
            return module
    content = read_content(file, _MOST_FILE_BYTES)
    length = _length(content, digest, fingerprint)
    return None if length is None else engine.deserialize(content[:length])


def _length(data: bytes | mmap.mmap, digest: bytes, fingerprint: bytes, kind: bytes = _MAGIC) -> int | None:
    """Return the length of the code in a file's contents; None if they are not whole, or for something else."""
    at = len(data) - _TRAILER.size
    if at < 0:
        return None
    magic, version, of_module, of_engine, length, of_code = _TRAILER.unpack_from(data, at)
    if (magic, version, of_module, of_engine, length) != (kind, _VERSION, digest, fingerprint, at):
        return None
    with memoryview(data) as view, view[:at] as code:
        return at if sha256(code) == of_code else None


def _matches_name(name: str, data: bytes) -> bool:
    at = len(data) - _TRAILER.size
    if at < 0:
        return False
    _, _, digest, fingerprint, _, _ = _TRAILER.unpack_from(data, at)
    if name.endswith(_RECORD):
        return _record_name(digest) == name and _record_length(data, digest) is not None
    return _name(digest, fingerprint) == name and _length(data, digest, fingerprint) is not None


_NO_ENGINE = bytes(32)


def _record_name(key: bytes) -> str:
    return f"{key.hex()}{_RECORD}"


def _record_length(data: bytes, key: bytes) -> int | None:
    return _length(data, key, _NO_ENGINE, _RECORD_MAGIC)


def _trailer(magic: bytes, digest: bytes, fingerprint: bytes, content: bytes) -> bytes:
    return _TRAILER.pack(magic, _VERSION, digest, fingerprint, len(content), sha256(content))


_lock = threading.Lock()
_open: dict[Path, DiskCache] = {}
"""The caches that this process has open, by their absolute path. Guarded by `_lock`."""


def _forked() -> None:
    renew(_lock)
    _open.clear()


in_forked_child(_forked)


def cache_path(choice: bool | str | os.PathLike[str] = True) -> Path | None:
    """Return the directory that a choice means; None for no cache.

    Args:
        choice: a directory; False for none; True for what `DLRUN_CACHE` says, or else the user's cache directory.
    """
    if choice is False:
        return None
    if choice is True:
        said = os.environ.get(VARIABLE, "")
        if said == "off":
            return None
        if not said:
            return _users_cache_path()
        choice = said
    return Path(os.path.abspath(os.path.expanduser(choice)))


def _users_cache_path() -> Path:
    """Return the user's cache directory, as `platformdirs` says it."""
    home = os.environ.get("HOME", "")
    if sys.platform == "linux" and os.path.isabs(home) and not _CHANGE_THE_PLACE & os.environ.keys():
        return Path(home, ".cache", NAME)  # what it says then, without the 20 files that it imports
    from platformdirs import user_cache_path  # noqa: PLC0415  not needed with a path, nor without a cache

    return user_cache_path(NAME, appauthor=False)


def open_cache(
    choice: bool | str | os.PathLike[str] = True, guest_directories: Iterable[str] = ()
) -> DiskCache | None:
    """Return the cache that a choice means, see `cache_path`; None for none, or if it cannot be trusted: the log says why.

    A guest writes as the user. So a program that can reach the cache's directory gets no cache: it could leave code there for
    the next library it opens. It can also leave code for other programs, as it could in any file that the user runs; so a
    directory that holds the cache should not be given to a guest that is not trusted.

    Args:
        choice: see `cache_path`.
        guest_directories: directories of the host that the program can reach.
    """
    path = cache_path(choice)
    if path is None:
        return None
    place = os.path.realpath(path)
    for directory in guest_directories:
        reached = os.path.realpath(directory)
        if os.path.commonpath((place, reached)) in (place, reached):
            log.info("cache: off: the program can reach %s by its directory %s", path, directory)
            return None
    with _lock:
        known = _open.get(path)
        if known is None:
            try:
                known = _open[path] = DiskCache(path)
            except (OSError, NotPrivateError) as error:
                log.info("cache: off: %s", error)
        return known
