"""Programs on the workers of a Dask cluster: `dl.cluster.map(spec, function, items)`. Needs `wasix-dl[dask]`."""

from __future__ import annotations

from dl.cluster.client import Program, forget, map  # noqa: A004  what it is called everywhere

__all__ = ["Program", "forget", "map"]
