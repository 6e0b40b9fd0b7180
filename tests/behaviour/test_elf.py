"""The meaning of ELF: the same random graphs of libraries, built for ELF and as WebAssembly, say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.elf import random_graph
from tests.support.elf_comparison import check_many
from tests.support.paths import ROOT


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_random_graphs_mean_what_they_mean_in_elf(tmp_path: Path) -> None:
    """Every call, address and look-up gives in both worlds the same, whatever is opened in whatever order; see docs/elf.md."""
    count, started = check_many(random_graph, tmp_path, 40, lambda elf: len(elf) > 1)
    assert started > count // 2, "too few graphs say anything"


def test_every_row_of_the_page_has_a_test() -> None:
    """What docs/elf.md says is the same, and what it says differs, is shown by a test that exists, in each row."""
    rows = [
        line
        for line in (ROOT / "docs/elf.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith("| ---") and not line.endswith("| test |")
    ]
    assert len(rows) > 15
    for row in rows:
        named = re.findall(r"`(tests/[^`:]+)(?:::\w+)?::(\w+)`", row)
        assert named, row
        for file, function in named:
            assert f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), (file, function)
