"""`chdir` and timers of a guest: whatever it gives, the answer is an errno and never an error of the host."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import dl
from tests.support.modules import imports, pie

SUCCESS, ACCES, AGAIN, LOOP, NAMETOOLONG, NOENT, NOTDIR, MEMVIOLATION = 0, 2, 6, 32, 37, 44, 54, 78
TEXT = 4096

MAIN = pie(
    imports("chdir", "(param i32 i32) (result i32)", "wasix_32v1"),
    imports("proc_raise_interval", "(param i32 i64 i32) (result i32)", "wasix_32v1"),
    '(export "chdir" (func $chdir)) (export "alarm" (func $proc_raise_interval))',
    memory_size=4 * 65536,
)


def chdir(program: dl.Linker, path: str) -> int:
    raw = path.encode()
    program.memory.write(TEXT, raw)
    return int(program.main_group.dlsym(1, "chdir")(TEXT, len(raw)))


def test_chdir_answers(tmp_path: Path) -> None:
    """Every directory, file, link and text gives its errno; what lies outside is not there, whatever it is."""
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (tmp_path / "data" / "file").touch()
    (tmp_path / "data" / "out").symlink_to("../secret")
    (tmp_path / "data" / "nowhere").symlink_to("../gone")
    (tmp_path / "data" / "loop").symlink_to("loop")
    (tmp_path / "data" / "in").symlink_to("sub")
    with dl.Linker(MAIN, preopens={"/data": tmp_path / "data"}) as program:
        for path, errno in (
            ("/data", SUCCESS),
            ("sub", SUCCESS),
            ("..", SUCCESS),
            ("in", SUCCESS),
            ("/", SUCCESS),
            ("data/sub/../sub", SUCCESS),
            ("/data/file", NOTDIR),
            ("/data/file/x", NOTDIR),
            ("/data/gone", NOENT),
            ("/data/out", NOENT),
            ("/data/nowhere", NOENT),
            ("/data/loop", LOOP),
            ("/secret", NOENT),
            (str(tmp_path), NOENT),
            ("/data/" + "x" * 256, NAMETOOLONG),
            ("x" * 256, NAMETOOLONG),
            ("/data/" + "sub/../" * 600, NAMETOOLONG),
            ("/data/a\0b", NOENT),
            ("", NOENT),
        ):
            assert chdir(program, path) == errno, path[:80]
        call = program.main_group.dlsym(1, "chdir")
        assert call(TEXT, 1 << 17) == NAMETOOLONG
        assert call(0x7FFFFFFF, 1) == MEMVIOLATION
        assert program.parts.process.directory == "/data/sub"


AS_NOBODY = """
import os, sys
import dl
from pathlib import Path
with dl.Linker(Path(sys.argv[1]).read_bytes(), preopens={"/data": sys.argv[2]}) as program:
    os.setresuid(65534, 65534, 65534)
    for path in ("/data/closed", "/data/closed/x", "/data/closed/x/y", "/data/open"):
        program.memory.write(4096, path.encode())
        print(program.main_group.dlsym(1, "chdir")(4096, len(path)))
"""


@pytest.mark.skipif(
    os.geteuid() != 0, reason="drops its privileges to meet a directory that it may not search"
)
def test_chdir_into_a_directory_that_the_host_may_not_search(tmp_path: Path) -> None:
    """A directory without permission, and whatever lies below it, is `acces`."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        _meet_a_closed_directory(Path(directory), tmp_path)


def _meet_a_closed_directory(data: Path, tmp_path: Path) -> None:
    (data / "closed" / "x").mkdir(parents=True)
    (data / "open").mkdir()
    (data / "closed").chmod(0)
    main = tmp_path / "main.wasm"
    main.write_bytes(MAIN)
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(main), str(data)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert [int(line) for line in done.stdout.split()] == [ACCES, ACCES, ACCES, SUCCESS]


WITHOUT_THREADS = """
import resource, sys
import dl
from pathlib import Path
with dl.Linker(Path(sys.argv[1]).read_bytes()) as program:
    alarm = program.main_group.dlsym(1, "alarm")
    hour = 3600 * 10**9
    print(alarm(14, hour, 1))
    size = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, ((size + 1024) * 1024, before[1]))
    print(alarm(15, hour, 1))
    resource.setrlimit(resource.RLIMIT_AS, before)
    print(alarm(15, hour, 1), alarm(15, 0, 1), alarm(14, 0, 1))
"""


def test_no_thread_is_left_for_a_timer(tmp_path: Path) -> None:
    """A timer that the host has no thread for is `again`; timers that are set stay, and later ones work."""
    main = tmp_path / "main.wasm"
    main.write_bytes(MAIN)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THREADS, str(main)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", str(AGAIN), "0", "0", "0"]
