"""Programs that are run many times: pools of processes that have one, and of fresh programs, one for each request."""

from __future__ import annotations

from dl.pool.processes import ProcessPool
from dl.pool.programs import ProgramOutcome, ProgramPool

__all__ = ["ProcessPool", "ProgramOutcome", "ProgramPool"]
