"""These tests are of what an engine needs externals for."""

from __future__ import annotations

import pytest

from dl.engine import default_engine


@pytest.fixture(autouse=True)
def _an_engine_with_externals() -> None:
    """Leave the tests out on an engine that has no externals; that this is said clearly is tested on one that is made so."""
    if not default_engine().capabilities.externals:
        pytest.skip(f"engine {default_engine().name} has no externals")
