"""A program that has a library with text, with both kinds of memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import dl
from tests.support.modules import MEMORY, SHARED_MEMORY
from tests.support.text_library import text_library


@pytest.fixture(name="linker", params=["unshared", "shared"])
def _linker(request: pytest.FixtureRequest) -> Iterator[dl.Linker]:
    shared = request.param == "shared"
    kind = SHARED_MEMORY if shared else MEMORY
    with dl.Linker(
        None,
        libraries={"libtext.so": text_library(kind)},
        memory=dl.MemoryType(2, 2000, shared=shared),
        interrupts=True,
    ) as linker:
        yield linker


@pytest.fixture(name="lib")
def _lib(linker: dl.Linker) -> dl.Library:
    return linker.main_group.library("libtext.so")
