"""Ctrl-C, several times within a millisecond, at every line of a load or a close: groups stay equal, and nothing leaks."""

from __future__ import annotations

import contextlib
import linecache
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

import dl
from tests.support.groups import SECONDS, Program, held, library, program, state_of
from tests.support.paths import ROOT

SEED = int(os.environ.get("DL_SEED", "7"))
STEP = 1 if "DL_SOAK_SECONDS" in os.environ else 11
"""The short form takes each eleventh line, from one that the seed decides."""
LINK = (str(ROOT / "dl" / "link"), str(ROOT / "dl" / "callbacks.py"))

GOOD = library(1, constructor=True, thread_local=True)
BAD = library(2, constructor=True, traps=True, thread_local=True)
UNDEFINED = library(3, undefined=True)

LOADS = {"good": GOOD, "constructor traps": BAD, "cannot be linked": UNDEFINED}


def press(times: int) -> None:
    """Ctrl-C, so many times, at once."""
    for _ in range(times):
        signal.raise_signal(signal.SIGINT)


def _takes_no_signal(frame: FrameType) -> bool:
    """Whether a line is one where the interpreter runs trace functions, and never a signal handler.

    A `with` line is also its end: trace functions run there a step before the interpreter marks the exception as handled.
    A `try` is an instruction that does nothing, and handlers around it do not cover it.
    """
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip()
    return line.startswith(("with ", "try:"))


class Presser:
    """Presses Ctrl-C when the n-th line of `dl/link` or of callbacks is about to run, and at the next until it has `times`.

    Attributes:
        lines: how many lines have run.
    """

    def __init__(self, at: int, times: int) -> None:
        self.at, self.times = at, times
        self.lines = 0

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(LINK):
            return None
        if event == "line" and not _takes_no_signal(frame):
            self.lines += 1
            if self.at <= self.lines < self.at + self.times:
                press(1)
        return self

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(None)


@contextlib.contextmanager
def followed() -> Iterator[tuple[Program, Callable[[], None]]]:
    """A program, with a second thread; and what checks that both threads' groups are equal, and that a load works."""
    with program() as p:
        asked, answered, leave = threading.Event(), threading.Event(), threading.Event()
        answers: list[object] = []

        def follow(group: dl.InstanceGroup) -> None:
            while True:
                assert asked.wait(SECONDS)
                asked.clear()
                if leave.is_set():
                    return
                answers.append(state_of(group))
                answered.set()

        thread = p.linker.spawn(follow)

        def check() -> None:
            asked.set()
            assert answered.wait(SECONDS)
            answered.clear()
            assert answers.pop() == state_of(p.main)
            assert p.linker.program.rendezvous.statistics().guest == 0

        check()  # its thread has begun, and has all that it takes
        yield p, check
        leave.set()
        asked.set()
        thread.join(SECONDS)


def attempt(p: Program, wasm: bytes) -> str:
    """Load a library; tell how that ended."""
    try:
        p.main.dlopen(wasm, name="lib.so")
    except KeyboardInterrupt:
        return "pressed"
    except dl.DlError:
        return "failed"
    return "loaded"


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.timeout(600)
@pytest.mark.soak
def test_at_every_line(load: str, times: int) -> None:
    """Pressed at any line of a load, and at the lines after it: the load is whole or gone, in all groups."""
    wasm = LOADS[load]
    lines = count_lines(wasm)
    assert lines > 50
    print(f"seed {SEED}")
    at = 1 + SEED % STEP
    while at <= lines:
        # As many in one program as fail: a load that succeeds ends it.
        with followed() as (p, check):
            before = held(p.linker)
            while at <= lines:
                presser = Presser(at, times)
                at += STEP
                try:
                    with presser.watching():
                        outcome = attempt(p, wasm)
                except KeyboardInterrupt:
                    outcome = "pressed"  # held back to the very end
                check()
                if p.linker.statistics().modules != before[0]:
                    break
                assert outcome != "loaded"
                assert held(p.linker) == before, f"line {at - STEP} of {lines}: {outcome}"
            other = p.main.dlopen(library(9), name="other.so")
            assert p.main.dlsym(other, "value")(1) == 10
            check()


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.timeout(600)
@pytest.mark.soak
def test_at_every_line_of_a_close(times: int) -> None:
    """Pressed at any line of a dlclose, and at the lines after it: the library is open or gone, in all groups."""
    print(f"seed {SEED}")
    with followed() as (p, check):

        def close(handle: int, presser: Presser) -> None:
            with contextlib.suppress(KeyboardInterrupt), presser.watching():
                p.main.dlclose(handle)

        counter = Presser(0, 0)
        close(p.main.dlopen(GOOD, name="lib.so"), counter)
        assert counter.lines > 20
        check()  # the second thread has forgotten it too
        before = p.linker.statistics()
        for at in range(1 + SEED % STEP, counter.lines + 1, STEP):
            handle = p.main.dlopen(GOOD, name="lib.so")
            assert p.main.dlsym(handle, "value")(1) == 2
            close(handle, Presser(at, times))
            check()
            if p.linker.statistics().modules != before.modules:
                p.main.dlclose(handle)  # nothing was closed
            assert p.linker.statistics().modules == before.modules, f"line {at} of {counter.lines}"
            with pytest.raises(dl.InvalidHandleError):
                p.main.dlclose(handle)
        check()
        now = p.linker.statistics()
        assert (now.side_regions, now.global_scope) == (before.side_regions, before.global_scope)


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.timeout(600)
@pytest.mark.soak
def test_at_every_line_of_making_and_closing_a_callback(times: int) -> None:
    """Pressed at any line of making or closing a callback: no table index is lost, and groups are equal."""
    print(f"seed {SEED}")
    with followed() as (p, check):
        pool = p.linker.parts.slots().pool

        def make_and_close(presser: Presser) -> None:
            made = []
            with contextlib.suppress(KeyboardInterrupt), presser.watching():
                made.append(p.linker.callback("(i32) -> i32", lambda n: n))
                made[0].close()
            for callback in made:
                callback.close()

        make_and_close(Presser(0, 0))
        counter = Presser(0, 0)
        make_and_close(counter)
        assert counter.lines > 20
        for at in range(1 + SEED % STEP, counter.lines + 1, STEP):
            make_and_close(Presser(at, times))
            assert pool.in_use() == 0, f"line {at} of {counter.lines}"
            check()


def count_lines(wasm: bytes) -> int:
    with followed() as (p, _check):
        presser = Presser(0, 0)
        with presser.watching():
            attempt(p, wasm)
        return presser.lines


@pytest.mark.timeout(120)
def test_bursts_at_any_time() -> None:
    """Bursts of two to four within 0.6 ms, at random moments of loads: all groups stay equal, and nothing leaks."""
    print(f"seed {SEED}")
    choose = random.Random(SEED)
    main = threading.main_thread().ident
    assert main is not None
    with followed() as (p, check):
        before = held(p.linker)
        for _ in range(40):
            began, over = threading.Event(), threading.Event()
            delay, gaps = (
                choose.uniform(0, 0.006),
                [choose.uniform(0, 0.0002) for _ in range(choose.randint(2, 4))],
            )

            def burst(
                delay: float = delay, gaps: list[float] = gaps, began: Any = began, over: Any = over
            ) -> None:
                began.wait(SECONDS)
                time.sleep(delay)
                for gap in gaps:
                    if over.is_set():
                        return
                    signal.pthread_kill(main, signal.SIGINT)
                    time.sleep(gap)

            thread = threading.Thread(target=burst)
            thread.start()
            outcome = "pressed"
            with contextlib.suppress(KeyboardInterrupt):
                began.set()
                outcome = attempt(p, choose.choice([BAD, UNDEFINED]))
            over.set()
            while thread.is_alive():
                with contextlib.suppress(KeyboardInterrupt):
                    thread.join(SECONDS)
            with contextlib.suppress(KeyboardInterrupt):
                time.sleep(0.001)
            check()
            assert held(p.linker) == before, outcome
