"""How soon threads of Python take turns while one of them waits for many.

A barrier is over when every thread in guest code has run a few lines of Python at its safe point. Each of them needs the GIL,
and a thread of Python that computes gives it up only when it is asked to, after the interpreter's switch interval: 5 ms. So a
barrier with 32 such groups beside one busy thread would take 160 ms. While barriers wait, the interval is `HURRIED_SECONDS`,
as `sys.setswitchinterval` sets it for the whole process; with the last of them it is what it was. A busy thread is asked more
often meanwhile, which costs it a few percent of that time.

Rejected: a shorter interval for the life of a program, which every thread of the host would pay for always.
"""

from __future__ import annotations

import os
import sys
import threading

__all__ = ["HURRIED_SECONDS", "SWITCH_INTERVAL", "SwitchInterval"]

HURRIED_SECONDS = 100e-6
"""Seconds: long enough for the lines of a safe point, so that few threads are stopped inside of them."""


class SwitchInterval:
    """Shortens the interpreter's switch interval while anybody asks for it.

    `_lock` guards who asks, and the change of the interval; a leaf, held for a few steps.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._askers: set[int] = set()
        self._former = 0.0

    def hurry(self, asker: object) -> None:
        """Ask for a short interval until `relax`."""
        with self._lock:
            if not self._askers:
                self._former = sys.getswitchinterval()
            self._askers.add(id(asker))
            if self._former > HURRIED_SECONDS:
                sys.setswitchinterval(HURRIED_SECONDS)

    def relax(self, asker: object) -> None:
        """Ask for it no longer; nothing for who does not ask. An interval that somebody has set meanwhile stays."""
        if id(asker) in self._askers:
            with self._lock:
                if len(self._askers) == 1:
                    self._restore()  # first: a Ctrl-C after it finds the asker still there, and all is done again
                self._askers.discard(id(asker))

    def forked(self) -> None:
        """Forget who asks, in a forked child: those are threads of the parent."""
        self._lock._at_fork_reinit()  # type: ignore[attr-defined]  # noqa: SLF001  as the standard library does
        if self._askers:
            self._askers.clear()
            self._restore()

    def _restore(self) -> None:
        if abs(sys.getswitchinterval() - HURRIED_SECONDS) < 1e-6:
            sys.setswitchinterval(self._former)


SWITCH_INTERVAL = SwitchInterval()
"""The process's one."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=SWITCH_INTERVAL.forked)
