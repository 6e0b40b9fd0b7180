"""Where Dask is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT


def test_the_error_says_what_to_install(tmp_path: Path) -> None:
    """`import dl.cluster` without Dask names the extra; a fault inside of Dask is told as it is."""
    for missing, told in (
        ("distributed", "dl.cluster needs Dask: pip install 'wasix-dl[dask]'"),
        ("tornado", "no tornado"),
    ):
        (tmp_path / "distributed.py").write_text(
            f"raise ModuleNotFoundError('no {missing}', name='{missing}')"
        )
        done = subprocess.run(
            [sys.executable, "-c", "import dl.cluster"],
            env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stderr.splitlines()[-1] == f"ModuleNotFoundError: {told}"
