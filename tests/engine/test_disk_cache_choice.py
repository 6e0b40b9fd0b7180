"""Where the cache is, when it is off, and what the command line does with it."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import platformdirs
import pytest

import dl
from dl.engine.disk_cache import VARIABLE, cache_path
from dl.engine.private_directory import PrivateDirectory
from tests.support.disk_caches import code_files
from tests.support.modules import MEMORY, TABLE, library, returns
from tests.support.paths import ROOT

HELLO = ROOT / "fixtures/hello/unshared/main.wasm"


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """False is none, a path is that one, True is what the environment says, or the user's own directory."""
    assert cache_path(False) is None
    assert cache_path(tmp_path / "x" / ".." / "y") == tmp_path / "y"
    monkeypatch.setenv("DLRUN_CACHE", "off")
    assert cache_path() is None
    monkeypatch.setenv("DLRUN_CACHE", str(tmp_path))
    assert cache_path(True) == tmp_path
    monkeypatch.delenv("DLRUN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert cache_path() == tmp_path / "home" / "wasix-dl"


@pytest.mark.parametrize(
    "environment",
    [
        {"HOME": "/home/somebody"},
        {"HOME": "/home/somebody/"},
        {"HOME": "/home/somebody", "XDG_CACHE_HOME": "/elsewhere"},
        {"HOME": "/home/somebody", "XDG_CACHE_HOME": "relative"},
        {"HOME": "/home/somebody", "XDG_CACHE_HOME": ""},
        {"HOME": ""},
        {},
    ],
    ids=str,
)
def test_the_users_cache_is_where_platformdirs_says(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    """The usual place is known without importing it; the two agree wherever the environment puts it."""
    for name in ("HOME", "XDG_CACHE_HOME", VARIABLE):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert cache_path() == platformdirs.user_cache_path("wasix-dl", appauthor=False)


def test_a_cache_that_is_off_says_why_once(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A linker whose cache is not private runs without, and the log has one line with the reason."""
    caplog.set_level(logging.INFO, "dl.cache")
    place.mkdir()
    place.chmod(0o777)
    with dl.Linker(None, memory=dl.MemoryType(32, 256), cache=place) as linker:
        linker.main_group.dlopen(library(MEMORY, TABLE, returns("f", 1)))

    assert [record.getMessage() for record in caplog.records] == [
        f"cache: off: {place} can be written by others"
    ]
    assert list(place.iterdir()) == []


@pytest.fixture(name="run")
def _run(place: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*words: str, cache: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "dl", *words],
            cwd=ROOT,
            env={**os.environ, "DLRUN_CACHE": cache or str(place)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.mark.timeout(120)
def test_a_second_process_compiles_nothing(
    place: Path, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """The second run of a program generates and keeps nothing new and prints the same; without a cache, nothing is kept."""
    plain = run("--no-cache", str(HELLO))
    assert (plain.returncode, place.exists()) == (0, False)
    first = run(str(HELLO))
    files = {file: file.stat().st_mtime_ns for file in code_files(place)}
    second = run("--trace", str(HELLO))

    found = re.search(r"plan: found (\d+) of (\d+) modules", second.stderr)
    assert found is not None
    assert int(found[1]) == int(found[2]) > 2
    assert plain.stdout == first.stdout == second.stdout != ""
    assert len(files) > 2
    assert {file: file.stat().st_mtime_ns for file in code_files(place)} == files


@pytest.mark.timeout(120)
def test_the_command_line_looks_after_the_cache(
    place: Path, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """`dlrun cache` says where and how much, finds damage, and clears; each also when the cache is off."""
    run(str(HELLO))
    count = len(code_files(place))
    told = json.loads(run("cache", "info", "--json").stdout)
    assert (told["directory"], told["off"], told["files"]) == (str(place), None, count)
    assert told["plans"] == len(list(place.glob("*.plan"))) == 1
    assert f"{count} files, 1 plan, " in run("cache", "info").stdout
    assert run("cache", "verify").returncode == 0

    damaged = code_files(place)[0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    found = run("cache", "verify", "--json")
    assert (found.returncode, json.loads(found.stdout)) == (1, {"good": count, "removed": [damaged.name]})
    assert f"{count - 1} files" in run("cache", "clear").stdout
    assert list(place.iterdir()) == []

    assert "DLRUN_CACHE is off" in run("cache", "info", cache="off").stdout
    assert run("cache", "clear", cache="off").stderr == "dlrun: error: the cache is off: DLRUN_CACHE is off\n"


def test_a_private_directory_closes(place: Path) -> None:
    """Closing a directory twice is harmless."""
    directory = PrivateDirectory(place)
    directory.close()
    directory.close()
