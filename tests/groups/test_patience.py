"""How long the end of a program waits for its threads."""

from __future__ import annotations

import threading

import pytest

from dl.groups import endings


def test_a_process_that_stood_still_gives_its_threads_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that needs a second order to end gets it, though more time than the end has passed before the first."""
    monkeypatch.setattr(endings, "PATIENCE_SECONDS", 0.2)
    ended = threading.Event()
    orders: list[int] = []

    def remind() -> None:
        orders.append(1)
        if len(orders) == 1:
            threading.Event().wait(0.3)  # as a machine that is suspended
        else:
            ended.set()

    assert endings.await_end([("a thread", ended)], remind)


def test_a_thread_that_never_ends_is_waited_for_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The time is for all threads together, and each one that has not ended is named."""
    monkeypatch.setattr(endings, "PATIENCE_SECONDS", 0.05)
    threads = [(name, threading.Event()) for name in ("one", "two", "three")]
    threads[1][1].set()
    orders: list[int] = []

    with caplog.at_level("WARNING"):
        assert not endings.await_end(threads, lambda: orders.append(1))

    assert len(orders) < 5
    assert [record.getMessage().split()[0] for record in caplog.records] == ["one", "three"]
