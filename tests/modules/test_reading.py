"""Reading module files: bounded for the whole program, and once for all who ask at the same moment."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import dl
from dl.modules.beneath import host_place, open_beneath
from dl.modules.image import image_from_file
from dl.modules.reading import ReadBudget
from dl.wasm.encode import name_bytes
from tests.support.modules import SHARED_MEMORY, library, pie, returns

SIZE = 1 << 22


def large(path: Path, size: int = SIZE, content: bytes = b"") -> Path:
    """Make a valid library of a size, most of it a hole in a custom section."""
    wasm = content or library(returns("f", 1))
    head = name_bytes("hole")
    length = size - len(wasm) - 1 - 5
    section = b"\0" + bytes([(length >> 7 * n) & 0x7F | (0x80 if n < 4 else 0) for n in range(5)])
    path.write_bytes(wasm + section + head)
    os.truncate(path, size)
    return path


def reading(budget: ReadBudget, path: Path) -> int:
    with open_beneath(host_place(str(path))) as file, budget.reading(file, path.name) as data:
        assert budget.in_use <= budget.total_bytes
        return len(data)


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    """The bytes are those of the file, nothing counts afterwards, and the parsed module is the library."""
    path = large(tmp_path / "lib.so")
    budget = ReadBudget()

    assert reading(budget, path) == SIZE
    assert budget.in_use == 0
    assert "f" in image_from_file(path, "lib.so", budget).wasm.exports


@pytest.mark.parametrize("at", [-(1 << 16) - 1, -(1 << 16), -1])
def test_a_file_that_is_read_again_is_compared_to_its_last_byte(tmp_path: Path, at: int) -> None:
    """A file with the bytes of before is the module of before; one byte that differs, wherever it is, is seen."""
    path = large(tmp_path / "lib.so", 5 << 16)
    first = image_from_file(path, "lib.so")
    assert image_from_file(path, "lib.so").wasm is first.wasm

    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    changed = image_from_file(path, "lib.so")
    assert changed.wasm.data == content
    assert changed.digest != first.digest


def test_a_file_that_was_read_before_is_bounded_all_the_same(tmp_path: Path) -> None:
    """What one program has read is still refused in another, whose limit is smaller."""
    path = large(tmp_path / "lib.so", 1 << 17)
    image_from_file(path, "lib.so")
    with pytest.raises(dl.ResourceLimitError, match="module_bytes"):
        image_from_file(path, "lib.so", ReadBudget((1 << 17) - 1))


def test_what_is_too_large_is_refused_by_its_size(tmp_path: Path) -> None:
    """A module over a limit is refused before it is read, and the error names the limit."""
    path = large(tmp_path / "lib.so", 1 << 40)
    with pytest.raises(
        dl.ResourceLimitError, match=r"1099511627776 bytes; at most 1073741824 .*module_bytes"
    ):
        image_from_file(path, "lib.so")
    small = large(tmp_path / "small.so")
    with pytest.raises(dl.ResourceLimitError, match="total_bytes"):
        reading(ReadBudget(SIZE, SIZE - 1), small)
    assert reading(ReadBudget(SIZE, SIZE), small) == SIZE


def test_what_is_no_module_is_not_read(tmp_path: Path) -> None:
    """A sparse file of a terabyte that does not begin as a module costs its first bytes, and is reported as what it is."""
    path = tmp_path / "lib.so"
    path.touch()
    os.truncate(path, 1 << 40)

    assert reading(ReadBudget(), path) <= 64
    with pytest.raises(dl.MalformedModuleError):
        image_from_file(path, "lib.so")
    path.write_bytes(b"\x7fELF" + bytes(1000))
    with pytest.raises(dl.MalformedModuleError, match="ELF"):
        image_from_file(path, "lib.so")
    path.write_bytes(b"")
    with pytest.raises(dl.MalformedModuleError, match="empty"):
        image_from_file(path, "lib.so")


@pytest.mark.parametrize("limits", [(0, 1), (1, 0), (-1, 5)])
def test_limits_are_positive(limits: tuple[int, int]) -> None:
    """A budget of nothing would make every thread wait for ever, so there is none."""
    with pytest.raises(ValueError, match="positive"):
        ReadBudget(*limits)


def test_readers_of_one_file_share_its_bytes(tmp_path: Path) -> None:
    """Threads that read one file while it is in use get the same object, and it counts once."""
    path = large(tmp_path / "lib.so")
    budget = ReadBudget(SIZE, SIZE)
    everyone = threading.Barrier(8)
    got: list[int] = []

    def read() -> None:
        with open_beneath(host_place(str(path))) as file, budget.reading(file, "lib.so") as data:
            everyone.wait(30)
            got.append(id(data))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert len(got) == 8
    assert len(set(got)) == 1
    assert budget.in_use == 0


def test_readers_of_many_files_share_the_total(tmp_path: Path) -> None:
    """Threads that read different files wait until the total has room, and all get theirs, also after failures."""
    budget = ReadBudget(SIZE, 2 * SIZE + 1)
    paths = [large(tmp_path / f"{n}.so") for n in range(8)]
    sizes: list[int] = []

    def read(path: Path) -> None:
        for _ in range(5):
            sizes.append(reading(budget, path))
            try:
                with open_beneath(host_place(str(path))) as file, budget.reading(file, "x"):
                    raise KeyError
            except KeyError:
                pass

    threads = [threading.Thread(target=read, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert sizes == [SIZE] * 40
    assert budget.in_use == 0


def test_a_file_that_grows_or_shrinks_while_it_is_open(tmp_path: Path) -> None:
    """No more is read than the size that was checked; of a file that shrank, what is left."""
    path = large(tmp_path / "lib.so")
    budget = ReadBudget(SIZE, SIZE)
    with open_beneath(host_place(str(path))) as file:
        os.truncate(path, 1 << 40)
        with budget.reading(file, "lib.so") as data:
            assert len(data) == SIZE
        os.truncate(path, 1000)
        with budget.reading(file, "lib.so") as data:
            assert len(data) == 1000


def test_a_pipe_or_device_is_refused_without_waiting(tmp_path: Path) -> None:
    """What is no regular file is not opened for reading."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(dl.LinkError, match="not a regular file"):
            image_from_file(path, "lib.so")
    with pytest.raises(dl.LinkError, match="is a directory"):
        image_from_file(tmp_path, "lib.so")


EIGHT_THREADS = """
import resource, sys, threading
import dl

main, path = sys.argv[1:]
everyone = threading.Barrier(8)
with dl.Linker(main) as linker:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def opening(group):
        everyone.wait(60)
        return int(group.dlopen(path))

    threads = [linker.spawn(opening) for _ in range(8)]
    handles = {thread.join(100) for thread in threads}
    assert len(handles) == 1, handles
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_eight_threads_that_open_one_large_file(tmp_path: Path) -> None:
    """Eight threads that open one sparse file of 128 MiB at once cost the host a small multiple of it, not eight times."""
    size = 128 << 20
    main = tmp_path / "main.wasm"
    main.write_bytes(pie(shared=True, memory_size=1024))
    path = large(tmp_path / "lib.so", size, library(SHARED_MEMORY, returns("f", 1)))
    done = subprocess.run(
        [sys.executable, "-c", EIGHT_THREADS, str(main), str(path)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 4 * size, f"{int(done.stdout) / 1024:.0f} MiB"
