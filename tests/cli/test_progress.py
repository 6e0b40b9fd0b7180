"""A run that compiles for long says so, once, and only to a terminal."""

from __future__ import annotations

import pytest

from dl.cli.progress import SlowNotice


def test_a_slow_start_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    """One line names the program, and that the next run is quicker."""
    with SlowNotice("big.wasm", kept=True, seconds=0.01, watched=True) as notice:
        assert notice.told.wait(30)
    assert capfd.readouterr().err.strip() == "compiling big.wasm; the code is kept for the next run"


@pytest.mark.parametrize("watched", [False, True])
def test_a_quick_start_and_a_pipe_are_told_nothing(watched: bool, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither when the program is linked before the time, nor when nobody looks."""
    with SlowNotice("small.wasm", kept=False, seconds=30 if watched else 0.0, watched=watched) as notice:
        notice.stop()
    assert not notice.told.is_set()
    assert capfd.readouterr().err == ""
