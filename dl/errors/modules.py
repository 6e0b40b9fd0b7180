"""Errors about the bytes of a module."""

from __future__ import annotations

from dl.errors.base import DlError


class MalformedModuleError(DlError):
    """The bytes are not a valid WebAssembly module.

    Attributes:
        module: name of the module, as the caller gave it.
        offset: bytes from the start of the file to what is wrong.
        reason: what is wrong, lower case, without the module's name.
    """

    def __init__(self, module: str, offset: int, reason: str) -> None:
        super().__init__(module, offset, reason)
        self.module = module
        self.offset = offset
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.module}: malformed at byte {self.offset:#x}: {self.reason}"


class DylinkError(MalformedModuleError):
    """The `dylink.0` or legacy `dylink` section is corrupt or asks for the impossible."""


class UnsupportedModuleError(DlError):
    """The module is WebAssembly, but needs something this linker does not handle.

    Attributes:
        module: name of the module, as the caller gave it.
        reason: what it needs, lower case, and where (a byte offset or a function) if known.
    """

    def __init__(self, module: str, reason: str) -> None:
        super().__init__(module, reason)
        self.module = module
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.module}: not supported: {self.reason}"
