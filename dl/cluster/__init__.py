"""Programs on the workers of a Dask cluster: `dl.cluster.map(spec, function, items)`. Needs `wasix-dl[dask]`."""

from __future__ import annotations

try:
    import distributed as _distributed  # noqa: F401  to say what is missing before anything else does
except ModuleNotFoundError as _error:
    if _error.name != "distributed":
        raise
    _TEXT = "dl.cluster needs Dask: pip install 'wasix-dl[dask]'"
    raise ModuleNotFoundError(_TEXT, name=_error.name) from None

from dl.cluster.client import Program, forget, map  # noqa: A004  what it is called everywhere

__all__ = ["Program", "forget", "map"]
