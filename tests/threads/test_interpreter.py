"""Sub-interpreters: they know that they are, and a linker is refused there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from threads.interpreter import is_main_interpreter

CHECK = """
import sys
sys.path[:] = {path!r}
import dl
from threads.interpreter import is_main_interpreter
assert not is_main_interpreter()
try:
    dl.Linker(None)
except dl.LinkerUsageError as error:
    assert "ProcessPool" in str(error), error
else:
    raise AssertionError("a linker was made")
print("refused", flush=True)
"""

PROGRAM = """
import sys
try:
    import _interpreters as interpreters
    run = interpreters.exec
except ImportError:
    import _xxsubinterpreters as interpreters
    run = interpreters.run_string
made = interpreters.create()
failed = run(made, {check!r})
interpreters.destroy(made)
sys.exit(str(failed) if failed else 0)
"""


def test_this_is_the_main_interpreter() -> None:
    """Tests run in the main interpreter."""
    assert is_main_interpreter()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_linker_is_refused_in_a_sub_interpreter() -> None:
    """There, making a linker is an error that says what to do instead."""
    program = PROGRAM.format(check=CHECK.format(path=[str(ROOT), *sys.path]))
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr
