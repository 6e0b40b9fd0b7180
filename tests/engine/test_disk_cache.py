"""Compiled code on disk: found by a second process, bounded, shared by many, and never taken from anybody else."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import wasmtime

import dl
from dl.engine import default_engine
from dl.engine.code_cache import CodeCache, Compiler, content_digest
from dl.engine.disk_cache import VARIABLE, DiskCache, cache_path, open_cache
from dl.engine.private_directory import NotPrivateError, PrivateDirectory
from dl.engine.protocol import CompiledModule
from dl.engine.wasmtime.engine import WasmtimeEngine, WasmtimeModule
from tests.support.modules import MEMORY, TABLE, library, returns

ROOT = Path(__file__).resolve().parents[2]
HELLO = ROOT / "fixtures/hello/unshared/main.wasm"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of other users")


class CountingEngine(WasmtimeEngine):
    """Counts what it compiles, and what reaches its deserializer."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.compiled = 0
        self.loaded: list[bytes] = []

    def compile(self, wasm: bytes) -> WasmtimeModule:
        self.compiled += 1
        return super().compile(wasm)

    def deserialize(self, code: bytes) -> WasmtimeModule:
        self.loaded.append(code)
        return super().deserialize(code)


def module(number: int) -> bytes:
    return bytes(wasmtime.wat2wasm(f'(module (func (export "f") (result i32) i32.const {number}))'))


def compiled(engine: WasmtimeEngine, cache: DiskCache | None, wasm: bytes) -> CompiledModule:
    """Compile as a new process would, with nothing in memory."""
    return Compiler(engine, cache, CodeCache()).compile(wasm, "m")


def code_files(path: Path) -> list[Path]:
    return sorted(path.glob("*.code"))


