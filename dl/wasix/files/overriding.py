"""`override` of `typing_extensions`, for type checkers: importing that costs as much as the files that would use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import override
else:

    def override(method):
        """Mark what takes the place of a method of the base class."""
        return method


__all__ = ["override"]
