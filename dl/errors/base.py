"""The base of all errors of the linker, and faults that are the linker's own."""

from __future__ import annotations


class DlError(Exception):
    """Base of all errors of the linker."""


class InternalError(DlError):
    """The linker broke a rule of its own: a fault in it, to be reported with the whole traceback."""