@pytest.fixture(name="place")
def _place(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(name="cache")
def _cache(place: Path) -> DiskCache:
    return DiskCache(place)


@pytest.fixture(name="engine")
def _engine() -> CountingEngine:
    return CountingEngine()


def test_code_is_found_again(engine: CountingEngine, cache: DiskCache, place: Path) -> None:
    """What was compiled once is loaded by the next, also through another open directory, and runs."""
    compiled(engine, cache, module(1))
    assert (engine.compiled, len(code_files(place))) == (1, 1)
    compiled(engine, DiskCache(place), module(1))
    compiled(engine, cache, module(2))

    assert (engine.compiled, len(engine.loaded), len(code_files(place))) == (2, 1, 2)


def test_reading_takes_as_much_memory_as_the_file(
    engine: CountingEngine, cache: DiskCache, place: Path
) -> None:
    """A file of some kilobytes is read and verified within a megabyte."""
    compiled(engine, cache, module(1))
    compiler = Compiler(engine, cache, CodeCache())
    tracemalloc.start()
    try:
        compiler.compile(module(1), "m")
        assert cache.verify().good == 1
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert engine.compiled == 1
    assert code_files(place)[0].stat().st_size < most < 1 << 20


def test_files_and_directory_are_the_users_alone(engine: CountingEngine, place: Path) -> None:
    """Whatever the umask, what the cache makes nobody else can write, or read."""
    former = os.umask(0)
    try:
        compiled(engine, DiskCache(place / "deeper"), module(1))
    finally:
        os.umask(former)

    for made in (place, place / "deeper", *code_files(place / "deeper")):
        assert stat.S_IMODE(made.stat().st_mode) & 0o077 == 0


def test_engines_with_other_settings_have_files_of_their_own(cache: DiskCache, place: Path) -> None:
    """Code of an engine with other settings is not taken; each setting has its own file."""
    for options in ({}, {"interrupts": False}, {"simd": False}):
        engine = CountingEngine(**options)
        compiled(engine, cache, module(1))
        assert engine.compiled == 1

    assert len(code_files(place)) == 3


def test_an_engine_without_serialization_uses_no_disk(cache: DiskCache, place: Path) -> None:
    """Where code cannot be serialized, it is compiled, and nothing is written."""
    engine = CountingEngine(serialization=False)
    compiled(engine, cache, module(1))

    assert (engine.compiled, code_files(place)) == (1, [])


def test_code_from_memory_is_kept_for_the_next_process(
    engine: CountingEngine, cache: DiskCache, place: Path
) -> None:
    """A program with a cache keeps code that another program of the process, without one, has compiled."""
    memory = CodeCache()
    Compiler(engine, None, memory).compile(module(1), "m")
    Compiler(engine, cache, memory).compile(module(1), "m")

    assert (engine.compiled, len(code_files(place))) == (1, 1)


# damage


def test_a_file_cut_off_at_any_byte_is_a_miss(cache: DiskCache, place: Path, engine: CountingEngine) -> None:
    """Truncated at each of its bytes, a file is not loaded: the engine's deserializer never sees it."""
    compiled(engine, cache, module(1))
    [file] = code_files(place)
    whole = file.read_bytes()
    digest = content_digest(module(1))
    # At every byte where the checks change, and at enough of the others.
    for size in [*range(100), *range(100, len(whole), 41), *range(len(whole) - 200, len(whole))]:
        file.write_bytes(whole[:size])
        assert cache.load(engine, digest) is None
    assert engine.loaded == []
    file.write_bytes(whole)
    assert cache.load(engine, digest) is not None


def test_a_flipped_bit_anywhere_is_a_miss(cache: DiskCache, place: Path, engine: CountingEngine) -> None:
    """With any bit of the trailer, and many of the code, flipped, a file is not loaded; nor with bytes added."""
    compiled(engine, cache, module(1))
    [file] = code_files(place)
    whole = file.read_bytes()
    digest = content_digest(module(1))
    bits = [*range(8 * (len(whole) - 130), 8 * len(whole)), *range(0, 8 * (len(whole) - 130), 811)]
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        assert cache.load(engine, digest) is None
    file.write_bytes(whole + b"\0")
    assert cache.load(engine, digest) is None
    assert engine.loaded == []


def test_a_damaged_file_is_compiled_and_replaced(
    cache: DiskCache, place: Path, engine: CountingEngine
) -> None:
    """After damage the module is compiled, and the next process finds it whole again."""
    compiled(engine, cache, module(1))
    [file] = code_files(place)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    compiled(engine, DiskCache(place), module(1))

    assert engine.compiled == 2
    assert file.read_bytes() == whole


def test_the_code_of_another_module_is_not_taken(
    cache: DiskCache, place: Path, engine: CountingEngine
) -> None:
    """A whole file under another one's name is not loaded."""
    compiled(engine, cache, module(1))
    [first] = code_files(place)
    compiled(engine, cache, module(2))
    [second] = set(code_files(place)) - {first}
    second.write_bytes(first.read_bytes())

    assert cache.load(engine, content_digest(module(2))) is None


def test_code_that_the_engine_refuses_is_a_miss(cache: DiskCache, place: Path) -> None:
    """Code that is whole, but that the engine does not take, is compiled again."""

    class Refusing(CountingEngine):
        def deserialize(self, code: bytes) -> WasmtimeModule:
            raise dl.EngineError("of another version")

    engine = Refusing()
    for _ in range(2):
        compiled(engine, DiskCache(place), module(1))

    assert engine.compiled == 2


# mapped code


@pytest.fixture(name="big", scope="module")
def _big() -> bytes:
    """A module whose code is large enough to be mapped."""
    functions = "".join(f'(func (export "f{n}") (result i32) i32.const {n})' for n in range(1500))
    return bytes(wasmtime.wat2wasm(f"(module {functions})"))


on_linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc on this system")


@on_linux
def test_large_code_is_mapped_from_the_file_that_was_checked(
    cache: DiskCache, place: Path, engine: CountingEngine, big: bytes
) -> None:
    """Code from a large file is mapped and not copied, and stays when the file goes; small code is copied."""
    compiled(engine, cache, big)
    [file] = code_files(place)
    loaded = cache.load(engine, content_digest(big))

    assert isinstance(loaded, WasmtimeModule)
    assert engine.loaded == []
    assert str(file) in Path("/proc/self/maps").read_text()
    file.unlink()
    again = engine.deserialize(engine.serialize(loaded))
    assert (again.name, again.code_bytes) == (loaded.name, loaded.code_bytes)


@on_linux
def test_large_code_that_is_damaged_is_a_miss(
    cache: DiskCache, place: Path, engine: CountingEngine, big: bytes
) -> None:
    """A large file is checked before it is mapped: with a bit flipped or cut off it is not loaded."""
    compiled(engine, cache, big)
    [file] = code_files(place)
    whole = file.read_bytes()
    middle = len(whole) // 2
    for damaged in (whole[:-1], whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]):
        file.write_bytes(damaged)
        assert cache.load(engine, content_digest(big)) is None
        assert str(file) not in Path("/proc/self/maps").read_text()
    assert engine.loaded == []


