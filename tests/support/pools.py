"""A program for pools, as data, and what their tests ask about processes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import dl
from tests.support import named_functions
from tests.support.modules import calls, imports, module, returns

SECONDS = 30

SPEC = dl.Spec(
    main=module(
        imports("forty"),
        "(global $n (mut i32) i32.const 0)",
        '(func (export "count") (result i32) (global.set $n (i32.add (global.get $n) (i32.const 1))) global.get $n)',
        '(func (export "trap") (result i32) call $inner)',
        "(func $inner (result i32) unreachable)",
        '(func (export "spin") (loop br 0))',
        calls("ask", "forty"),
        returns("seven", 7),
    ),
    name="counting",
    imports={"env": {"forty": named_functions.forty}},
    default_files=False,
    interrupts=True,
)


def is_there(process: int) -> bool:
    """Whether a process exists, as a zombie or otherwise."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def until(path: Path) -> None:
    """Wait until a file is there."""
    end = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.005)


def until_gone(processes: list[int]) -> None:
    """Wait until processes that are not our children are gone."""
    end = time.monotonic() + SECONDS
    while any(map(is_there, processes)):
        assert time.monotonic() < end, processes
        time.sleep(0.01)
