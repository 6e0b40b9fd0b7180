"""Compiled forms: files beside modules that hold their code, made before the program runs.

`libfoo.so.compiled` belongs to `libfoo.so` and holds its code for one engine, as often as it was compiled differently: a
program with threads compiles a library that waits otherwise than one without. It says of which bytes and for which engine,
version, settings and machine it was made, and is used for nothing else. The module itself is read all the same, since what is
linked to what stands in it.

Loading compiled code is running it. So a form is read only where the user alone can have written it, by the rules of
`dl.engine.private_directory`, and its caller leaves out what a guest may have written.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dl.digests import sha256
from dl.engine.private_directory import NotPrivateError, PrivateDirectory, read_content
from dl.errors import EngineError
from dl.logs import logger

if TYPE_CHECKING:
    from dl.engine.protocol import CompiledModule, Engine

log = logger("dl.cache")

SUFFIX = ".compiled"
MAGIC = b"dl-form\n"
MOST_ENTRIES = 16
"""Ways of one module that a file holds; of more, the first ones are dropped."""

_VERSION = 2
_MOST_BYTES = 1 << 30
_HEADER = struct.Struct("<8sII32s32s")
"""Magic, version, number of entries, digest of the module's bytes, digest of the engine's fingerprint."""
_ENTRY = struct.Struct("<32sQ32s")
"""Digest of the bytes that were compiled, bytes of code, digest of the code; all entries stand before all codes."""


class NotUsedError(Exception):
    """A form cannot be used; the text says why."""


def form_of(module: Path) -> Path:
    """Return where the compiled form of a module lies."""
    return module.with_name(module.name + SUFFIX)


def load_form(engine: Engine, module: Path, source: bytes, digest: bytes) -> CompiledModule | None:
    """Return the code of a module from its compiled form; None, with the reason in the log, if there is none to be used.

    Args:
        engine: the engine.
        module: the module's file.
        source: digest of its bytes.
        digest: of the bytes that would be compiled.
    """
    form = form_of(module)
    if not engine.capabilities.serialization or not os.path.lexists(form):
        return None
    try:
        entries = read_form(form, source, engine)
        if digest not in entries:
            raise NotUsedError("it holds the code for other kinds of program")
        code = engine.deserialize(entries[digest])
    except (OSError, NotPrivateError, NotUsedError, EngineError) as error:
        log.info("compiled form %s not used: %s", form, error)
        return None
    log.info("compiled form %s used", form)
    return code


def leave_form(module: Path, reason: str) -> None:
    """Say in the log why a module's compiled form is not looked at, if there is one."""
    if os.path.lexists(form_of(module)):
        log.info("compiled form %s not used: %s", form_of(module), reason)


def read_form(form: Path, source: bytes, engine: Engine) -> dict[bytes, bytes]:
    """Return the codes in a compiled form, by the digest of what was compiled.

    Raises:
        NotUsedError: it is damaged, of other bytes, or for another engine.
        NotPrivateError: somebody else could have written it.
        OSError: it cannot be read.
    """
    directory = PrivateDirectory(form.parent)
    try:
        with open(directory.open(form.name), "rb") as file:
            data = read_content(file, _MOST_BYTES)
    finally:
        directory.close()
    if len(data) < _HEADER.size:
        raise NotUsedError("it is damaged")
    magic, version, count, of_module, of_engine = _HEADER.unpack_from(data)
    if (magic, version) != (MAGIC, _VERSION) or count > MOST_ENTRIES:
        raise NotUsedError("it is damaged, or of another version")
    if of_module != source:
        raise NotUsedError("it was made of other bytes than the module has now")
    if of_engine != _fingerprint(engine):
        raise NotUsedError("it was made for another engine, version, setting or machine")
    return _entries(data, count)


def _entries(data: bytes, count: int) -> dict[bytes, bytes]:
    at = _HEADER.size + count * _ENTRY.size
    if len(data) < at:
        raise NotUsedError("it is damaged")
    found: dict[bytes, bytes] = {}
    for number in range(count):
        digest, length, of_code = _ENTRY.unpack_from(data, _HEADER.size + number * _ENTRY.size)
        code = data[at : at + length]
        if len(code) != length or sha256(code) != of_code:
            raise NotUsedError("it is damaged")
        found[digest] = code
        at += length
    if at != len(data):
        raise NotUsedError("it is damaged")
    return found


def write_form(
    directory: PrivateDirectory, name: str, source: bytes, engine: Engine, codes: Mapping[bytes, bytes]
) -> int:
    """Write the compiled form of a module beside it, with the codes that a present form of the same bytes has.

    Args:
        directory: where.
        name: of the module's file.
        source: digest of its bytes.
        engine: the engine whose code it is.
        codes: code by the digest of what was compiled.

    Returns:
        Bytes that were written.

    Raises:
        NotPrivateError: the directory is not the user's alone.
        OSError: it cannot be written.
    """
    form = form_of(directory.path / name)
    try:
        kept = read_form(form, source, engine)
    except (OSError, NotPrivateError, NotUsedError):
        kept = {}
    merged = {**{digest: code for digest, code in kept.items() if digest not in codes}, **codes}
    last = list(merged.items())[-MOST_ENTRIES:]
    header = _HEADER.pack(MAGIC, _VERSION, len(last), source, _fingerprint(engine))
    table = b"".join(_ENTRY.pack(d, len(code), sha256(code)) for d, code in last)
    parts = (header, table, *(code for _, code in last))
    directory.write(form.name, parts)
    return sum(map(len, parts))


def _fingerprint(engine: Engine) -> bytes:
    return sha256(engine.fingerprint.encode())
