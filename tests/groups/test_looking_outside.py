"""What the host looks up in a group while its thread is outside guest code is no safe point of the program."""

from __future__ import annotations

import threading

import pytest

import dl
from tests.support.groups import SECONDS, program, until
from threads import DETACHED


class Stop(Exception):
    """What the tests cancel threads with."""


def test_a_look_at_the_table_after_the_program_ended() -> None:
    """It tells what is there, as before the end, and the linker can be closed after it."""
    with program() as p:
        before = p.main.table()
        started = threading.Event()
        p.on_thread = lambda _number, _record: (started.wait(SECONDS), p.call(p.here(), "trap"))
        p.start()
        started.set()
        until(lambda: p.linker.program.ended is not None and p.is_alone())

        assert p.main.table() == before
        assert p.main.own.replica.state == DETACHED
        with pytest.raises(dl.GuestThreadError, match="trap"):
            p.call(p.main, "count", p.word(0))


def test_a_look_at_the_table_is_not_interrupted() -> None:
    """An interrupt of the thread comes where the thread next enters guest code."""
    with program() as p:
        p.main.own.replica.interrupt_with(Stop())
        p.linker.program.rendezvous.nudge()

        p.main.table()

        with pytest.raises(Stop):
            p.call(p.main, "count", p.word(0))
        p.call(p.main, "count", p.word(0))
