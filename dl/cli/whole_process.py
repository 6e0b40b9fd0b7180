"""`dlrun` as a process of its own: it begins and ends without the work that only a longer life would repay."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from dl.cli import code_file

_state = {"held": False}


def hold_collector() -> None:
    """Look for no cycles while the linker is imported and the program is linked: what they make stays, and none is found."""
    gc.disable()
    _state["held"] = True


def release_collector() -> None:
    """Look for cycles again, among what is made from now on; does nothing if it was not held."""
    if _state["held"]:
        _state["held"] = False
        gc.freeze()
        gc.enable()


def run_process(main: Callable[[], int]) -> NoReturn:
    """Run a command line, and end the process with its exit code."""
    hold_collector()
    path = code_file.path()
    if path is None:
        _end(main())
    code = code_file.CodeFile(path)
    sys.meta_path.insert(0, code)
    exit_code = main()
    code.update()
    _end(exit_code)


def _end(code: int) -> NoReturn:
    """End the process as `sys.exit` does, but without taking apart the objects of the interpreter, which the system frees.

    That takes as long as linking a program. What others want done at the end is done: threads that are no daemons are waited
    for, functions of `atexit` run, and output is written. Where somebody looks at the process (a debugger, a profiler,
    `python -i`), or output cannot be written, it ends as usual.
    """
    if sys.flags.inspect or os.environ.get("PYTHONINSPECT") or sys.gettrace() or sys.getprofile():
        sys.exit(code)
    try:
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        atexit._run_exitfuncs()  # noqa: SLF001  as `os.fork`'s children of multiprocessing end
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (Exception, KeyboardInterrupt):  # noqa: BLE001  told as usual
        sys.exit(code)
    os._exit(code)
