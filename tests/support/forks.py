"""Checks that run in a forked child."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable


def in_child(check: Callable[[], object]) -> None:
    """Run a check in a forked child; it must return within the test's time limit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 and later warn of what is tested here
        child = os.fork()
    if child == 0:
        status = 1
        try:
            check()
            status = 0
        except BaseException:  # noqa: BLE001  the child must not return into the test run
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
