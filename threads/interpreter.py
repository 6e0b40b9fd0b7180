"""In which interpreter of the process this is: the main one, or a sub-interpreter."""

from __future__ import annotations

import _thread
from functools import cache
from importlib import import_module

__all__ = ["is_main_interpreter"]


@cache
def is_main_interpreter() -> bool:
    """Whether this is the interpreter that gets signals, and may have daemon threads.

    CPython has no public name for it: `_thread` has one since 3.12, and the modules that make sub-interpreters before.
    """
    known = getattr(_thread, "_is_main_interpreter", None)
    if known is not None:
        return bool(known())
    try:
        interpreters = import_module("_xxsubinterpreters")
    except ImportError:  # another implementation, without them
        return True
    return bool(interpreters.get_current() == interpreters.get_main())
