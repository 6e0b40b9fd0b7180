"""Regular files that the host opens for the guest: as the engine's WASI has them, never outside, and gone when closed."""

from __future__ import annotations

import ctypes
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dl
from dl.wasix.abi import Errno
from dl.wasix.files.host_files import HostDirectory, engine_inode
from tests.support.engine_wasi import EngineCalls
from tests.support.wasi import BUFFER, CREATE, DIRECTORY, READ_WRITE, RESULT, Calls, calls

NAMES = (
    "a",
    "b",
    "sub/a",
    "sub/b",
    "link",
    "sub/up",
    "out",
    "loop",
    "hang",
    "sub",
    ".",
    "sub/",
    "a/x",
    "sub/../a",
    "./a",
    "",
)
EXCLUSIVE, TRUNCATE = 4, 8
RIGHTS = (0, 2, 64, 66, 0x1FFFFFFF)
STATUS = "16xB7xQQ"

pytestmark = pytest.mark.skipif(not hasattr(os, "O_PATH"), reason="files are the engine's here")


def host_file(wasi: Calls, number: int) -> Any:
    """The host's file behind a descriptor; None if the engine has it."""
    return wasi.linker.parts.process.files.table.entries[number].file.host


def tree(folder: Path) -> dict[str, object]:
    """All that is in a folder: sizes of files and how they begin, texts of links."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            with path.open("rb") as file:
                found[name] = path.stat().st_size, file.read(4096)  # files with holes are large
        else:
            found[name] = None
    return found


def furnish(folder: Path) -> Path:
    """A folder with files, and with links inside, up, out, to themselves and to nothing."""
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_bytes(b"0123456789" * 3)
    (folder / "sub" / "a").write_bytes(b"in sub")
    for name, target in (("link", "sub/a"), ("out", "/etc/passwd"), ("loop", "loop"), ("hang", "new")):
        (folder / name).symlink_to(target)
    (folder / "sub" / "up").symlink_to("../a")
    return folder


class Walk:
    """Random calls; what they answer is all that one side may know."""

    def __init__(self, wasi: Any, seed: int) -> None:
        self.wasi, self.random = wasi, random.Random(seed)
        self.open: list[int] = []

    def step(self) -> object:
        """Make one call; return its name, errno and results, without numbers of descriptors."""
        choice, wasi = self.random, self.wasi
        name = choice.choice(NAMES)
        numbers = [choice.randrange(64) for _ in range(4)]
        number = self.open[numbers[0] % len(self.open)] if self.open and numbers[1] else 99
        offset = choice.choice((0, 1, 7, 40, 1 << 33, (1 << 64) - 5, (1 << 64) - 1))
        kind = choice.choice(STEPS)
        return kind.__name__, kind(self, wasi, number, name, numbers, offset)

    def open_file(self, wasi: Any, _number: int, name: str, numbers: list[int], _offset: int) -> object:
        oflags = (0, CREATE, CREATE | EXCLUSIVE, CREATE | TRUNCATE, TRUNCATE, EXCLUSIVE, DIRECTORY)[
            numbers[0] % 7
        ]
        flags = (0, 0, 1, 4, 2)[numbers[2] % 5]
        error = wasi.path_open(
            3, numbers[1] % 2, *wasi.text(name), oflags, RIGHTS[numbers[3] % len(RIGHTS)], 0, flags, RESULT
        )
        if not error:
            self.open.append(wasi.memory.read_u32(RESULT))
        return name, oflags, error

    def close(self, wasi: Any, number: int, _name: str, _numbers: list[int], _offset: int) -> object:
        if number in self.open:
            self.open.remove(number)
        return wasi.fd_close(number)

    def transfer(self, wasi: Any, number: int, _name: str, numbers: list[int], offset: int) -> object:
        wasi.memory.write(BUFFER, bytes(numbers[2] + i & 0xFF for i in range(64)))
        function = numbers[0] % 4
        # Appending nothing moves the engine's position to the end, and that of POSIX nowhere.
        wasi.memory.write_struct("III", RESULT, BUFFER, max(numbers[3] % 33, function == 1), 77)
        if function < 2:
            error = (wasi.fd_read, wasi.fd_write)[function](number, RESULT, 1, RESULT + 8)
        else:
            error = (wasi.fd_pread, wasi.fd_pwrite)[function - 2](
                number, RESULT, 1, min(offset, 1 << 63), RESULT + 8
            )
        return function, error, wasi.memory.read_u32(RESULT + 8), wasi.memory.read(BUFFER, 64)

    def seek(self, wasi: Any, number: int, _name: str, numbers: list[int], offset: int) -> object:
        wasi.memory.write_struct("Q", RESULT, 77)
        signed = offset - (1 << 64) if offset >> 63 else offset
        error = wasi.fd_seek(number, signed, numbers[0] % 3, RESULT)
        place = wasi.memory.read_struct("Q", RESULT)
        return error, place, wasi.fd_tell(number, RESULT), wasi.memory.read_struct("Q", RESULT)

    def status(self, wasi: Any, number: int, name: str, _numbers: list[int], _offset: int) -> object:
        wasi.memory.write(RESULT, bytes(256))
        by_number = wasi.fd_filestat_get(number, RESULT)
        by_path = wasi.path_filestat_get(3, 1, *wasi.text(name), RESULT + 64)
        one, other = (wasi.memory.read_struct(STATUS, RESULT + at) for at in (0, 64))
        records = wasi.memory.read(RESULT, 64), wasi.memory.read(RESULT + 64, 64)
        same_file = by_number == by_path == 0 and records[0][:16] == records[1][:16]
        assert not same_file or records[0] == records[1], "times of a file by its number and by its path"
        flags = wasi.fd_fdstat_get(number, RESULT + 128), wasi.memory.read(RESULT + 128, 24)
        return by_number, by_path, one, other, same_file, flags

    def change(self, wasi: Any, number: int, _name: str, numbers: list[int], offset: int) -> object:
        # Of a number that is not open we say that first, and the engine what is wrong with the flags.
        flags = (0, 5, 4, 1, 3, 12)[numbers[1] % 6] if number in self.open else 0
        size = min(offset, 1 << 63) if numbers[1] % 2 else numbers[2]
        return (
            numbers[0] % 7,
            (
                lambda: wasi.fd_filestat_set_size(number, size if size < 1 << 32 else -1),
                lambda: wasi.fd_fdstat_set_flags(number, (0, 1, 4, 5, 2)[numbers[1] % 5]),
                lambda: wasi.fd_advise(number, numbers[2], numbers[3], numbers[1] % 6),
                lambda: wasi.fd_allocate(number, 0, numbers[3]),
                lambda: (wasi.fd_sync(number), wasi.fd_datasync(number)),
                lambda: wasi.fd_filestat_set_times(number, 5, 10**18, flags),
                lambda: wasi.fd_fdstat_set_rights(number, 0, 0),
            )[numbers[0] % 7](),
        )

    def paths(self, wasi: Any, number: int, name: str, numbers: list[int], _offset: int) -> object:
        path, other = wasi.text(name), wasi.text(NAMES[numbers[1] % len(NAMES)], RESULT - 512)
        return (
            lambda: wasi.path_unlink_file(3, *path),
            lambda: wasi.path_rename(3, *path, 3, *other),
            lambda: wasi.path_link(3, 0, *path, 3, *other),
            lambda: wasi.path_open(number, 0, *wasi.text("x"), 0, 0, 0, 0, RESULT),
        )[numbers[0] % 4]()

    def odd(self, wasi: Any, number: int, name: str, numbers: list[int], _offset: int) -> object:
        if number not in self.open:
            return None
        path = wasi.text(name or "x")
        return (
            lambda: wasi.fd_prestat_get(number, RESULT),
            lambda: wasi.fd_prestat_dir_name(number, RESULT, 3),
            lambda: wasi.sock_shutdown(number, 1),
            lambda: wasi.sock_send(number, RESULT, 0, 0, RESULT + 8),
        )[numbers[0] % 4](), path


STEPS: tuple[Callable[..., object], ...] = (
    *[Walk.open_file] * 4,
    Walk.close,
    *[Walk.transfer] * 5,
    Walk.seek,
    Walk.status,
    Walk.change,
    Walk.paths,
    Walk.odd,
)


@pytest.mark.parametrize(("seed", "held"), [(1, True), (2, True), (3, True), (4, True), (5, False)])
def test_files_are_as_the_engine_has_them(tmp_path: Path, seed: int, held: bool) -> None:
    """Whatever is called in whatever order, the answers and what is on disk then are those of the engine's WASI."""
    ours, engines = furnish(tmp_path / "ours"), furnish(tmp_path / "engines")
    theirs = Walk(EngineCalls(engines), seed)
    direct = 0
    with calls({"/": ours}, shared=bool(seed % 2), default_files=False) as wasi:
        if not held:  # as on a system where the host cannot: the engine has all files
            wasi.linker.parts.process.files.table.entries[3].file.directory = None
        mine = Walk(wasi, seed)
        for step in range(500):
            expected, answer = theirs.step(), mine.step()
            assert answer == expected, f"seed {seed}, step {step}: ours {answer}, the engine's {expected}"
            direct += sum(host_file(wasi, number) is not None for number in mine.open)

    assert tree(ours) == tree(engines)
    assert bool(direct) == held


