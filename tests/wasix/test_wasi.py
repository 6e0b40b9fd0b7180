"""WASI's own functions behind our descriptors: paths, renumbering, and the snapshot before preview 1."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

import dl
from dl.engine.preview1 import FUNCTIONS
from dl.program.wasi import CALL_OUTPUT
from tests.support.modules import MEMORY_BASE, SHARED_MEMORY, library, module, pie
from tests.support.wasi import BUFFER, CREATE, DIRECTORY, READ_WRITE, RESULT, TEXT, Calls, calls


@pytest.mark.parametrize("shared", [False, True])
def test_absolute_paths_lead_into_the_open_directories(tmp_path: Path, shared: bool) -> None:
    """A path with a slash in front is the one in the open directory of that name, whatever descriptor comes with it."""
    for name in ("a", "b"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "file").write_text(name)
    preopens = {"/data": tmp_path / "a", "/data/deep": tmp_path / "b"}
    with calls(preopens, shared=shared) as wasi:
        assert wasi.open(3, "sub/file") == (0, 5)
        assert wasi.open(3, "/data/deep/sub/file") == (0, 6)
        assert wasi.open(4, "/data/sub/file") == (0, 7)
        assert wasi.open(4, "/data//sub/file") == (0, 8)
        assert wasi.open(4, "/data", DIRECTORY) == (0, 9)
        assert wasi.open(9, "sub/file") == (0, 10)
        assert wasi.open(3, "/elsewhere/file")[0] == 44
        assert wasi.open(3, "/data/../../etc/passwd")[0] == 63
        assert wasi.path_create_directory(3, *wasi.text("/data/deep/new")) == 0
        assert wasi.path_rename(3, *wasi.text("/data/deep/new"), 3, *wasi.text("/data/old", TEXT + 64)) == 0
        assert wasi.path_unlink_file(4, *wasi.text("/data/sub/file")) == 0

    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["old", "sub"]
    assert not (tmp_path / "a" / "sub" / "file").exists()
    assert (tmp_path / "b" / "sub" / "file").read_text() == "b"


def test_plain_wasi_moves_a_descriptor(tmp_path: Path) -> None:
    """`fd_renumber` of a program of plain WASI closes the number it came from; only an open number can be replaced."""
    with calls({"/": tmp_path}) as wasi:
        _, first = wasi.open(3, "one", CREATE)
        _, second = wasi.open(3, "two", CREATE)
        assert wasi.fd_renumber(first, second) == 0
        assert wasi.write(first, b"gone") == 8
        assert wasi.write(second, b"moved") == 0
        assert wasi.fd_renumber(second, 40) == 8
        assert wasi.fd_renumber(second, 3) == 58

    assert (tmp_path / "one").read_text() == "moved"
    assert (tmp_path / "two").read_text() == ""


def test_in_wasix_renumbering_copies(tmp_path: Path) -> None:
    """`fd_renumber` of a program that imports process functions of WASIX is what its `dup2` is made of."""
    with calls({"/": tmp_path}, also="fd_dup") as wasi:
        _, first = wasi.open(3, "one", CREATE)
        assert wasi.fd_renumber(first, 40) == 0
        assert wasi.write(first, b"one and ") == 0
        assert wasi.write(40, b"the same") == 0

    assert (tmp_path / "one").read_text() == "one and the same"


def test_the_older_snapshot_has_its_own_layouts(tmp_path: Path) -> None:
    """`wasi_unstable`: directions of seeking, 56 bytes of status with nothing written behind, and its subscriptions."""
    (tmp_path / "file").write_text("0123456789")
    with calls({"/": tmp_path}, "wasi_unstable") as wasi:
        _, number = wasi.open(3, "file")
        positions = []
        for offset, whence in ((4, 2), (2, 0), (-1 & (1 << 64) - 1, 1)):
            assert wasi.fd_seek(number, offset, whence, RESULT) == 0
            positions.append(wasi.memory.read_u64(RESULT))
        assert positions == [4, 6, 9]
        assert wasi.fd_seek(number, 0, 3, RESULT) == 28

        for get in (
            lambda: wasi.fd_filestat_get(number, BUFFER),
            lambda: wasi.path_filestat_get(3, 0, *wasi.text("file"), BUFFER),
        ):
            wasi.memory.fill(BUFFER, 0xAA, 80)
            assert get() == 0
            kind, links, size = wasi.memory.read_struct("16xB3xIQ", BUFFER)
            assert (kind, links, size) == (4, 1, 10)
            assert wasi.memory.read(BUFFER + 56, 24) == b"\xaa" * 24
        modified = wasi.memory.read_u64(BUFFER + 40)
        assert modified == (tmp_path / "file").stat().st_mtime_ns

        clock = struct.pack("<QB7xQIxxxxQQH6x", 5, 0, 0, 1, 1000, 0, 0)
        reading = struct.pack("<QB7xI36x", 6, 1, number)
        assert len(clock) == len(reading) == 56
        wasi.memory.write(BUFFER, clock + reading)
        assert wasi.poll_oneoff(BUFFER, BUFFER + 256, 2, RESULT) == 0
        events = wasi.memory.read_u32(RESULT)
        assert 6 in [wasi.memory.read_u64(BUFFER + 256 + 32 * i) for i in range(events)]
        wasi.memory.write(BUFFER, clock)
        assert wasi.poll_oneoff(BUFFER, BUFFER + 256, 1, RESULT) == 0
        assert wasi.memory.read_u64(BUFFER + 256) == 5


@pytest.mark.parametrize("shared", [False, True])
def test_bad_addresses_are_errors_and_take_nothing(tmp_path: Path, shared: bool) -> None:
    """An address outside the memory is an error for functions of ours, and nothing was written or opened before."""
    outside = 0xFFFFFFF0
    with calls({"/": tmp_path}, shared=shared, also="fd_dup") as wasi:
        assert wasi.poll_oneoff(outside, BUFFER, 1, RESULT) == 78
        assert wasi.poll_oneoff(BUFFER, outside, 1, RESULT) == 78
        assert wasi.path_open(3, 0, *wasi.text("new"), CREATE, READ_WRITE, 0, 0, outside) == 78
        wasi.memory.write_struct("IIII", RESULT, BUFFER, 5, outside, 5)
        assert wasi.fd_write(1, outside, 2, RESULT + 64) == 78
        assert wasi.fd_fdstat_get(77, BUFFER) == 8

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shared", [False, True])
def test_values_that_do_not_exist_are_invalid(tmp_path: Path, shared: bool) -> None:
    """Unknown enumeration values and flags are 28 (`inval`), addresses outside memory 78; none ends the program."""
    (tmp_path / "file").write_text("hello")
    with calls({"/data": tmp_path}, shared=shared) as wasi:
        error, file = wasi.open(3, "file")
        assert error == 0
        path = wasi.text("file")
        answers = {
            "whence": wasi.fd_seek(file, 0, 7, RESULT),
            "advice": wasi.fd_advise(file, 0, 0, 99),
            "descriptor flags": wasi.fd_fdstat_set_flags(file, 0xFFFF),
            "rights": wasi.fd_fdstat_set_rights(file, -1, -1),
            "times": wasi.fd_filestat_set_times(file, 0, 0, 0xFFFF),
            "times of a path": wasi.path_filestat_set_times(3, 0, *path, 0, 0, 0xFFFF),
            "open flags": wasi.path_open(3, 0, *path, 0xFFFF, READ_WRITE, 0, 0, RESULT),
            "flags of a new descriptor": wasi.path_open(3, 0, *path, 0, READ_WRITE, 0, 0xFFFF, RESULT),
            "lookup": wasi.path_filestat_get(3, 0xFFFF, *path, RESULT),
            "how": wasi.sock_shutdown(file, 99),
            "receive": wasi.sock_recv(file, RESULT, 0, 0xFFFF, RESULT, RESULT),
        }

        assert set(answers.values()) == {28}, answers
        assert wasi.fd_read(file, -8, 1, RESULT) == 78
        assert wasi.fd_seek(file, 0, 0, RESULT) == 0


SPLIT = {
    "fd_seek": "i32 i32 i32 i32 i32",
    "fd_pread": "i32 i32 i32 i32 i32 i32",
    "fd_pwrite": "i32 i32 i32 i32 i32 i32",
    "clock_time_get": "i32 i32 i32 i32",
}


def test_arguments_of_64_bits_may_come_in_halves(tmp_path: Path) -> None:
    """Programs of Emscripten without 64-bit integers at their border import functions with the lower half first."""
    (tmp_path / "file").write_bytes(b"0123456789")
    open_type = "(param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)"
    wasm = module(
        '(memory (export "memory") 2)',
        *(
            f'(import "wasi_snapshot_preview1" "{name}" (func ${name} (param {params}) (result i32)))'
            f'(export "call_{name}" (func ${name}))'
            for name, params in SPLIT.items()
        ),
        f'(import "wasi_snapshot_preview1" "path_open" (func $open {open_type}))(export "call_path_open" (func $open))',
    )
    with dl.Linker(wasm, preopens={"/data": tmp_path}) as linker:
        wasi = Calls(linker)
        error, file = wasi.open(3, "file")
        assert error == 0
        wasi.memory.write(BUFFER, b"XY")
        wasi.memory.write_struct("II", RESULT, BUFFER, 2)
        assert wasi.fd_pwrite(file, RESULT, 1, 4, 0, RESULT + 8) == 0
        assert wasi.fd_pread(file, RESULT, 1, 5, 0, RESULT + 8) == 0
        read = wasi.memory.read(BUFFER, 2)
        assert wasi.fd_seek(file, 5, 1, 0, RESULT) == 0
        far = wasi.memory.read_u64(RESULT)
        assert wasi.fd_seek(file, -3, -1, 2, RESULT) == 0
        back = wasi.memory.read_u64(RESULT)
        assert wasi.clock_time_get(1, 0, 0, RESULT) == 0

    assert (tmp_path / "file").read_bytes() == b"0123XY6789"
    assert read == b"Y6"
    assert far == (1 << 32) + 5
    assert back == 7


def test_a_path_takes_no_odd_piece_of_memory(tmp_path: Path) -> None:
    """After an absolute path that is an open directory itself, a library without alignment still gets a multiple of 16."""
    base = '(func (export "base") (result i32) (global.get $memory_base))'
    with calls({"/data": tmp_path}, shared=True) as wasi:
        assert wasi.path_filestat_get(3, 0, *wasi.text("/data"), RESULT) == 0
        handle = wasi.linker.main_group.dlopen(
            library(SHARED_MEMORY, MEMORY_BASE, base, memory_size=1), name="odd.so"
        )

        assert wasi.linker.main_group.dlsym(handle, "base")() % 16 == 0


def test_only_writing_and_closing_call_an_output_callable() -> None:
    """No other function of a standard stream calls the host's callable, so that they need no room for its frames."""
    received: list[bytes] = []
    kinds = {name: kind for name, kind in FUNCTIONS.items() if name[:3] == "fd_" and name not in CALL_OUTPUT}
    fields = []
    for name, kind in kinds.items():
        params = " ".join(f"(param {p})" for p in kind.params)
        arguments = " ".join(f"(local.get {i})" for i in range(len(kind.params)))
        fields += [
            f'(import "wasi_snapshot_preview1" "{name}" (func ${name} {params} (result i32)))',
            f'(func (export "call_{name}") {params} (result i32) (call ${name} {arguments}))',
        ]
    wasm = pie(*fields, shared=True, memory_size=65536, memory_align=4)
    with dl.Linker(wasm, stdout=received.append, stdin=b"") as linker:
        linker.memory.write_struct("II", 1024, 2048, 4)
        for name, kind in kinds.items():
            function = linker.main_group.dlsym(linker.main, f"call_{name}")
            function(1, *(1024 for _ in kind.params[1:]))

    assert received == []


