"""What a child made by `os.fork` must not inherit: locks that threads of the parent hold, which did not come along.

A program of the parent cannot be used in a child (`dl.errors.ProgramForkedError`). A new one can be linked there: what programs
share in a process begins anew.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


def in_forked_child(action: Callable[[], None]) -> None:
    """Have an action called in every child made by `os.fork`, before anything else runs there; it must take no lock."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=action)


def renew(lock: threading.Lock) -> None:
    """Free a lock in a forked child, whoever held it in the parent."""
    lock._at_fork_reinit()  # type: ignore[attr-defined]  # noqa: SLF001  what the standard library does with its own
