"""Compiled code on disk: found by a second process, bounded, shared by many, and never taken from anybody else."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import wasmtime

import dl
from dl.engine import default_engine
from dl.engine.code_cache import CodeCache, Compiler, content_digest
from dl.engine.disk_cache import DiskCache
from dl.engine.wasmtime.engine import WasmtimeModule
from tests.support.disk_caches import CountingEngine, code_files, compiled, module
from tests.support.paths import ROOT


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
