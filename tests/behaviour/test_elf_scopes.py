"""RTLD_NEXT, RTLD_DEFAULT, DEEPBIND, promotion, LD_PRELOAD, LD_BIND_NOW: what libraries see that ask themselves, as in ELF."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.elf_comparison import check_many
from tests.support.elf_scopes import random_scopes


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_libraries_that_ask_see_what_they_see_in_elf(tmp_path: Path) -> None:
    """After each open and close, every library finds the same behind itself and by default as its twin in ELF."""
    count, answers = check_many(
        random_scopes,
        tmp_path,
        10,
        lambda elf: sum(" ask next " in line and not line.endswith(" -1") for line in elf),
    )
    assert answers > 2 * count, "too few answers say anything"
