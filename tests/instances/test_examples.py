"""The examples for instances and for linking by name print what their readers expect."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT

LISTS = """grow returns 3 and the memory has 4 pages
through the table: [8, 2] and from here: 42
"""
BY_NAME = """read mB
log 11
[31, 21, 11, 11] 21
mA.A1: module mA
mB.B1: module mB
mB.B2: module mB
host.log: host
released mB
"""


@pytest.mark.parametrize(("example", "expected"), [("import_lists.py", LISTS), ("by_name.py", BY_NAME)])
def test_examples(example: str, expected: str) -> None:
    """Each example runs from the checkout."""
    command = [sys.executable, str(ROOT / "examples" / example)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "DLRUN_CACHE": "off"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stderr, done.stdout) == ("", expected)
