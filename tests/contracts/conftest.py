"""What every adapter of `dl.engine.protocol` must do: the tests here run over each engine that is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from dl.engine import engine_named, known_engines
from dl.engine.protocol import Engine

ROOT = str(Path(__file__).resolve().parents[2])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that asks for an engine on all that are installed, or on the one that the run chose."""
    if "engine" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--engine")
        metafunc.parametrize(
            "engine", [chosen] if chosen else known_engines(), indirect=True, scope="session"
        )


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest) -> Engine:
    """Give the process's engine of a name, with interrupts if it can have them."""
    return engine_named(request.param)
