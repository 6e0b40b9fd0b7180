"""A directory for compiled code, a cache in it, and an engine that counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from dl.engine.disk_cache import DiskCache
from tests.support.disk_caches import CountingEngine


@pytest.fixture(name="place")
def _place(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(name="cache")
def _cache(place: Path) -> DiskCache:
    return DiskCache(place)


@pytest.fixture(name="engine")
def _engine() -> CountingEngine:
    return CountingEngine()