def test_no_path_leads_out(tmp_path: Path) -> None:
    """Links and `..` that lead out of the directory open nothing and make nothing there, at the end and on the way."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    (inside / "sub").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_text("secret")
    links = {"up": "../outside", "abs": str(outside), "file": "../outside/secret", "new": "../outside/new"}
    for name, target in links.items():
        (inside / name).symlink_to(target)
    (inside / "sub" / "up").symlink_to("../../outside/secret")
    (inside / "self").symlink_to("/proc/self/fd/0")
    paths = [
        "up/secret",
        "abs/secret",
        "file",
        "new",
        "up/new",
        "sub/up",
        "self",
        "sub/../../outside/secret",
        "../outside/secret",
    ]
    paths += ["/data/up/secret", "/data/../outside/secret", f"{outside}/secret"]
    with calls({"/data": inside}) as wasi:
        for path in paths:
            for oflags in (0, CREATE, TRUNCATE, CREATE | EXCLUSIVE):
                error = wasi.path_open(3, 1, *wasi.text(path), oflags, READ_WRITE, 0, 0, RESULT)
                assert error in (20, 44, 63, 76), (path, oflags)

    assert tree(outside) == {"secret": (6, b"secret")}


def test_what_is_swapped_for_a_link_never_leads_out(tmp_path: Path) -> None:
    """While a file, and a directory on the way, become links that lead out and back again, only what is inside is opened."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    (inside / "real").mkdir(parents=True)
    outside.mkdir()
    for place in (inside / "file", inside / "real" / "f"):
        place.write_text("in")
    (outside / "f").write_text("out")
    (inside / "sub").symlink_to(outside)
    (inside / "name").symlink_to(outside / "f")
    swapped = threading.Event()
    exchange, here = ctypes.CDLL(None).renameat2, os.open(inside, os.O_PATH)

    def swap() -> None:
        while not swapped.is_set():
            for one, other in ((b"real", b"sub"), (b"file", b"name")):
                assert exchange(here, one, here, other, 2) == 0  # RENAME_EXCHANGE

    thread = threading.Thread(target=swap)
    thread.start()
    held = HostDirectory(str(inside))
    opened = 0
    try:
        for number in range(4000):
            for path in (b"sub/f", b"name"):
                file = held.open(path, 1, number % 2 * TRUNCATE, 66, 0)
                if file is not None and not isinstance(file, int):
                    assert os.pread(file.fd, 9, 0) in (b"in", b"")
                    opened += 1
            held.open(b"sub/new", 1, CREATE | EXCLUSIVE, 66, 0)
    finally:
        swapped.set()
        thread.join(30)
        os.close(here)

    assert opened
    assert tree(outside) == {"f": (3, b"out")}


