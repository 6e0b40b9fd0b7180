"""`python -m benchmarks`: see `run.py`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).parent)
)  # the programs are run, and so import each other, as files of one directory

from run import cli

cli(prog_name="python -m benchmarks")