def test_threads_open_write_and_close_at_the_same_time(tmp_path: Path) -> None:
    """Each of four threads finds in its files what it has written, while all take and give back descriptors."""
    rounds = 60
    with calls({"/": tmp_path}, shared=True) as wasi:
        linker = wasi.linker

        def work(group: dl.InstanceGroup, number: int) -> int:
            find = lambda name: group.dlsym(linker.main, f"call_{name}")  # noqa: E731
            place = 8192 + 512 * number
            linker.memory.write(place, f"f{number}".encode())
            linker.memory.write_struct("II", place + 16, place + 32, 4)
            errors = 0
            for turn in range(rounds):
                linker.memory.write_struct("I", place + 32, turn)
                errors |= find("path_open")(3, 0, place, 2, CREATE, READ_WRITE, 0, 0, place + 64)
                file = linker.memory.read_u32(place + 64)
                errors |= find("fd_pwrite")(file, place + 16, 1, 4 * turn, place + 68)
                errors |= find("fd_close")(file)
            return errors

        threads = [linker.spawn(work, number) for number in range(4)]
        assert [thread.join(60) for thread in threads] == [0] * 4

    for number in range(4):
        data = (tmp_path / f"f{number}").read_bytes()
        assert struct.unpack(f"<{rounds}I", data) == tuple(range(rounds))