def test_where_nothing_can_be_mapped_code_is_copied(
    cache: DiskCache, engine: CountingEngine, big: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine or a system that cannot map code gets the bytes."""
    compiled(engine, cache, big)
    monkeypatch.setattr(engine, "map_code", lambda file, length: None)

    assert cache.load(engine, content_digest(big)) is not None
    assert len(engine.loaded) == 1


# other people


def refused(path: Path, engine: CountingEngine) -> str:
    with pytest.raises(NotPrivateError) as caught:
        DiskCache(path)
    assert open_cache(path) is None
    return str(caught.value)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777, 0o720])
def test_a_directory_that_others_can_write_to_is_not_used(
    place: Path, engine: CountingEngine, mode: int
) -> None:
    """Writable by group or others, with or without the sticky bit, a directory is no cache; the text names it."""
    place.mkdir()
    place.chmod(mode)

    assert refused(place, engine) == f"{place} can be written by others"


def test_a_directory_below_one_that_others_can_write_to_is_not_used(
    place: Path, engine: CountingEngine
) -> None:
    """Where others can rename what is on the way, a private directory does not help; below a sticky one it does."""
    place.mkdir()
    (place / "own").mkdir(mode=0o700)
    place.chmod(0o777)
    assert refused(place / "own", engine) == f"{place} can be written by others"
    place.chmod(0o1777)
    compiled(engine, DiskCache(place / "own"), module(1))

    assert len(code_files(place / "own")) == 1


@as_root
def test_a_directory_of_another_user_is_not_used(place: Path, engine: CountingEngine) -> None:
    """The directory of somebody else, or one below it, is no cache, and nothing is made in it, also for root."""
    place.mkdir(mode=0o700)
    os.chown(place, 12345, 12345)
    assert "belongs to user 12345" in refused(place, engine)
    assert "belongs to user 12345" in refused(place / "deeper", engine)

    assert list(place.iterdir()) == []


@as_root
def test_a_link_of_another_user_is_not_followed(place: Path, engine: CountingEngine) -> None:
    """In a sticky directory, a link that somebody else has put there is not followed; one's own is."""
    place.mkdir()
    place.chmod(0o1777)
    own = place / "own"
    own.mkdir(mode=0o700)
    (place / "link").symlink_to(own)
    compiled(engine, DiskCache(place / "link"), module(1))
    assert len(code_files(own)) == 1
    os.chown(place / "link", 12345, 12345, follow_symlinks=False)

    assert "is a link that is not to be trusted" in refused(place / "link", engine)
    assert "is a link that is not to be trusted" in refused(place / "link" / "deeper", engine)


def test_links_are_walked_as_paths_are(place: Path, engine: CountingEngine) -> None:
    """Relative, absolute and chained links lead to a cache; a link into a writable directory, or to itself, does not."""
    (place / "a/b").mkdir(parents=True, mode=0o700)
    (place / "relative").symlink_to("a/../a/b")
    (place / "absolute").symlink_to(place / "relative")
    compiled(engine, DiskCache(place / "absolute"), module(1))
    assert len(code_files(place / "a/b")) == 1

    (place / "loop").symlink_to("loop")
    assert "is a link that is not to be trusted" in refused(place / "loop", engine)
    (place / "a").chmod(0o777)
    assert refused(place / "absolute", engine) == f"{place / 'a'} can be written by others"


@as_root
def test_a_file_of_another_user_is_not_loaded(cache: DiskCache, place: Path, engine: CountingEngine) -> None:
    """A file that is whole, but belongs to somebody else, is not loaded."""
    compiled(engine, cache, module(1))
    [file] = code_files(place)
    os.chown(file, 12345, 12345)

    assert cache.load(engine, content_digest(module(1))) is None
    assert engine.loaded == []


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_to_is_not_loaded(
    cache: DiskCache, place: Path, engine: CountingEngine, mode: int
) -> None:
    """A file that is whole, but writable by others, is not loaded."""
    compiled(engine, cache, module(1))
    code_files(place)[0].chmod(mode)

    assert cache.load(engine, content_digest(module(1))) is None
    assert engine.loaded == []


def _as_link(file: Path) -> None:
    file.rename(file.with_suffix(".elsewhere"))
    file.symlink_to(file.with_suffix(".elsewhere"))


def _as_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _as_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("change", [_as_link, _as_directory, _as_pipe])
def test_what_is_no_regular_file_is_not_loaded(
    cache: DiskCache, place: Path, engine: CountingEngine, change: Callable[[Path], None]
) -> None:
    """A link, a directory or a pipe in place of a file is a miss, and nobody waits for the pipe."""
    compiled(engine, cache, module(1))
    change(code_files(place)[0])

    assert cache.load(engine, content_digest(module(1))) is None
    assert engine.loaded == []


def test_a_directory_that_is_opened_to_others_later_is_not_used(
    cache: DiskCache, place: Path, engine: CountingEngine
) -> None:
    """Made writable by others while it is open, a directory is neither read nor written."""
    compiled(engine, cache, module(1))
    place.chmod(0o777)

    assert cache.load(engine, content_digest(module(1))) is None
    compiled(engine, cache, module(2))
    assert len(code_files(place)) == 1


@as_root
@pytest.mark.timeout(60)
def test_a_process_with_other_rights_has_no_cache(place: Path) -> None:
    """Set-uid and set-gid programs, whose starter chooses the environment, use no directory."""
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "from dl.engine.private_directory import PrivateDirectory\n"
        "os.setresgid(*([int(sys.argv[3])] * 1), 0, 0) if sys.argv[4] == 'g' else os.setresuid(int(sys.argv[3]), 0, 0)\n"
        "try: PrivateDirectory(Path(sys.argv[2]))\n"
        "except Exception as error: print(error)\n"
    )
    for which in "ug":
        done = subprocess.run(
            [sys.executable, "-c", script, str(ROOT), str(place), "12345", which],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert (
            done.stdout == "the process runs with the rights of another user than the one that started it\n"
        )
    assert not place.exists()


def test_a_guest_that_can_reach_the_cache_gets_none(place: Path, tmp_path: Path) -> None:
    """A program whose directories hold the cache, or lie in it, links without; by whatever path they are given."""
    place.mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path)
    for directory in (tmp_path, place, place / "x", tmp_path / "link", tmp_path / "other" / ".."):
        assert open_cache(place, [str(directory)]) is None
    assert open_cache(place, [str(tmp_path / "other")]) is not None


