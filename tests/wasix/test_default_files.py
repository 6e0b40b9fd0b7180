"""What a program of WASIX finds without the host having given it: devices, `/tmp`, `/dev/shm`."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path

import pytest

import dl
from tests.support.modules import module
from tests.support.wasi import BUFFER, CREATE, DIRECTORY, RESULT, Calls, calls

SEEK_END = 2
CHARACTER_DEVICE = 2
SEEK_AND_TELL = 1 << 2 | 1 << 5
WASIX = "fd_dup"
"""One function that only programs of WASIX import."""


def read(wasi: Calls, number: int, size: int) -> bytes:
    wasi.memory.write_struct("II", RESULT, BUFFER, size)
    assert wasi.fd_read(number, RESULT, 1, RESULT + 8) == 0
    return wasi.memory.read(BUFFER, wasi.memory.read_u32(RESULT + 8))


@pytest.mark.parametrize("shared", [False, True])
def test_devices_are_there(shared: bool) -> None:
    """`/dev/null` is empty, `/dev/zero` is zeros, `/dev/urandom` differs each time; all take what is written."""
    with calls({}, shared=shared, also=WASIX) as wasi:
        found = {}
        for name in ("null", "zero", "urandom"):
            error, number = wasi.open(3, f"/dev/{name}")
            assert error == 0
            found[name] = read(wasi, number, 32)
            assert wasi.write(number, b"abc") == 0
            assert wasi.memory.read_u32(RESULT + 8) == 3
            assert wasi.fd_seek(number, 5, SEEK_END, RESULT) == 0
            assert wasi.memory.read_u64(RESULT) == 0
            assert wasi.fd_close(number) == 0
        _, number = wasi.open(3, "/dev/../dev//urandom")
        again = read(wasi, number, 32)

    assert found["null"] == b""
    assert found["zero"] == bytes(32)
    assert len(again) == 32
    assert again != found["urandom"]


@pytest.mark.parametrize("namespace", ["wasi_snapshot_preview1", "wasi_unstable"])
def test_devices_are_character_devices_but_no_terminals(namespace: str) -> None:
    """A device's status says what it is, by path and by descriptor; it can be sought in, so `isatty` says no."""
    with calls({"/": Path.cwd()}, namespace) as wasi:
        assert wasi.path_filestat_get(3, 0, *wasi.text("dev/null"), BUFFER) == 0
        by_path = wasi.memory.read_u8(BUFFER + 16)
        _, number = wasi.open(3, "dev/null")
        assert wasi.fd_filestat_get(number, BUFFER) == 0
        by_number = wasi.memory.read_u8(BUFFER + 16)
        assert wasi.fd_fdstat_get(number, BUFFER) == 0
        rights = wasi.memory.read_u64(BUFFER + 8)

        assert wasi.open(3, "/dev/null", DIRECTORY)[0] == 54
        assert wasi.open(3, "/dev/nothing")[0] == 44
    assert by_path == by_number == CHARACTER_DEVICE
    assert rights & SEEK_AND_TELL == SEEK_AND_TELL


def test_there_is_no_terminal_without_the_hosts() -> None:
    """`/dev/tty` is 60 (`nxio`) when the host has none for the program, as POSIX has it."""
    with calls({}, also=WASIX) as wasi:
        assert wasi.open(3, "/dev/tty")[0] == 60


def test_temporary_files_are_the_programs_own_and_go_with_it() -> None:
    """`/tmp` and `/dev/shm` take files, two programs do not share them, and nothing is left on the host."""
    with calls({}, also=WASIX) as one, calls({}, also=WASIX) as other:
        roots = [Path(wasi.linker.parts.default_files.preopens["/tmp"]).parent for wasi in (one, other)]
        for path in ("/tmp/file", "/dev/shm/file"):
            error, number = one.open(3, path, CREATE)
            assert error == 0
            assert one.write(number, b"private") == 0
            assert other.open(3, path)[0] == 44
            assert one.fd_close(number) == 0
            _, number = one.open(3, path)
            assert read(one, number, 100) == b"private"
        assert all(root.is_dir() for root in roots)

    assert not any(root.exists() for root in roots)


def test_the_hosts_directories_come_first(tmp_path: Path) -> None:
    """A directory that the host opens as `/tmp` is `/tmp`, and keeps its number; under one for `/` nothing is added."""
    with calls({"/tmp": tmp_path}, also=WASIX) as wasi:
        error, _ = wasi.open(3, "/tmp/file", CREATE)
        assert error == 0
        assert wasi.open(3, "/dev/shm/file", CREATE)[0] == 0
    with calls({"/": tmp_path}, also=WASIX) as wasi:
        assert wasi.linker.parts.default_files.preopens == {"/": str(tmp_path)}
        assert wasi.open(3, "/dev/null")[0] == 0

    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_host_can_say_no(tmp_path: Path) -> None:
    """With `default_files=False` there is nothing that the host did not give; a program of plain WASI gets no directory."""
    with calls({"/": tmp_path}, also=WASIX, default_files=False) as wasi:
        assert wasi.open(3, "/dev/null")[0] == 44
    with calls({}, also=WASIX, default_files=False) as wasi:
        assert wasi.fd_prestat_get(3, RESULT) == 8
    with calls({}) as wasi:
        assert wasi.fd_prestat_get(3, RESULT) == 8


def test_directories_of_a_program_that_cannot_be_linked_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A main module that fails to link leaves no temporary directory."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    wasm = module(
        '(import "wasix_32v1" "fd_dup" (func (param i32 i32) (result i32)))',
        "(func $start unreachable) (start $start)",
    )
    with pytest.raises(dl.DlError):
        dl.Linker(wasm)
    gc.collect()

    assert list(tmp_path.iterdir()) == []
