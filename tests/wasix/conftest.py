"""A program of libraries only, and a guest in it that makes closures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import dl
from tests.support.closures import Guest


@pytest.fixture(name="linker")
def _linker() -> Iterator[dl.Linker]:
    with dl.Linker(None, memory=dl.MemoryType(2, 1000, shared=True)) as linker:
        yield linker


@pytest.fixture(name="guest")
def _guest(linker: dl.Linker) -> Guest:
    return Guest(linker)
