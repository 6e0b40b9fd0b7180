"""What every adapter of `dl.engine.protocol` must do: the tests here run over each engine that is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from dl.engine import Engine, engine_named, known_engines

ROOT = str(Path(__file__).resolve().parents[2])


@pytest.fixture(scope="session", params=known_engines())
def engine(request: pytest.FixtureRequest) -> Engine:
    """Give the process's engine of a name, with interrupts if it can have them."""
    return engine_named(request.param)