def test_the_host_opens_nothing_but_regular_files(tmp_path: Path) -> None:
    """A named pipe is refused by whatever name, and not opened to see what it is: a writer would meet a reader that leaves."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    held = HostDirectory(str(tmp_path))
    failed: list[OSError] = []

    def write() -> None:
        try:
            (tmp_path / "pipe").write_bytes(b"for a reader")
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    for path in (b"pipe", b"./pipe", b"link", b"./link") * 50:
        assert [held.open(path, 1, oflags, 66, 0) for oflags in (0, CREATE, TRUNCATE)] == [Errno.NOTSUP] * 3
    assert held.open(b"link", 0, 0, 66, 0) is None
    with calls({"/": tmp_path}) as wasi:
        assert wasi.open(3, "pipe")[0] == Errno.NOTSUP
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    thread.join(30)
    received = os.read(reader, 99)
    os.close(reader)

    assert (received, failed) == (b"for a reader", [])


def descriptors() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


def test_descriptors_of_the_host_are_given_back(tmp_path: Path) -> None:
    """A file is closed with its last descriptor, when there is none left for it, and with its program."""
    (tmp_path / "a").write_text("text")
    before = descriptors()
    with calls({"/": tmp_path}, also="fd_dup") as wasi:
        began = descriptors()
        numbers = [wasi.open(3, "a")[1] for _ in range(20)]
        assert all(host_file(wasi, number) is not None for number in numbers)
        assert descriptors() == began + 20
        assert wasi.fd_renumber(numbers[0], numbers[1]) == 0  # a copy, in programs of WASIX
        assert descriptors() == began + 19
        assert [wasi.fd_close(number) for number in numbers[:2]] == [0, 0]
        assert descriptors() == began + 18
        wasi.linker.parts.process.files.table.most = 3
        assert wasi.open(3, "a")[0] == 33
        assert descriptors() == began + 18

    assert descriptors() <= before


def test_copies_of_a_descriptor_share_the_position(tmp_path: Path) -> None:
    """What is read by one descriptor of an open file is not read again by its copy, and several buffers are one call."""
    (tmp_path / "a").write_text("0123456789")
    with calls({"/data": tmp_path}, also="fd_dup") as wasi:
        _, number = wasi.open(3, "/data/a")
        assert host_file(wasi, number) is not None
        assert wasi.fd_renumber(number, 40) == 0
        wasi.memory.write_struct("6I", RESULT, BUFFER, 3, 0, 0, BUFFER + 100, 2)
        assert wasi.fd_read(number, RESULT, 3, RESULT + 64) == 0
        assert wasi.memory.read_u32(RESULT + 64) == 5
        assert wasi.fd_write(40, RESULT, 3, RESULT + 64) == 0
        assert wasi.fd_tell(number, RESULT + 64) == 0
        assert wasi.memory.read_u64(RESULT + 64) == 10
        assert wasi.fd_read(number, 0xFFFFFFF0, 2, RESULT) == 78
        assert wasi.fd_write(number, RESULT, 1, 0xFFFFFFF0) == 78

    assert (tmp_path / "a").read_text() == "0123401234"


def test_calls_on_files_wait_for_nobody_else(tmp_path: Path) -> None:
    """While one thread is in a call of the engine's WASI, another one opens, writes, reads and closes its file."""
    with calls({"/": tmp_path}, shared=True) as wasi:
        wasi.open(3, "a", CREATE)
        main = wasi.linker.main

        def work(group: dl.InstanceGroup) -> list[int]:
            find = lambda name: group.dlsym(main, f"call_{name}")  # noqa: E731
            wasi.memory.write_struct("II", RESULT + 256, BUFFER, 8)
            return [
                find("fd_pwrite")(4, RESULT + 256, 1, 0, RESULT + 300),
                find("fd_write")(4, RESULT + 256, 1, RESULT + 300),
                find("fd_pread")(4, RESULT + 256, 1, 0, RESULT + 300),
                find("fd_read")(4, RESULT + 256, 1, RESULT + 300),
                find("fd_seek")(4, 0, 0, RESULT + 300),
                find("fd_sync")(4),
            ]

        with wasi.linker.parts.process.files.wasi.lock:
            answers = wasi.linker.spawn(work).join(timeout=30)

    assert answers == [0] * 6


