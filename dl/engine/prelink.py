"""What was generated when a program was linked, kept for the next process that links the same: its plan.

A plan is a table: by the values that something was generated from, what came of it. Linking decides in each process what is
bound to what, from the modules that are there. With these values it asks the plan, and gets the digest of what would be
generated, and its code if that is small. So nothing is generated, and no module is rewritten, to be compiled under a digest
that is known. And a plan cannot be wrong about a program that has changed: another library, order, option, or function of the
host gives other values, which are not in it.

Keys are SHA-256 digests of a text of these values. Beside them, what is generated depends on the code that generates: names,
sizes and times of change of its files are part of the name of a plan, as Python has them in its own compiled files.

A plan is kept in the directory of compiled code under the program's main module and the engine (`dl.engine.disk_cache`), since
it has code in it. One of another main module would serve as well, only with fewer hits.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Hashable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dl.digests import sha256
from dl.errors import EngineError
from dl.logs import logger
from dl.records import NamedTuple, fields
from threads import found_in

if TYPE_CHECKING:
    from dl.engine.protocol import CompiledModule, Engine

log = logger("dl.cache")

MOST_ENTRIES = 512
"""Generated modules that one plan has; a library takes two."""

MOST_CODE_BYTES = 1 << 20
"""Bytes of code that one plan has; of other modules it has the digest only."""

SMALL_CODE_BYTES = 48 << 10
"""Bytes of code up to which it is in the plan: a file for each costs more to open and check than to read."""

_ENTRY = struct.Struct("<32s32sI")
"""Key, digest of what was generated, bytes of code that follow."""

_GENERATORS = (
    "__init__.py",
    "engine/preview1.py",
    "glue",
    "link/find.py",
    "link/generate.py",
    "modules/image.py",
    "modules/symbols.py",
    "program/guest_wasi.py",
    "program/program.py",
    "program/wasi.py",
    "wasm",
)
"""Files, and folders with files, that decide what is generated, relative to the package; the first has its version."""


class RecordStore(Protocol):
    """Records that outlive the process, by key. Never fails: what it cannot read or write is not there."""

    def load_record(self, key: bytes) -> bytes | None:
        """Return what is kept under a key of 32 bytes, whole; or None."""

    def save_record(self, key: bytes, content: bytes) -> None:
        """Keep a record in place of a former one."""


class Entry(NamedTuple):
    """What came of some values.

    Attributes:
        digest: SHA-256 digest of the generated module.
        code: its serialized code, if the plan has it.
    """

    digest: bytes
    code: bytes


class Plan:
    """The plan of one program. Any thread may use it.

    Attributes:
        hits: how often something was found in it.
        misses: how often not.

    `_lock` guards the fields behind it; a leaf. Nothing is read, written or serialized while holding it. `_writing` is held
    from before the entries are packed until they are kept, so that no older state of the plan replaces a newer one; it comes
    before `_lock`. Its holder waits for the file system, so who saves on the way goes on without; who ends the program waits.

    Args:
        store: where plans are kept.
        engine: whose code it has.
        program: which program, and what generates; see `open_plan`.
    """

    def __init__(self, store: RecordStore, engine: Engine, program: bytes) -> None:
        self._store = store
        self._engine = engine
        self._key = sha256(repr((engine.fingerprint, program)).encode())
        self._writing = threading.Lock()
        self._lock = threading.Lock()
        self._entries: dict[bytes, Entry] | None = None
        self._used: set[bytes] = set()
        self._new = 0
        self._code_bytes = 0
        self.hits, self.misses = 0, 0

    def find(self, inputs: Hashable) -> tuple[bytes, Entry | None]:
        """Return the key of some values, and what came of them; None for that if it is not known."""
        key, entries = key_of(inputs), self._read()
        with self._lock:
            found = found_in(entries, key)
            if found is None:
                self.misses += 1
            else:
                self.hits += 1
                self._used.add(key)
        return key, found

    def knows(self, inputs: Hashable) -> bool:
        """Whether it is known what came of some values."""
        return key_of(inputs) in self._read()

    def add(self, key: bytes, digest: bytes, module: CompiledModule) -> None:
        """Note what came of some values, in place of what was noted before.

        Args:
            key: that of the values.
            digest: SHA-256 digest of what was generated.
            module: its code.
        """
        code = b""
        if module.code_bytes <= SMALL_CODE_BYTES:
            try:
                code = self._engine.serialize(module)
            except EngineError as error:
                log.info("plan: code not kept: %s", error)
        entries = self._read()
        with self._lock:
            if len(code) > SMALL_CODE_BYTES or self._code_bytes + len(code) > 2 * MOST_CODE_BYTES:
                code = b""
            if len(self._used) < MOST_ENTRIES:
                entries[key] = Entry(digest, code)
                self._used.add(key)
                self._code_bytes += len(code)
                self._new += 1

    def save(self, *, last: bool = False) -> None:
        """Keep what is new; while the program runs, only when that is a fair part of all, so that the cost is in proportion.

        Args:
            last: whether the program ends.
        """
        if last and self._entries is not None:
            log.info("plan: found %d of %d modules", self.hits, self.hits + self.misses)
        if not self._writing.acquire(blocking=last):
            return  # what is new stays so, for a later time
        try:
            with self._lock:
                if (
                    self._entries is None
                    or not self._new
                    or (not last and 8 * self._new < len(self._entries))
                ):
                    return
                self._new = 0
                content = _packed(self._entries, self._used)
            self._store.save_record(self._key, content)
        finally:
            self._writing.release()

    def _read(self) -> dict[bytes, Entry]:
        """Return the entries; they are read when the first one is asked for."""
        known = self._entries
        if known is not None:
            return known
        content = self._store.load_record(self._key)
        found = {} if content is None else dict(_unpacked(content))
        with self._lock:
            if self._entries is not None:
                return self._entries  # another thread was faster
            self._entries = found
            self._code_bytes = sum(len(entry.code) for entry in found.values())
        log.info("plan: %s", f"{len(found)} modules are known" if found else "none is kept")
        return found


def _packed(entries: dict[bytes, Entry], used: set[bytes]) -> bytes:
    """Return entries as bytes: those that this process has used, then others, as far as there is room."""
    parts, count, size = [], 0, 0
    for key in sorted(entries, key=lambda key: key not in used):
        digest, code = entries[key]
        if count == MOST_ENTRIES:
            break
        if size + len(code) > MOST_CODE_BYTES:
            code = b""
        parts += [_ENTRY.pack(key, digest, len(code)), code]
        count, size = count + 1, size + len(code)
    return b"".join(parts)


def _unpacked(content: bytes) -> Iterable[tuple[bytes, Entry]]:
    """Yield key and entry, as far as the content is of that form: what does not fit in is left out."""
    at = 0
    while at + _ENTRY.size <= len(content):
        key, digest, size = _ENTRY.unpack_from(content, at)
        at += _ENTRY.size + size
        if at > len(content):
            log.info("plan: cut off")
            return
        yield key, Entry(digest, content[at - size : at])


def key_of(inputs: Hashable) -> bytes:
    """Return the key of some values: equal keys mean equal values.

    Args:
        inputs: None, numbers, texts, bytes, and tuples, sets and records of such values.

    Raises:
        TypeError: there is something else among them.
    """
    return sha256(repr(_plain(inputs)).encode())


_TEXTS_ITSELF = frozenset({int, str, bytes, bool, type(None)})


def _plain(value: object) -> object:
    """Return a value whose `repr` tells it from all others: of types that Python itself has."""
    kind: Any = type(value)
    if kind in _TEXTS_ITSELF:
        return value
    if isinstance(value, int):
        return int(value)  # a number with a name, such as flags
    if isinstance(value, tuple) and kind is tuple:
        return tuple([each if type(each) in _TEXTS_ITSELF else _plain(each) for each in value])
    if isinstance(value, frozenset):
        return ("a set", *sorted(repr(_plain(each)) for each in value))
    names = _compared(kind)
    return (kind.__module__, kind.__qualname__, *[_plain(getattr(value, name)) for name in names])


@lru_cache(maxsize=64)
def _compared(kind: Any) -> tuple[str, ...]:
    """Return the names of those fields of a record by which it is compared.

    Raises:
        TypeError: it is no record.
    """
    if not hasattr(kind, "__record_fields__"):
        raise TypeError(f"no text is known that tells one {kind.__qualname__} from all others")
    return tuple(each.name for each in fields(kind) if each.compare)


def open_plan(store: RecordStore, engine: Engine, program: bytes) -> Plan | None:
    """Return the plan of a program.

    None if the engine cannot serialize code, and where the code that generates is in no files, so that nobody would notice its
    change.

    Args:
        store: where plans are kept.
        engine: whose code it has.
        program: digest of the main module; empty without one.
    """
    if not engine.capabilities.serialization:
        return None
    try:
        generators = _generators()
    except OSError as error:
        log.info("plan: off: %s", error)
        return None
    return Plan(store, engine, repr((generators, program)).encode())


@lru_cache(maxsize=1)
def _generators() -> tuple[tuple[str, int, int], ...]:
    """Return what tells the files that generate apart from others of the same names.

    Raises:
        OSError: there are no such files.
    """
    package = Path(__file__).parent.parent
    found: list[tuple[str, int, int]] = []
    for name in _GENERATORS:
        place = os.path.join(package, name)
        files = [name] if name.endswith(".py") else [f"{name}/{each}" for each in sorted(os.listdir(place))]
        for file in files:
            if file.endswith(".py"):
                status = os.stat(os.path.join(package, file))
                found.append((file, status.st_size, status.st_mtime_ns))
    return tuple(found)
