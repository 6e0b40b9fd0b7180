"""A dynamic linker for WebAssembly: libraries linked into a running program, for all its threads at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dl.callbacks import Callback
from dl.dlfcn import (
    INVALID_HANDLE,
    MAIN_HANDLE,
    RTLD_DEEPBIND,
    RTLD_DEFAULT,
    RTLD_GLOBAL,
    RTLD_LAZY,
    RTLD_LOCAL,
    RTLD_NODELETE,
    RTLD_NOLOAD,
    RTLD_NOW,
    DlFlags,
    ModuleHandle,
)
from dl.errors import (
    DlError,
    DylinkError,
    EngineError,
    EngineNotFoundError,
    FinalizationError,
    GroupEndedError,
    GuestThreadError,
    ImportTypeError,
    InitializationError,
    InstantiationError,
    InternalError,
    InvalidHandleError,
    InvalidModuleError,
    LibraryNotFoundError,
    LinkerClosedError,
    LinkError,
    LinkerUsageError,
    MalformedModuleError,
    MissingSymbol,
    NotDynamicError,
    ProgramDeadlockedError,
    ProgramExited,
    ProgramForkedError,
    ReplayFailedError,
    ResourceLimitError,
    SymbolNotFoundError,
    ThreadExited,
    TrapError,
    UncaughtExceptionError,
    UnresolvedCallError,
    UnresolvedSymbolsError,
    UnsupportedModuleError,
    ValueConversionError,
)
from dl.group import GuestData, GuestFunction, InstanceGroup
from dl.limits import Limits
from dl.linker import Linker
from dl.options import HostFunction, MemoryType

if TYPE_CHECKING:
    from dl.trio import TrioLinker, open_linker


def __getattr__(name: str) -> Any:
    """Load what needs trio when it is first asked for: importing trio costs as much as all the rest."""
    if name in ("TrioLinker", "open_linker"):
        from dl import trio as trio_linker  # noqa: PLC0415

        return getattr(trio_linker, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "INVALID_HANDLE",
    "MAIN_HANDLE",
    "RTLD_DEEPBIND",
    "RTLD_DEFAULT",
    "RTLD_GLOBAL",
    "RTLD_LAZY",
    "RTLD_LOCAL",
    "RTLD_NODELETE",
    "RTLD_NOLOAD",
    "RTLD_NOW",
    "Callback",
    "DlError",
    "DlFlags",
    "DylinkError",
    "EngineError",
    "EngineNotFoundError",
    "FinalizationError",
    "GroupEndedError",
    "GuestData",
    "GuestFunction",
    "GuestThreadError",
    "HostFunction",
    "ImportTypeError",
    "InitializationError",
    "InstanceGroup",
    "InstantiationError",
    "InternalError",
    "InvalidHandleError",
    "InvalidModuleError",
    "LibraryNotFoundError",
    "Limits",
    "LinkError",
    "Linker",
    "LinkerClosedError",
    "LinkerUsageError",
    "MalformedModuleError",
    "MemoryType",
    "MissingSymbol",
    "ModuleHandle",
    "NotDynamicError",
    "ProgramDeadlockedError",
    "ProgramExited",
    "ProgramForkedError",
    "ReplayFailedError",
    "ResourceLimitError",
    "SymbolNotFoundError",
    "ThreadExited",
    "TrapError",
    "TrioLinker",
    "UncaughtExceptionError",
    "UnresolvedCallError",
    "UnresolvedSymbolsError",
    "UnsupportedModuleError",
    "ValueConversionError",
    "open_linker",
]