# many at once

RACER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from dl.engine import default_engine
from dl.engine.code_cache import CodeCache, Compiler
from dl.engine.disk_cache import DiskCache
from dl.wasm.types import FuncType

class NoBoundary:
    def enter_host(self): pass
    def exit_host(self, token): pass

engine, wasm = default_engine(), sys.stdin.buffer.read()
for _ in range(10):
    code = Compiler(engine, DiskCache(Path(sys.argv[2])), CodeCache()).compile(wasm, "m")
    store = engine.new_store(engine.host_functions(NoBoundary()))
    assert store.instantiate(code, "m").function("f", FuncType((), ("i32",)))() == 7
    store.close()
"""


@pytest.mark.timeout(300)
def test_sixteen_processes_race_for_one_key(place: Path, engine: CountingEngine) -> None:
    """Sixteen processes that read and write one file at the same time all run the right code; nothing is left over."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(ROOT), str(place)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(16)
    ]
    outcomes = [process.communicate(module(7), timeout=280)[1] for process in processes]

    assert [process.returncode for process in processes] == [0] * 16, outcomes
    assert len(list(place.iterdir())) == 1
    assert DiskCache(place).verify().removed == ()


@pytest.mark.timeout(120)
def test_threads_share_a_cache_while_it_is_cleared(cache: DiskCache, place: Path) -> None:
    """Threads load and keep code while others clear and verify the directory; each gets the right code."""
    stop = threading.Event()

    def work(start: int) -> int:
        engine = default_engine()
        for number in range(start, start + 25):
            assert Compiler(engine, cache, CodeCache()).compile(module(number % 7), "m").code_bytes
        return 1

    def disturb() -> None:
        while not stop.is_set():
            cache.clear()
            cache.verify()

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(work, range(4))) == 4
    finally:
        stop.set()
        disturber.join()
    assert cache.verify().removed == ()


