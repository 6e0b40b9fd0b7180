"""Errors of asking for symbols, handles and resources."""

from __future__ import annotations

from collections.abc import Sequence

from dl.errors.base import DlError
from dl.text import first_of, shown


class ResourceLimitError(DlError):
    """Linear memory, the table or a bound of the linker is used up; nothing was reserved.

    Attributes:
        subject: what needed it: the name of a module, or a few words such as "a thread's stack".
        reason: what is used up, and the bound, lower case.
        limit: name of the attribute of `Limits` that is the bound; empty if it is another one.
    """

    def __init__(self, subject: str, reason: str, limit: str = "") -> None:
        super().__init__(subject, reason, limit)
        self.subject = subject
        self.reason = reason
        self.limit = limit

    def __str__(self) -> str:
        return f"no room for {shown(self.subject)}: {self.reason}"


class SymbolNotFoundError(DlError, AttributeError):
    """No module in the searched scope exports the symbol.

    Also an `AttributeError`, since symbols of a `Library` are its attributes.

    Attributes:
        symbol: what was looked for.
        searched: names of the modules that were searched, in order.
        reason: why a definition that exists cannot be given out; empty when there is none.
        similar: a symbol with much the same name that the searched modules have; empty when there is none.
    """

    def __init__(self, symbol: str, searched: Sequence[str], reason: str = "", similar: str = "") -> None:
        super().__init__(symbol, searched, reason, similar)
        self.symbol = symbol
        self.searched = tuple(searched)
        self.reason = reason
        self.similar = similar

    def __str__(self) -> str:
        where = first_of(self.searched, len(self.searched)) or "nothing"
        meant = f"; did you mean {shown(self.similar)}?" if self.similar else ""
        return f"undefined symbol: {shown(self.symbol)} ({self.reason or 'searched ' + where}){meant}"


class InvalidHandleError(DlError):
    """No module has this handle.

    Attributes:
        handle: the number that was given.
        reason: what is known about it, lower case; may be empty.
    """

    def __init__(self, handle: int, reason: str = "") -> None:
        super().__init__(handle, reason)
        self.handle = handle
        self.reason = reason

    def __str__(self) -> str:
        return f"invalid module handle: {self.handle}" + (f": {self.reason}" if self.reason else "")


class UnresolvedCallError(DlError):
    """The guest called a function import that nothing provides.

    Attributes:
        importer: name of the calling module.
        namespace: the import's module name.
        symbol: the import's field name.
    """

    def __init__(
        self, importer: str, namespace: str, symbol: str, reason: str = "nothing provides it"
    ) -> None:
        super().__init__(importer, namespace, symbol, reason)
        self.importer = importer
        self.namespace = namespace
        self.symbol = symbol
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.importer}: call of {self.namespace}.{self.symbol}: {self.reason}"
