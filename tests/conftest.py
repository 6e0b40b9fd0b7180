"""What holds for the whole suite: it tests the tree it lies in, and it can be interrupted.

**The tree.** A copy of the packages may be installed in the environment that runs the tests.
`pythonpath` in pyproject.toml puts the tree before that copy in this process.
PYTHONPATH, set here, does the same in every process that a test starts.
Without the second, half of the suite would see an edit and half of it would not.

**SIGINT.** A shell without job control starts `pytest &` with SIGINT ignored.
Python then installs no handler, and every process that a test starts inherits that.
Tests that interrupt a process would fail, or wait for ever.

**Compiled code.** DLRUN_CACHE is off, so that no test depends on what a former run has left on disk.

**The engine.** Tests that do not choose one run on wasmtime, or on the one of `--engine`, and so do processes that they start.

**Bytecode.** PYTHONDONTWRITEBYTECODE is not handed on: every process that a test starts would compile the tree's files again.

**Hypothesis.** No example has a time limit, and generating examples may be slow: a machine that is busy is no fault.

**Stack dumps.** `faulthandler_timeout` shows the stacks of a test that hangs.
A test with a time-out of its own may be slow on purpose, and its time-out shows the stacks as well.
"""

from __future__ import annotations

import faulthandler
import os
import signal

import pytest
from hypothesis import HealthCheck, settings

from tests.support.paths import ROOT


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a run choose the engine of all tests that do not choose one."""
    parser.addoption("--engine", help="run the suite on this engine, tests of every engine included")


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the process, and what its children inherit."""
    engine = config.getoption("--engine")
    if engine:
        os.environ["DLRUN_ENGINE"] = engine
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    others = [entry for entry in inherited if entry and entry != str(ROOT)]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *others])
    os.environ["DLRUN_CACHE"] = "off"
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("suite")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """Say in the header what is tested."""
    import dl
    from dl.engine import default_name

    return f"testing: {os.path.dirname(dl.__file__)}, engine {default_name()}"


@pytest.fixture(autouse=True)
def _no_dump_while_slow_on_purpose(request: pytest.FixtureRequest) -> None:
    """Leave a test that has a time-out of its own without the dump for all others."""
    if request.node.get_closest_marker("timeout") is not None:
        faulthandler.cancel_dump_traceback_later()
