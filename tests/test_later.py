"""`dl.later`: parts that are made when they are first asked for."""

from __future__ import annotations

import threading

import pytest

from dl.later import Later
from tests.support.command_line import seen_after_hello

SELDOM = (
    "dl.instances.program_instances",
    "dl.instances.externals",
    "dl.wamr.mode",
    "dl.wamr.program",
    "dl.link.close",
    "dl.link.slots",
    "dl.link.why",
    "dl.glue.trampolines",
    "dl.api.callbacks",
    "dl.api.guest",
    "dl.api.loaded",
    "dl.api.memory_map",
    "dl.wasm.lines",
    "dl.engine.wasmtime.externals",
    "dl.engine.wasmtime.stack",
    "termios",
    "socket",
    "opcode",
)
"""What a program needs that is looked into, traps, closes libraries or makes functions at run time."""


def test_threads_that_ask_at_once_get_one() -> None:
    """Sixteen threads that call for a part together get the same one, which was made once."""
    made: list[object] = []
    got: list[object] = []
    together = threading.Barrier(16)

    def make() -> object:
        made.append(object())
        return made[-1]

    part = Later(make)

    def ask() -> None:
        together.wait(10)
        got.append(part())

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert len(made) == 1
    assert got == made * 16


def test_a_part_that_cannot_be_made_is_tried_again() -> None:
    """An error while it is made goes to who asked, and leaves nothing behind."""
    answers = [None, 7]

    def make() -> int:
        answer = answers.pop(0)
        if answer is None:
            raise OSError("not yet")
        return answer

    part = Later(make)
    with pytest.raises(OSError, match="not yet"):
        part()
    assert part.made is None

    assert part() == part.made == 7


def test_a_program_that_just_runs_imports_nothing_for_others() -> None:
    """A program that is linked, runs and ends makes no part that it does not need, and imports none of their files."""
    assert seen_after_hello("sys", f"[n for n in {SELDOM!r} if n in sys.modules]") == "[]"
