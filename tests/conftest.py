"""What holds for all tests."""

from __future__ import annotations

import os

os.environ["DLRUN_CACHE"] = "off"  # no test depends on what a former run has left on disk
