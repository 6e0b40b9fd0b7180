"""Hot replacement: the recipe of docs/hot-replacement.md, under load and when something fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

import dl
from tests.support.paths import ROOT

sys.path.insert(0, str(ROOT / "examples"))
from hot_replacement import FIXTURES, Replaceable, move_meter, run

SECONDS = 60


@pytest.fixture
def linker() -> Iterator[dl.Linker]:
    with dl.Linker(None, library_path=[FIXTURES], memory=dl.MemoryType(shared=True)) as made:
        yield made


def version(meter: Replaceable, group: dl.InstanceGroup) -> tuple[int, int]:
    """Which version is there, and what it has added up."""
    with meter.use(group) as lib:
        return lib.version(), lib.total()


def test_no_call_fails_and_none_is_lost(linker: dl.Linker) -> None:
    """Eight threads call while the library is replaced sixty times; each call reaches a version, and each counts once."""
    group = linker.main_group
    meter = Replaceable(group, "meter1.so")
    events = linker.events.queue(["loaded", "unloaded", "failed"])
    done, seen = threading.Event(), set[int]()

    def work(own: dl.InstanceGroup) -> int:
        calls = 0
        while not done.is_set():
            with meter.use(own) as lib:
                lib.add(1)
                seen.add(lib.version())
            calls += 1
            threading.Event().wait(0.001)  # other threads have their turn
        return calls

    workers = [linker.spawn(work) for _ in range(8)]
    for number in range(60):
        meter.replace(group, f"meter{(number + 1) % 2 + 1}.so", move_meter)
    done.set()
    calls = sum(worker.join(SECONDS) for worker in workers)
    assert version(meter, group) == (1, calls)
    assert seen == {1, 2}
    kinds = [str(event.kind) for _ in range(len(events)) if (event := events.get(0))]
    assert kinds == ["loaded", "unloaded"] * 60
    assert len(linker.modules) == 1


def test_a_version_that_refuses_the_state_is_not_taken(linker: dl.Linker) -> None:
    """The old version stays, with its state, and the refused one is unloaded."""
    group = linker.main_group
    meter = Replaceable(group, "meter1.so")
    with meter.use(group) as lib:
        lib.add(5)

    def refuse(old: dl.Library, new: dl.Library) -> None:
        raise RuntimeError(f"{new.version()} after {old.version()}")

    with pytest.raises(RuntimeError, match="2 after 1"):
        meter.replace(group, "meter2.so", refuse)
    with pytest.raises(dl.LibraryNotFoundError):
        meter.replace(group, "meter3.so", move_meter)
    assert version(meter, group) == (1, 5)
    assert len(linker.modules) == 1
    meter.replace(group, "meter2.so", move_meter)
    assert version(meter, group) == (2, 5)


def test_a_call_inside_a_call_does_not_wait_for_the_replacement(linker: dl.Linker) -> None:
    """A thread that uses the library twice, one inside the other, ends both; the replacement waits for it."""
    group = linker.main_group
    meter = Replaceable(group, "meter1.so")
    inside = threading.Event()

    def work(own: dl.InstanceGroup) -> tuple[int, int]:
        with meter.use(own):
            inside.set()
            deadline = time.monotonic() + SECONDS
            while not meter._switching and time.monotonic() < deadline:
                threading.Event().wait(0.002)
            return version(meter, own)

    worker = linker.spawn(work)
    assert inside.wait(SECONDS)
    meter.replace(group, "meter2.so", move_meter)
    assert worker.join(SECONDS) == (1, 0)
    assert version(meter, group) == (2, 0)


def test_ctrl_c_while_calls_are_waited_for(linker: dl.Linker) -> None:
    """The replacement is given up: the old version stays, and calls go on."""
    group = linker.main_group
    meter = Replaceable(group, "meter1.so")
    inside, leave = threading.Event(), threading.Event()

    def work(own: dl.InstanceGroup) -> None:
        with meter.use(own):
            inside.set()
            assert leave.wait(SECONDS)

    def press() -> None:
        while not meter._switching:
            threading.Event().wait(0.002)
        os.kill(os.getpid(), signal.SIGINT)

    worker = linker.spawn(work)
    assert inside.wait(SECONDS)
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        presser = threading.Thread(target=press)
        presser.start()
        with pytest.raises(KeyboardInterrupt):
            meter.replace(group, "meter2.so", move_meter)
        presser.join(SECONDS)
    finally:
        signal.signal(signal.SIGINT, former)
        leave.set()
    worker.join(SECONDS)
    assert not meter._switching
    assert version(meter, group) == (1, 0)
    assert len(linker.modules) == 1


def test_many_replacements_leave_nothing_behind(linker: dl.Linker) -> None:
    """After a hundred replacements the program holds what it held after the first."""
    group = linker.main_group
    meter = Replaceable(group, "meter1.so")
    sizes = set()
    for number in range(100):
        meter.replace(group, f"meter{(number + 1) % 2 + 1}.so", move_meter)
        now = linker.statistics()
        if number % 2 == 0 and number > 1:
            sizes.add((now.modules, now.side_bytes, now.side_regions, now.table_elements, now.memory_bytes))
    assert len(sizes) == 1


@pytest.mark.soak
def test_replacements_under_full_load() -> None:
    """Threads that do nothing but call, and a thread that does nothing but replace, as long as asked."""
    said = run(float(os.environ.get("DL_SOAK_SECONDS", "1")))
    assert "none failed" in said


def test_the_example_runs() -> None:
    """`python examples/hot_replacement.py`."""
    command = [sys.executable, "examples/hot_replacement.py", "--seconds", "0.3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=True)
    assert "none failed" in done.stdout
