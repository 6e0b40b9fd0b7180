"""What a bundle says about itself: its program, its directories, and each file with its size and digest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dl.errors import BundleError
from dl.records import dataclass, field
from dl.shipping.names import DATA, MANIFEST, MAX_BYTES, MAX_FILES, fault_of_path

FORMAT = 1


@dataclass(frozen=True)
class FileRecord:
    """A file of a bundle.

    Attributes:
        size: its bytes.
        sha256: the digest of its contents, in hexadecimal.
    """

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a bundle says about itself.

    Attributes:
        program: name of the program's file.
        by_name: whether its modules import from each other by name, and not as libraries.
        directories: what the program sees of the bundle: guest paths, and folders in the bundle.
        outside: patterns of needed names that are not in it.
        files: all files but the manifest, by their path in the bundle.
    """

    program: str
    by_name: bool = False
    directories: Mapping[str, str] = field(default_factory=dict)
    outside: tuple[str, ...] = ()
    files: Mapping[str, FileRecord] = field(default_factory=dict)

    def text(self) -> str:
        """Return it as the JSON of `bundle.json`, always the same for equal bundles."""
        record = {
            "bundle": FORMAT,
            "program": self.program,
            "linked": "by name" if self.by_name else "as libraries",
            "directories": dict(sorted(self.directories.items())),
            "outside": list(self.outside),
            "files": {
                path: {"size": one.size, "sha256": one.sha256} for path, one in sorted(self.files.items())
            },
        }
        return json.dumps(record, indent=1) + "\n"


def parse_manifest(data: bytes, bundle: str) -> Manifest:
    """Read a manifest, and check that nothing in it leads out of its bundle.

    Args:
        data: the contents of `bundle.json`.
        bundle: the bundle's path, for messages.

    Raises:
        BundleError: it is none, or says something that no bundle may.
    """
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(bundle, f"{MANIFEST} is no JSON: {error}") from None
    read = _Record(record, bundle)
    if read.get("bundle", int) != FORMAT:
        raise BundleError(bundle, f"{MANIFEST} is of format {record['bundle']}; this version reads {FORMAT}")
    files: dict[str, FileRecord] = {}
    total = 0
    for path, value in read.get("files", dict).items():
        fault = fault_of_path(path) or ("is that of the manifest" if path == MANIFEST else "")
        if fault:
            raise BundleError(bundle, f"the path of a file, {path[:80]!r}, {fault}")
        one = _Record(value, bundle)
        files[path] = FileRecord(one.get("size", int), one.get("sha256", str))
        if files[path].size < 0:
            raise BundleError(bundle, f"{path} has a size of {files[path].size}")
        total += files[path].size
    check_bounds(len(files), total, bundle)
    for path in files:
        parts = path.split("/")
        above = ("/".join(parts[:count]) for count in range(1, len(parts)))
        if any(folder in files for folder in above):
            raise BundleError(bundle, f"{path} lies in a file")
    program = read.get("program", str)
    if program not in files or "/" in program:
        raise BundleError(bundle, f"its program {program[:80]!r} is not among its files")
    directories = read.get("directories", dict)
    for guest, folder in directories.items():
        inside = isinstance(folder, str) and folder.partition("/")[0] == DATA
        if not inside or fault_of_path(folder) or "\0" in guest or not guest:
            raise BundleError(bundle, f"a directory of the program, {folder!r}, is not one in {DATA}")
    outside = read.get("outside", list)
    if not all(isinstance(one, str) for one in outside):
        raise BundleError(bundle, f"outside of {MANIFEST} is no list of texts")
    return Manifest(program, read.get("linked", str) == "by name", directories, tuple(outside), files)


def check_bounds(count: int, total: int, bundle: str) -> None:
    """Check how much a bundle may hold.

    Raises:
        BundleError: it is more.
    """
    if count > MAX_FILES:
        raise BundleError(bundle, f"{count} files are more than {MAX_FILES}")
    if total > MAX_BYTES:
        raise BundleError(bundle, f"{total} bytes are more than {MAX_BYTES}")


class _Record:
    """An object of JSON, of which values are asked for with their type."""

    def __init__(self, value: Any, bundle: str) -> None:
        if not isinstance(value, dict):
            raise BundleError(bundle, f"a part of {MANIFEST} is no object")
        self._value = value
        self._bundle = bundle

    def get(self, key: str, kind: type[Any]) -> Any:
        """Return a value.

        Raises:
            BundleError: it is not there, or of another type.
        """
        value = self._value.get(key)
        if type(value) is not kind:  # a bool is no int
            raise BundleError(
                self._bundle, f"{key!r} of {MANIFEST} is {type(value).__name__}, not {kind.__name__}"
            )
        return value
