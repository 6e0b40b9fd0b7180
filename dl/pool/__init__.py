"""Programs that are run many times: pools of processes that have one, and of fresh programs, one for each request."""

from __future__ import annotations

from dl.pool.processes import ProcessPool

__all__ = ["ProcessPool"]
