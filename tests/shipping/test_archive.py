"""Archives that are run: what is hostile or damaged is refused before anything of it is run, and nothing stays behind."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import stat
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dl.errors import BundleError
from dl.shipping.archive import opened_bundle
from dl.shipping.manifest import parse_manifest
from dl.shipping.names import is_bundle

FILES = {
    "app.wasm": b"program",
    "lib.so": b"library" * 50,
    "data/0/sub/one.txt": b"text",
    "lib.so.compiled": b"code",
}


def manifest(files: Mapping[str, bytes], **changes: Any) -> dict[str, Any]:
    """Return what the manifest of a good bundle says of some files, with changes."""
    described = {
        path: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for path, data in files.items()
    }
    return {
        "bundle": 1,
        "program": "app.wasm",
        "linked": "as libraries",
        "directories": {"/data": "data/0"},
        "outside": [],
        "files": described,
    } | changes


def packed(entries: Mapping[str, Any], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return an archive of some entries, in their order."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for path, data in entries.items():
            if isinstance(data, tuple):
                archive.writestr(*data)
            else:
                archive.writestr(path, data)
    return out.getvalue()


def bundle(files: Mapping[str, bytes] = FILES, **changes: Any) -> bytes:
    """Return a good bundle, with changes of its manifest."""
    return packed({"bundle.json": json.dumps(manifest(files, **changes)).encode(), **files})


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Opens an archive; returns what was unpacked, or the reason why not. What is unpacked must be gone afterwards."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(work))

    def run(data: bytes, *, trusted: bool = False) -> dict[str, bytes] | str:
        path = tmp_path / "some.zip"
        path.write_bytes(data)
        outside = sorted(p for p in tmp_path.rglob("*") if work not in p.parents)
        try:
            with opened_bundle(str(path), trusted=trusted) as opened:
                assert opened.folder.parent == work
                assert stat.S_IMODE(opened.folder.stat().st_mode) == 0o700
                return {
                    p.relative_to(opened.folder).as_posix(): p.read_bytes()
                    for p in opened.folder.rglob("*")
                    if p.is_file()
                }
        except BundleError as error:
            return error.reason
        finally:
            assert os.listdir(work) == []
            assert sorted(p for p in tmp_path.rglob("*") if work not in p.parents) == outside

    return run


def test_a_good_archive(attempt: Any) -> None:
    """The files are there as they were packed, compiled code only for those who trust it; folders do not matter."""
    plain = {path: data for path, data in FILES.items() if not path.endswith(".compiled")}
    assert attempt(bundle()) == plain
    assert attempt(bundle(), trusted=True) == FILES
    stored = {"bundle.json": json.dumps(manifest(plain)).encode(), "folder/": b"", **plain}
    assert attempt(packed(stored, zipfile.ZIP_STORED)) == plain


@pytest.mark.parametrize(
    "path",
    [
        "../out",
        "/out",
        "a/../../out",
        "a//b",
        "./out",
        "a\\..\\out",
        "a/\n",
        "..",
        "a" * 300,
        "a/" * 3000 + "a",
    ],
)
def test_paths_that_lead_out(attempt: Any, path: str) -> None:
    """A path that leaves the folder, or is none, is refused: in the manifest, in the archive, and in both."""
    both = {**FILES, path: b"x"}
    assert isinstance(attempt(bundle(both)), str)
    one = {"bundle.json": json.dumps(manifest(FILES)).encode(), **both}
    assert "is in the archive alone" in attempt(packed(one)) or path == "/out"
    listed = {"bundle.json": json.dumps(manifest(both)).encode(), **FILES}
    assert isinstance(attempt(packed(listed)), str)


def test_entries_that_are_no_files(attempt: Any) -> None:
    """Symbolic links, devices, encrypted entries and other methods of packing are refused by name."""
    for mode in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR):
        info = zipfile.ZipInfo("lib.so")
        info.external_attr = (mode | 0o777) << 16
        entries = {
            "bundle.json": json.dumps(manifest(FILES)).encode(),
            **FILES,
            "lib.so": (info, b"/etc/passwd"),
        }
        assert attempt(packed(entries)) == "'lib.so' is no regular file"
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        entries = {"bundle.json": json.dumps(manifest(FILES)).encode(), **FILES}
        assert "is packed by method" in attempt(packed(entries, method))
    data = bytearray(bundle())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    assert "is encrypted" in attempt(bytes(data))


def test_entries_that_are_there_twice(attempt: Any) -> None:
    """Of two entries with one path, none wins."""
    out = io.BytesIO(bundle())
    with zipfile.ZipFile(out, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("lib.so", b"other")
    assert attempt(out.getvalue()) == "'lib.so' is there twice"


def test_what_the_manifest_does_not_describe(attempt: Any) -> None:
    """Missing, additional, longer, shorter and changed files are refused, and so is an archive without a manifest."""
    text = json.dumps(manifest(FILES)).encode()
    assert "no bundle.json" in attempt(packed(FILES))
    assert attempt(packed({"bundle.json": text, **FILES, "more": b""})) == "'more' is in the archive alone"
    assert "is in bundle.json alone" in attempt(packed({"bundle.json": text}))
    for data in (b"", b"Library" * 50, b"library" * 5000):
        assert "lib.so is damaged" in attempt(packed({"bundle.json": text, **FILES, "lib.so": data}))


def test_bombs(attempt: Any) -> None:
    """What unpacks to more than the manifest says, or than a bundle may hold, is stopped at that size; so are many entries."""
    bomb = packed({"bundle.json": json.dumps(manifest(FILES)).encode(), **FILES, "lib.so": bytes(20 << 20)})
    assert len(bomb) < 100_000
    assert "lib.so is damaged" in attempt(bomb)
    huge = manifest(FILES)
    huge["files"]["lib.so"]["size"] = 1 << 40
    assert "bytes are more than" in attempt(packed({"bundle.json": json.dumps(huge).encode(), **FILES}))
    assert "entries are more than 10000" in attempt(packed({f"{n}": b"" for n in range(10_002)}))
    assert "larger than" in attempt(packed({"bundle.json": bytes(17 << 20)}))
    many = manifest({f"{n}": b"" for n in range(10_001)} | FILES)
    assert "files are more than 10000" in attempt(packed({"bundle.json": json.dumps(many).encode()}))
    end = b"PK\x05\x06" + b"\0\0\0\0" + b"\x01\0\x01\0" + (1 << 30).to_bytes(4, "little") + bytes(4) + b"\0\0"
    assert "a directory of 1073741824 bytes" in attempt(b"PK\x03\x04" + end)
    assert "more than 4 GiB" in attempt(b"PK\x03\x04" + b"PK\x06\x07" + bytes(16) + b"PK\x05\x06" + bytes(18))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.pop("files"), "'files' of bundle.json is NoneType, not dict"),
        (lambda m: m.update(bundle=2), "format 2; this version reads 1"),
        (lambda m: m.update(bundle=True), "not int"),
        (lambda m: m.update(program="other.wasm"), "not among its files"),
        (lambda m: m.update(program="data/0/sub/one.txt"), "not among its files"),
        (lambda m: m.update(directories={"/": "."}), "is not one in data"),
        (lambda m: m.update(directories={"/": "data/../.."}), "is not one in data"),
        (lambda m: m.update(directories={"/": "/etc"}), "is not one in data"),
        (lambda m: m.update(directories={"/": 1}), "is not one in data"),
        (lambda m: m.update(directories={"a\0b": "data/0"}), "is not one in data"),
        (lambda m: m.update(outside=[1]), "no list of texts"),
        (lambda m: m["files"].update({"lib.so": 3}), "no object"),
        (lambda m: m["files"].update({"lib.so": {"size": -1, "sha256": ""}}), "a size of -1"),
        (lambda m: m["files"].update({"lib.so/x": {"size": 1, "sha256": ""}}), "lies in a file"),
        (lambda m: m["files"].update({"bundle.json": {"size": 1, "sha256": ""}}), "is that of the manifest"),
    ],
)
def test_what_a_manifest_may_say(change: Any, reason: str) -> None:
    """Every value of a manifest is checked, with its type."""
    record = manifest(FILES)
    change(record)
    with pytest.raises(BundleError) as caught:
        parse_manifest(json.dumps(record).encode(), "b")
    assert reason in caught.value.reason


@pytest.mark.parametrize("text", [b"", b"\xff", b"[" * 100_000, b"9" * 10_000, b"[]", b'{"bundle": NaN}'])
def test_what_is_no_manifest(text: bytes) -> None:
    """What is no JSON, or no object, is refused, however deep it is."""
    with pytest.raises(BundleError):
        parse_manifest(text, "b")


def test_random_damage(attempt: Any) -> None:
    """An archive with random bytes changed, or cut off, gives its files as they were, or is refused, with no other error."""
    seed = 20261128
    print(f"seed {seed}")
    chance = random.Random(seed)
    whole = bundle()
    plain = {path: data for path, data in FILES.items() if not path.endswith(".compiled")}
    refused = 0
    for _ in range(250):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 1, 2, 8))):
            data[chance.randrange(len(data))] = chance.choice((0, 1, 255, chance.randrange(256)))
        if chance.random() < 0.2:
            del data[chance.randrange(len(data)) :]
        found = attempt(bytes(data))
        refused += isinstance(found, str)
        assert isinstance(found, str) or found == plain
    assert refused > 100


def test_what_is_a_bundle(tmp_path: Path) -> None:
    """An archive and a folder with a manifest are; modules, pipes and what is not there are not, and pipes are not opened."""
    (tmp_path / "a.zip").write_bytes(bundle())
    (tmp_path / "folder").mkdir()
    (tmp_path / "module.wasm").write_bytes(b"\0asm\1\0\0\0")
    os.mkfifo(tmp_path / "pipe")
    assert is_bundle(str(tmp_path / "a.zip"))
    for name in ("folder", "module.wasm", "pipe", "nothing", "a\0b"):
        assert not is_bundle(str(tmp_path / name))
    (tmp_path / "folder/bundle.json").write_text("{}")
    assert is_bundle(str(tmp_path / "folder"))
