"""What a trap says of the guest's stack."""

from __future__ import annotations

import dl
from dl.text import runs


def test_a_frame_that_repeats_is_said_once() -> None:
    """A stack overflow shows the recursion and what led to it, and not eight times the same frame."""
    error = dl.TrapError("stack overflow", 0, ["a!deep"] * 5000 + ["a!start", "main!_start"])

    assert str(error) == "guest trapped: stack overflow (in a!deep, 5000 times < a!start < main!_start)"


def test_two_frames_that_call_each_other_are_said_once() -> None:
    """Functions that call each other are one repetition, too; and what repeats has a bound."""
    frames = ["a!even", "a!odd"] * 100 + ["a!start"]

    assert runs(frames) == ["a!even < a!odd, 100 times", "a!start"]
    assert runs(["a!f", "a!g", "a!f"]) == ["a!f", "a!g", "a!f"]
    assert runs([]) == []
    assert runs(["a!f"] * 2) == ["a!f, at least 2 times"]
