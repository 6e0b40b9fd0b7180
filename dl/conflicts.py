"""Other modules under the import names of this distribution, `threads` and `memory`: told from other faults of imports."""

from __future__ import annotations

import os
import sys

NEIGHBOURS = ("memory", "threads")
"""Packages that are installed beside `dl`."""


class ImportNameError(ImportError):
    """Another module has the name of a package that belongs to `dl`; the message says which file it is, and what to do."""


def explained(error: ImportError) -> ImportError:
    """Return what an import failed for: another module of one of our names if there is one, else the error itself."""
    beside = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for name in NEIGHBOURS:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None and os.path.dirname(os.path.dirname(os.path.abspath(file))) != beside:
            return ImportNameError(
                f"{name!r} is {os.path.abspath(file)}, and not the package of this name that belongs to wasix-dl; rename "
                "that file, or put its directory behind the installed packages in sys.path",
                name=name,
                path=file,
            )
    return error
