"""Errors of those who use the linker, and of engines."""

from __future__ import annotations

from collections.abc import Sequence

from dl.errors.base import DlError
from dl.text import shown


class ValueConversionError(DlError, TypeError):
    """A Python value does not fit a WebAssembly signature.

    Attributes:
        kind: the signature.
        reason: what does not fit.
        function: name of the function that was called, or that returned the value; empty if it has none.
    """

    def __init__(self, kind: object, reason: str, function: str = "") -> None:
        super().__init__(kind, reason, function)
        self.kind = kind
        self.reason = reason
        self.function = function

    def __str__(self) -> str:
        named = f"{shown(self.function)} {self.kind}" if self.function else f"{self.kind}"
        return f"function {named}: {self.reason}"


class EngineError(DlError):
    """The engine failed, or refuses a configuration."""


class EngineNotFoundError(DlError):
    """No engine of this name can be used.

    Attributes:
        name: the engine that was asked for.
        known: names of those that are installed.
        reason: why not, or what to do.
    """

    def __init__(self, name: str, known: Sequence[str], reason: str) -> None:
        super().__init__(name, known, reason)
        self.name = name
        self.known = tuple(known)
        self.reason = reason

    def __str__(self) -> str:
        return f"no engine {self.name!r}: {shown(self.reason)} (installed: {', '.join(self.known)})"


class LinkerUsageError(DlError):
    """The API was used in a way it cannot serve; the message says what to do instead."""


class SpecError(LinkerUsageError):
    """A description of a program holds what no linker takes, or names what is not there.

    Attributes:
        field: which field, and where in it, such as `imports['env']['log']`; empty for the whole.
        reason: what is wrong with it.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"dl.Spec: {self.field}: {self.reason}" if self.field else f"dl.Spec: {self.reason}"


class ProgramForkedError(LinkerUsageError):
    """A linker was used in a child made by `os.fork`; its threads, and whoever held its locks, stayed in the parent."""


class LinkerClosedError(LinkerUsageError):
    """The linker or the instance group was closed."""


class BuildError(DlError):
    """A program or library cannot be built; the message is the tool's own, or says what is missing."""


class PatchError(BuildError):
    """A module cannot be changed as was asked; its file is as before.

    Attributes:
        module: name of the module.
        reason: why, lower case, without the module's name.
    """

    def __init__(self, module: str, reason: str) -> None:
        super().__init__(module, reason)
        self.module = module
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot patch {shown(self.module)}: {self.reason}"


class BundleError(DlError):
    """A bundle cannot be made, or is damaged, or asks for what no bundle may.

    Attributes:
        bundle: its path.
        reason: why, lower case, without the bundle's name.
    """

    def __init__(self, bundle: str, reason: str) -> None:
        super().__init__(bundle, reason)
        self.bundle = bundle
        self.reason = reason

    def __str__(self) -> str:
        return f"bundle {shown(self.bundle)}: {self.reason}"