def test_a_number_that_is_used_again_never_means_two_files(tmp_path: Path) -> None:
    """While one thread closes a file and opens another one under its number, each read of a second one is of one file."""
    for name in "ab":
        (tmp_path / name).write_text(name * 64)
    seen: set[bytes] = set()
    with calls({"/": tmp_path}, shared=True) as wasi:
        wasi.open(3, "a")
        main, done = wasi.linker.main, threading.Event()

        def read(group: dl.InstanceGroup) -> None:
            pread = group.dlsym(main, "call_fd_pread")
            while not done.is_set():
                wasi.memory.write_struct("II", 8192, 8448, 64)
                if pread(4, 8192, 1, 0, 8200) == 0:
                    seen.add(wasi.memory.read(8448, 64))

        thread = wasi.linker.spawn(read)
        for number in range(100_000):
            if number > 400 and seen:
                break
            assert wasi.fd_close(4) == 0
            assert wasi.open(3, "ab"[number % 2]) == (0, 4)
        done.set()
        thread.join(timeout=30)

    assert seen <= {b"a" * 64, b"b" * 64}
    assert seen


def test_the_numbers_of_files_are_the_engines() -> None:
    """SipHash-1-3 of two words, with values from an implementation that is not ours: Rust's `DefaultHasher`."""
    assert engine_inode(65024, 11805051) == 783822048849531539
