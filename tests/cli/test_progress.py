"""A run that compiles for long says so, once, and only to a terminal."""

from __future__ import annotations

import threading

import pytest

import dl
from dl.cli.progress import SlowNotice
from tests.support.modules import library

LARGE = library(
    *(
        f'(func (export "f{n}") (param i32) (result i32) {"(i32.add (local.get 0) " * 90} (i32.const {n}) {")" * 90})'
        for n in range(100)
    )
)
"""Takes the engine some hundredths of a second."""


def test_a_slow_start_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    """One line names what is compiled, and that the next run is quicker."""
    with (
        SlowNotice("app.wasm", kept=True, seconds=0.001, watched=True) as notice,
        dl.Linker(None, cache=False) as linker,
    ):
        for number in range(100):  # one is enough, unless the thread that tells is not run meanwhile
            linker.main_group.dlopen(LARGE + bytes((0, 2, 1, number)), name=f"dir/{number}/large.so")
            if notice.told.wait(0.1):
                break
        assert notice.told.is_set()
    said = [line.strip() for line in capfd.readouterr().err.splitlines()]
    assert said == ["compiling large.so for app.wasm; the code is kept for the next run"]


@pytest.mark.parametrize("watched", [False, True])
def test_a_quick_start_and_a_pipe_are_told_nothing(watched: bool, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither when the program is linked before the time, nor when nobody looks."""
    with SlowNotice("small.wasm", kept=False, seconds=30 if watched else 0.0, watched=watched) as notice:
        notice.stop()
    assert not notice.told.is_set()
    assert capfd.readouterr().err == ""


def test_what_is_not_compiled_is_not_told(capfd: pytest.CaptureFixture[str]) -> None:
    """A program that takes long by itself is not said to be compiled."""
    looked = threading.Event()
    with SlowNotice("slow.wasm", kept=True, seconds=0.001, watched=True) as notice:
        looked.wait(0.05)
    assert not notice.told.is_set()
    assert capfd.readouterr().err == ""
