"""Bundles that are run: a folder as it is, and an archive unpacked into a folder of the user's alone, which is then removed.

An archive comes from anywhere. Before a byte of it is unpacked, its directory is bounded and read, and every entry must be a
regular file that the manifest lists, under a path that stays inside. What is unpacked is as long as the manifest says and has
the digest that it says, or all of it is refused and removed. Compiled code is left out unless the user trusts the bundle, since
loading it is running it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from dl.engine.compiled_form import SUFFIX
from dl.errors import BundleError
from dl.records import dataclass
from dl.shipping.manifest import FileRecord, Manifest, parse_manifest
from dl.shipping.names import MANIFEST, MAX_FILES, MAX_MANIFEST_BYTES

_END = b"PK\x05\x06"
_END_BYTES = 22
_LOCATOR_64 = b"PK\x06\x07"
_LOCATOR_64_BYTES = 20
_MAX_DIRECTORY_BYTES = 16 << 20
_FLAG_ENCRYPTED = 1
_CHUNK = 1 << 20
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OverflowError,
    RuntimeError,  # encrypted, or of a method that it does not know, by an entry's own head
    UnicodeDecodeError,
)
"""What the standard library raises for an archive that is none."""


@dataclass(frozen=True)
class OpenedBundle:
    """A bundle that can be run.

    Attributes:
        folder: where its files are.
        manifest: what it says about itself.
    """

    folder: Path
    manifest: Manifest

    @property
    def program(self) -> Path:
        """The program's file."""
        return self.folder / self.manifest.program


@contextlib.contextmanager
def opened_bundle(path: str, *, trusted: bool) -> Iterator[OpenedBundle]:
    """Give a bundle whose files are there while the block runs.

    Args:
        path: a folder or an archive.
        trusted: whether compiled code in an archive is unpacked, and so may be run.

    Raises:
        BundleError: it is none, is damaged, or asks for what no bundle may.
        OSError: it cannot be read, or not be unpacked.
    """
    if os.path.isdir(path):
        with open(os.path.join(path, MANIFEST), "rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
        yield OpenedBundle(Path(path), _manifest(data, path))
        return
    folder = Path(tempfile.mkdtemp(prefix="dlrun-bundle-"))
    try:
        with open(path, "rb") as file:
            manifest = _unpack(file, path, folder, trusted=trusted)
        yield OpenedBundle(folder, manifest)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _manifest(data: bytes, bundle: str) -> Manifest:
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(bundle, f"{MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes")
    return parse_manifest(data, bundle)


def _unpack(file: BinaryIO, bundle: str, folder: Path, *, trusted: bool) -> Manifest:
    """Unpack an archive into a folder; return its manifest.

    Raises:
        BundleError: it is refused.
    """
    size = _check_directory(file, bundle)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = _entries(archive, size, bundle)
            if MANIFEST not in entries:
                raise BundleError(bundle, f"it has no {MANIFEST}; dlrun bundle makes bundles")
            manifest = _manifest(_read(archive, entries.pop(MANIFEST), MAX_MANIFEST_BYTES), bundle)
            for path in entries.keys() ^ manifest.files.keys():
                where = MANIFEST if path in manifest.files else "the archive"
                raise BundleError(bundle, f"{path[:80]!r} is in {where} alone")
            for path, record in manifest.files.items():
                if path.endswith(SUFFIX) and not trusted:
                    continue
                place = folder.joinpath(*path.split("/"))
                place.parent.mkdir(parents=True, exist_ok=True)
                with place.open("xb") as out:
                    found = _copied(archive, entries[path], record.size, out)
                if found != record:
                    raise BundleError(
                        bundle, f"{path} is damaged: it is not the file that {MANIFEST} describes"
                    )
    except _DAMAGED as error:
        raise BundleError(bundle, f"the archive is damaged: {error}") from None
    for inside in manifest.directories.values():
        folder.joinpath(*inside.split("/")).mkdir(parents=True, exist_ok=True)
    return manifest


def _check_directory(file: BinaryIO, bundle: str) -> int:
    """Look at the end of an archive, where its directory is described, before the standard library reads all of that.

    Returns:
        The size of the archive in bytes.

    Raises:
        BundleError: it has more entries than a bundle may, or more bytes of directory; or it is not one that we write.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END_BYTES - _LOCATOR_64_BYTES))
    tail = file.read()
    end = tail[-_END_BYTES:]
    if len(end) < _END_BYTES or not end.startswith(_END) or end[-2:] != b"\0\0":
        raise BundleError(bundle, "the archive is cut off, or has a comment at its end")
    if tail[:-_END_BYTES].startswith(_LOCATOR_64):
        raise BundleError(bundle, "the archive is in the format for more than 4 GiB")
    count = int.from_bytes(end[10:12], "little")
    directory = int.from_bytes(end[12:16], "little")
    if count > MAX_FILES + 1:
        raise BundleError(bundle, f"{count} entries are more than {MAX_FILES}")
    if directory > _MAX_DIRECTORY_BYTES:
        raise BundleError(bundle, f"a directory of {directory} bytes is more than {_MAX_DIRECTORY_BYTES}")
    return size


def _entries(archive: zipfile.ZipFile, size: int, bundle: str) -> dict[str, zipfile.ZipInfo]:
    """Return the files of an archive by their paths.

    Raises:
        BundleError: one is no regular file, is there twice, is encrypted, or is packed in another way than ours.
    """
    found: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        path = entry.orig_filename
        if path.endswith("/"):
            continue  # folders are made where files need them
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise BundleError(bundle, f"{path[:80]!r} is no regular file")
        if not 0 <= entry.header_offset < size:
            raise BundleError(bundle, f"{path[:80]!r} is said to lie outside the archive")
        if path in found:
            raise BundleError(bundle, f"{path[:80]!r} is there twice")
        if entry.flag_bits & _FLAG_ENCRYPTED:
            raise BundleError(bundle, f"{path[:80]!r} is encrypted")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BundleError(bundle, f"{path[:80]!r} is packed by method {entry.compress_type}")
        found[path] = entry
    return found


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, most: int) -> bytes:
    """Return the contents of an entry, up to one byte more than there may be."""
    with archive.open(entry) as file:
        return file.read(most + 1)


def _copied(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, most: int, out: BinaryIO) -> FileRecord:
    """Copy the contents of an entry, or the beginning if they are more than they may be; return what was copied."""
    digest, left = hashlib.sha256(), most + 1
    with archive.open(entry) as file:
        while left > 0 and (part := file.read(min(left, _CHUNK))):
            digest.update(part)
            out.write(part)
            left -= len(part)
    return FileRecord(most + 1 - left, digest.hexdigest())
