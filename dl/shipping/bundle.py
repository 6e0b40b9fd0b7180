"""`dlrun bundle`: a program and all that it needs, side by side in a folder or an archive that runs elsewhere.

The files are put together in a folder aside and checked there: everything that is needed must be found in it, and what could be
linked must still be linked. Only then does it get its name, as a folder or as an archive. Equal inputs give equal bytes: an
archive has no times, owners or paths of this machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dl.errors import BuildError, BundleError
from dl.shipping.collect import Piece
from dl.shipping.manifest import FileRecord, Manifest, check_bounds
from dl.shipping.names import DATA, MANIFEST, fault_of_name, is_bundle

_EARLIEST = (1980, 1, 1, 0, 0, 0)
_UNIX = 3
_REGULAR = 0o100644 << 16
_CHUNK = 1 << 20


@contextlib.contextmanager
def folder_aside(out: Path, *, force: bool) -> Iterator[Path]:
    """Give an empty folder in which a bundle is put together; it is removed if it has not been moved away by then.

    Args:
        out: where the bundle will be.
        force: whether a bundle that is there may be replaced.

    Raises:
        BuildError: something is there that must not be replaced.
        OSError: it cannot be made.
    """
    if os.path.lexists(out):
        if not force:
            raise BuildError(f"{out} exists; --force replaces a bundle")
        if not is_bundle(str(out)):
            raise BuildError(f"{out} exists and is no bundle")
    work = Path(tempfile.mkdtemp(prefix=".bundle-", dir=out.parent))
    try:
        folder = work / "files"
        folder.mkdir()  # with the permissions of any new folder
        yield folder
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_pieces(folder: Path, pieces: Sequence[Piece]) -> None:
    """Write the modules of a bundle, as they are in it."""
    for piece in pieces:
        (folder / piece.name).write_bytes(piece.contents())


def write_data(folder: Path, directories: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Copy directories of the host into a bundle; return the folder of each guest path.

    Args:
        folder: the bundle.
        directories: pairs of guest path and host path.

    Raises:
        BundleError: something in one can be in no bundle: a link that leads out of it, a device, a name.
        OSError: it cannot be read or written.
    """
    placed: dict[str, str] = {}
    total = count = 0
    for number, (guest, host) in enumerate(directories):
        inside = placed[guest] = f"{DATA}/{number}"
        top = os.path.realpath(host)
        target = folder / DATA / str(number)
        target.mkdir(parents=True)
        for at, below, files in os.walk(top, onerror=_raise):
            below.sort()
            here = target / os.path.relpath(at, top)
            for name in [*below, *files]:
                path = os.path.join(at, name)
                fault = fault_of_name(name)
                if fault:
                    raise BundleError(path, f"its name {fault}")
                if name in below and os.path.islink(path):
                    raise BundleError(path, "it is a link to a directory")
            for name in below:
                (here / name).mkdir()
            for name in sorted(files):
                path = os.path.join(at, name)
                real = os.path.realpath(path)
                if os.path.commonpath([real, top]) != top:
                    raise BundleError(path, "it is a link that leads out of its directory")
                if not os.path.isfile(real):
                    raise BundleError(path, "it is no regular file")
                total += os.path.getsize(real)
                count += 1
                check_bounds(count, total, inside)
                shutil.copyfile(real, here / name)
    return placed


def _raise(error: OSError) -> None:
    raise error


def described(
    folder: Path, program: str, *, by_name: bool, directories: Mapping[str, str], outside: Sequence[str]
) -> Manifest:
    """Write the manifest of a bundle whose files are there, and return it.

    Raises:
        BundleError: it is more than a bundle may hold.
    """
    files = {}
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        files[path.relative_to(folder).as_posix()] = _record(path)
    check_bounds(len(files), sum(one.size for one in files.values()), str(folder))
    manifest = Manifest(program, by_name, directories, tuple(outside), files)
    (folder / MANIFEST).write_text(manifest.text(), encoding="utf-8")
    return manifest


def _record(path: Path) -> FileRecord:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while part := file.read(_CHUNK):
            digest.update(part)
            size += len(part)
    return FileRecord(size, digest.hexdigest())


def finish_folder(folder: Path, out: Path) -> None:
    """Give a folder aside its name, in the place of the bundle that was there."""
    _put(folder, out)


def finish_archive(folder: Path, out: Path, files: Sequence[str]) -> None:
    """Pack a folder aside into an archive, the same for the same files; it takes the place of the bundle that was there.

    Args:
        folder: the folder aside.
        out: the archive.
        files: paths of its files, in the order in which they are packed.
    """
    packed = folder.with_name("packed")
    with zipfile.ZipFile(packed, "w", allowZip64=False) as archive:
        for path in files:
            entry = zipfile.ZipInfo(path, _EARLIEST)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = _UNIX
            entry.external_attr = _REGULAR
            entry.file_size = (folder / path).stat().st_size
            with (folder / path).open("rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target, _CHUNK)
    _put(packed, out)


def _put(made: Path, out: Path) -> None:
    """Give what was made aside its name. What was there goes away last, and comes back if that fails."""
    if not os.path.lexists(out):
        os.rename(made, out)
        return
    old = out.with_name(f".{out.name[:200]}.{secrets.token_hex(8)}")
    os.rename(out, old)
    try:
        os.rename(made, out)
    except OSError:
        os.rename(old, out)
        raise
    shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
