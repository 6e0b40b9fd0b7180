"""What calls of a guest can cost the host: bounds on names, buffers and descriptors."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

import dl
from dl.wasix.abi import Errno, ErrnoError
from dl.wasix.alarms import SHORTEST_SECONDS, Alarms
from tests.support.paths import ROOT
from tests.support.wasi import BUFFER, CREATE, READ_WRITE, RESULT, TEXT, Calls, calls
from threads import Waits

WASIX = "wasix_32v1"
TRUNCATE = 8
READER, WRITER = 5, 6
LARGE = 16 << 20
"""Bytes of an argument that is much too large."""
LITTLE = 1 << 20
"""Bytes that no call takes for an argument that is refused, or cut."""


@pytest.fixture(name="wasi", scope="module")
def _wasi() -> Iterator[Calls]:
    with calls({}, WASIX) as wasi:
        assert wasi.linker.grow_memory(2 * LARGE // 65536) is not None
        assert wasi.fd_pipe(RESULT, RESULT + 4) == 0
        assert wasi.memory.read_struct("II", RESULT) == (READER, WRITER)
        yield wasi


@pytest.mark.parametrize(
    ("name", "arguments", "answer"),
    [
        ("dlsym", (0, TEXT, LARGE, 0, 0, RESULT), Errno.UNKNOWN),
        ("path_filestat_get", (3, 0, TEXT, LARGE, BUFFER), Errno.NAMETOOLONG),
        ("path_open", (3, 0, TEXT, LARGE, 0, READ_WRITE, 0, 0, RESULT), Errno.NAMETOOLONG),
        ("chdir", (TEXT, LARGE), Errno.NAMETOOLONG),
        ("fd_write", (1, LARGE, LARGE // 8, RESULT), Errno.SUCCESS),
        ("fd_write", (WRITER, LARGE, LARGE // 8, RESULT), Errno.SUCCESS),
        ("fd_read", (READER, LARGE, LARGE // 8, RESULT), Errno.SUCCESS),
    ],
)
def test_a_large_argument_is_not_copied(
    wasi: Calls, name: str, arguments: tuple[int, ...], answer: Errno
) -> None:
    """Names that are longer than any, and more buffers than one call has, take no memory of the host."""
    wasi.memory.write(TEXT, b"/tmp/" + b"x" * (LARGE // 2))
    call = getattr(wasi, name)
    tracemalloc.start()
    try:
        assert call(*arguments) == answer
        assert tracemalloc.get_traced_memory()[1] < LITTLE
    finally:
        tracemalloc.stop()


def test_a_signal_handler_has_a_name_that_can_be_one(wasi: Calls) -> None:
    """A longer one is not kept."""
    process = wasi.linker.parts.process
    with pytest.raises(ErrnoError):
        process.callback_signal(TEXT, LARGE)
    assert not process.signals.has_handler


def test_the_buffers_that_one_call_writes(tmp_path: Path) -> None:
    """Of more than 1,024 buffers the first 1,024 are written, and the call says so: to files, pipes and output."""
    out = bytearray()
    with calls({"/": tmp_path}, WASIX, stdout=out.extend) as wasi:
        _, file = wasi.open(3, "f", CREATE)
        wasi.fd_pipe(RESULT, RESULT + 4)
        pipe = wasi.memory.read_u32(RESULT + 4)
        wasi.memory.write(TEXT, b"x")
        wasi.memory.write_struct("2050I", BUFFER, *(TEXT, 1) * 1025)
        for number in (file, pipe, 1):
            assert wasi.fd_write(number, BUFFER, 1025, RESULT) == 0
            assert wasi.memory.read_u32(RESULT) == 1024
    assert (tmp_path / "f").read_bytes() == out == b"x" * 1024


def test_nothing_is_made_or_emptied_without_a_descriptor_for_it(tmp_path: Path) -> None:
    """When there are as many descriptors as may be, opening answers 33 (`mfile`), and the file is as before."""
    (tmp_path / "f").write_text("content")
    with calls({"/": tmp_path}, limits=dl.Limits(descriptors=4), default_files=False) as wasi:
        assert wasi.open(3, "f", TRUNCATE)[0] == Errno.MFILE
        assert wasi.open(3, "new", CREATE)[0] == Errno.MFILE
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("f", "content")]


def test_a_repeated_alarm_rings_as_often_as_timers_can() -> None:
    """An alarm of each nanosecond rings at most once a millisecond: it takes no processor for itself."""
    rung: list[int] = []
    alarms = Alarms(rung.append, Waits())
    began = time.monotonic()
    alarms.set(14, 1, repeat=True)
    threading.Event().wait(0.05)
    alarms.close()
    assert 0 < len(rung) <= (time.monotonic() - began) / SHORTEST_SECONDS + 1


def test_one_call_adds_one_number_to_an_event(wasi: Calls) -> None:
    """Of more than 8 bytes the first 8 are taken, as eventfd(2) does; a read of more gives 8."""
    assert wasi.fd_event(1, 0, RESULT) == 0
    number = wasi.memory.read_u32(RESULT)
    wasi.memory.write_struct("QQQ", BUFFER, 5, 7, 9)
    wasi.memory.write_struct("II", RESULT, BUFFER, 24)
    assert wasi.fd_write(number, RESULT, 1, RESULT + 8) == 0
    assert wasi.memory.read_u32(RESULT + 8) == 8
    assert wasi.fd_read(number, RESULT, 1, RESULT + 8) == 0
    assert wasi.memory.read_u32(RESULT + 8) == 8
    assert wasi.memory.read_struct("QQ", BUFFER) == (6, 7)
    assert wasi.fd_close(number) == 0


NO_DESCRIPTORS = """
import contextlib, os, resource
from tests.support.wasi import BUFFER, RESULT, calls

with calls({}, "wasix_32v1") as wasi:
    read = wasi.fd_read
    wasi.memory.write_struct("II", RESULT, BUFFER, 8)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (os.dup(0) + 10, limits[1]))
    with contextlib.suppress(OSError):
        while True:
            os.dup(0)
    print(read(0, RESULT, 1, RESULT + 8))
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
"""


@pytest.mark.skipif(not hasattr(os, "O_PATH"), reason="needs Linux")
def test_a_wait_that_the_host_has_no_descriptors_for_is_an_error_of_the_call() -> None:
    """A read of standard input that would wait answers 33 (`mfile`) where the host's process can open nothing more."""
    with subprocess.Popen(
        [sys.executable, "-c", NO_DESCRIPTORS],
        cwd=ROOT,
        env={**os.environ, "DLRUN_CACHE": "off"},  # whose files would be closed meanwhile
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read() == "33\n"
        assert process.stderr.read() == ""
