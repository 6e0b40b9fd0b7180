"""`dl.logs`: loggers that are there before `logging` is."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from dl.logs import DEBUG, Hearing, logger
from tests.support.paths import ROOT


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run a process that imports `dl.logs` first."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys\nfrom dl.logs import logger\nlog = logger('dl.link')\n{code}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


def test_nobody_listens_before_logging_is_imported() -> None:
    """What is of less weight than a warning goes nowhere, and imports nothing."""
    done = run(
        "log.debug('a %s', 1); log.info('b'); print(log.isEnabledFor(50))\nprint('logging' in sys.modules)"
    )

    assert (done.stdout.split(), done.stderr) == (["False", "False"], "")


def test_a_warning_is_printed_where_nobody_listens() -> None:
    """As `logging` has it: on standard error."""
    done = run("log.warning('look: %d', 3); print('logging' in sys.modules)")

    assert (done.stderr, done.stdout) == ("look: 3\n", "False\n")


def test_who_listens_later_hears_what_is_said_from_then_on() -> None:
    """Also by a logger that was made before; with the line that said it."""
    done = run(
        "log.info('early')\nimport logging\n"
        "logging.basicConfig(level=10, format='%(name)s %(levelname)s %(lineno)d %(message)s')\n"
        "log.debug('one'); log.info('two %s', 2)\nprint(log.isEnabledFor(10), log.name)"
    )

    assert done.stderr.splitlines() == ["dl.link DEBUG 7 one", "dl.link INFO 7 two 2"]
    assert done.stdout.split() == ["True", "dl.link"]


def test_where_logging_is_there_already_it_is_the_real_logger(caplog: pytest.LogCaptureFixture) -> None:
    """So that levels and handlers are those of `logging`."""
    assert logger("dl.link") is logging.getLogger("dl.link")
    with caplog.at_level(logging.DEBUG, "dl.link"):
        logger("dl.link").debug("heard")
    assert caplog.messages == ["heard"]


def test_who_asks_often_is_told_what_the_logger_says() -> None:
    """Before `logging` is imported and after, whichever level is set when: that of the logger, of one above it, or of all."""
    done = run(
        "from dl.logs import Hearing\nhearing = Hearing(log)\nsaid = []\n"
        "def ask(): said.append((hearing.of(10), log.isEnabledFor(10), hearing.of(10)))\n"
        "ask(); import logging; ask()\n"
        "logging.getLogger('dl').setLevel(10); ask()\n"
        "logging.disable(10); ask()\n"
        "logging.disable(0); ask()\n"
        "log.setLevel(20); ask()\n"
        "print(*said, sep='\\n')"
    )

    assert done.stdout.splitlines() == [
        str((heard,) * 3) for heard in (False, False, True, False, True, False)
    ]


def test_a_logger_that_is_switched_off_is_not_heard(caplog: pytest.LogCaptureFixture) -> None:
    """Also where its level has been asked for before, and from the first question on."""
    log = logging.getLogger("dl.heard")
    with caplog.at_level(logging.DEBUG, "dl.heard"):
        hearing = Hearing(log)
        assert hearing.of(DEBUG)
        assert hearing.of(DEBUG)
        log.disabled = True
        assert not hearing.of(DEBUG)
        log.disabled = False