# bounds


def test_the_least_recently_used_files_go(place: Path, engine: CountingEngine) -> None:
    """Beyond its bytes the directory loses what was used longest ago, until a tenth is free; what was just used stays."""
    cache = DiskCache(place)
    sizes = []
    for number in range(8):
        compiled(engine, cache, module(number))
        for file in code_files(place):
            if file.stat().st_mtime > time.time() - 100:
                os.utime(file, (1_000_000 + number, 1_000_000 + number))
                sizes.append(file.stat().st_size)
    assert cache.load(engine, content_digest(module(0))) is not None  # used now
    small = DiskCache(place, most_bytes=max(sizes) * 4)
    compiled(engine, small, module(100))
    fresh = DiskCache(place)

    assert small.usage().bytes <= max(sizes) * 4
    assert fresh.load(engine, content_digest(module(0))) is not None
    assert fresh.load(engine, content_digest(module(100))) is not None
    assert fresh.load(engine, content_digest(module(1))) is None


def test_there_are_not_more_files_than_a_process_can_look_through(
    place: Path, engine: CountingEngine
) -> None:
    """Small files do not fill the directory without end, whether one process adds them or many."""
    one = DiskCache(place, most_files=10)
    for number in range(25):
        compiled(engine, one, module(number))
    kept = one.usage().files
    for number in range(25, 30):
        compiled(engine, DiskCache(place, most_files=10), module(number))

    assert 9 <= kept <= 10
    assert DiskCache(place).usage().files <= 10
    assert DiskCache(place).load(engine, content_digest(module(29))) is not None


def test_remains_of_processes_that_died_are_removed(place: Path, engine: CountingEngine) -> None:
    """A file that was being written an hour ago is removed; a younger one, and files of others, stay."""
    cache = DiskCache(place)
    old, young, other = place / ".old.tmp", place / ".young.tmp", place / "notes.txt"
    for file in (old, young, other):
        file.write_text("x")
    os.utime(old, (1_000_000, 1_000_000))
    compiled(engine, cache, module(1))

    assert (old.exists(), young.exists(), other.exists()) == (False, True, True)
    cache.clear()
    assert (young.exists(), other.exists(), code_files(place)) == (False, True, [])


def test_a_full_disk_or_a_lost_directory_fails_nothing(
    place: Path, engine: CountingEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """When files cannot be written, modules are compiled, and the log has a line."""
    caplog.set_level(logging.INFO, "dl.cache")
    cache = DiskCache(place)
    place.rmdir()
    compiled(engine, cache, module(1))

    assert engine.compiled == 1
    assert "not kept: [Errno 2]" in caplog.text


# choosing


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
    """The second run of a program adds nothing to the cache and prints the same; without a cache, nothing is kept."""
    plain = run("--no-cache", str(HELLO))
    assert (plain.returncode, place.exists()) == (0, False)
    first = run(str(HELLO))
    files = {file: file.stat().st_mtime_ns for file in code_files(place)}
    second = run(str(HELLO))

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
    assert f"{count} files" in run("cache", "info").stdout
    assert run("cache", "verify").returncode == 0

    damaged = code_files(place)[0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    found = run("cache", "verify", "--json")
    assert (found.returncode, json.loads(found.stdout)) == (1, {"good": count - 1, "removed": [damaged.name]})
    assert f"{count - 1} files" in run("cache", "clear").stdout
    assert code_files(place) == []

    assert "DLRUN_CACHE is off" in run("cache", "info", cache="off").stdout
    assert run("cache", "clear", cache="off").stderr == "dlrun: error: the cache is off: DLRUN_CACHE is off\n"


def test_a_private_directory_closes(place: Path) -> None:
    """Closing a directory twice is harmless."""
    directory = PrivateDirectory(place)
    directory.close()
    directory.close()
