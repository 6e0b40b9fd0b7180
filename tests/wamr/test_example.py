"""The example of a program of WAMR's kind prints what it promises."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT


@pytest.mark.parametrize(
    ("words", "first", "last"),
    [
        ((), "mode 18: early binding, malloc from the root", "look-ups of the guest: 5"),
        (
            ("1",),
            "mode 1: lazy binding, malloc from the host",
            "two heaps would be mixed (ask for 'root', bit 1 of the mode)",
        ),
    ],
)
def test_the_example(words: tuple[str, ...], first: str, last: str) -> None:
    """`python examples/wamr_program.py`, in a mode that fits its root and in one that does not."""
    command = [sys.executable, "examples/wamr_program.py", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    lines = done.stdout.splitlines()
    assert first in lines
    assert lines[-1].endswith(last)
    assert words or "from the host: add42(8) = 50" in lines
