"""The map of the sources in `docs/map.md` is current and whole."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.support.imports import sources
from tests.support.paths import ROOT
from tests.support.rooms import FLOOR

PAGE = (ROOT / "docs/map.md").read_text(encoding="utf-8")


def test_the_map_is_current() -> None:
    """`docs/map.md` is what `scripts/map` writes."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/map"), "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_the_map_has_every_file_with_its_idea() -> None:
    """Each file of the packages is in the map once, and says what it is."""
    rows = dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", PAGE, re.MULTILINE))

    assert sorted(rows) == [path.relative_to(ROOT).as_posix() for path in sources(ROOT)]
    assert [file for file, idea in rows.items() if not idea.endswith(".")] == []


def test_the_map_has_the_rooms_in_the_order_of_their_imports() -> None:
    """A reader of the map from top to bottom meets each room before those that it imports."""
    floors = [FLOOR[room] for room in re.findall(r"^## dl/(\w+)$", PAGE, re.MULTILINE)]

    assert floors == sorted(floors)
