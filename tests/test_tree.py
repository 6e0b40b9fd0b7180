"""The suite tests the tree it lies in, also in the processes that tests start."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import dl
import memory
import threads
from tests.support.paths import ROOT

PACKAGES = ["dl", "memory", "threads"]


def test_this_process_has_the_packages_of_the_tree() -> None:
    """What the tests import lies beside them."""
    files = [Path(package.__file__ or "").resolve() for package in (dl, memory, threads)]

    assert files == [ROOT / name / "__init__.py" for name in PACKAGES]


@pytest.mark.parametrize("folder", ["the checkout", "elsewhere"])
def test_a_child_process_has_the_packages_of_the_tree(folder: str, tmp_path: Path) -> None:
    """A process that a test starts imports the tree, in whatever directory it starts."""
    code = f"import json, {', '.join(PACKAGES)}; print(json.dumps([p.__file__ for p in ({', '.join(PACKAGES)})]))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT if folder == "the checkout" else tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert [Path(file).resolve() for file in json.loads(done.stdout)] == [
        ROOT / name / "__init__.py" for name in PACKAGES
    ]


def test_interrupts_arrive_however_the_suite_was_started() -> None:
    """SIGINT is ignored neither here nor in the processes that tests start."""
    code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    assert done.stdout.strip() == "True"
