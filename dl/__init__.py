"""A dynamic linker for WebAssembly: libraries linked into a running program, for all its threads at once."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
        ImportCycleError,
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
    from dl.instances.externals import External, Function, Global, Memory, Table, Tag
    from dl.instances.instance import ImportSource, Instance, Module
    from dl.limits import Limits
    from dl.linker import Linker
    from dl.options import HostFunction, MemoryType
    from dl.trio import TrioLinker, open_linker

_NAMES = {
    "dl.callbacks": ("Callback",),
    "dl.dlfcn": (
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
        "DlFlags",
        "ModuleHandle",
    ),
    "dl.errors": (
        "DlError",
        "DylinkError",
        "EngineError",
        "EngineNotFoundError",
        "FinalizationError",
        "GroupEndedError",
        "GuestThreadError",
        "ImportCycleError",
        "ImportTypeError",
        "InitializationError",
        "InstantiationError",
        "InternalError",
        "InvalidHandleError",
        "InvalidModuleError",
        "LibraryNotFoundError",
        "LinkerClosedError",
        "LinkError",
        "LinkerUsageError",
        "MalformedModuleError",
        "MissingSymbol",
        "NotDynamicError",
        "ProgramDeadlockedError",
        "ProgramExited",
        "ProgramForkedError",
        "ReplayFailedError",
        "ResourceLimitError",
        "SymbolNotFoundError",
        "ThreadExited",
        "TrapError",
        "UncaughtExceptionError",
        "UnresolvedCallError",
        "UnresolvedSymbolsError",
        "UnsupportedModuleError",
        "ValueConversionError",
    ),
    "dl.group": (
        "GuestData",
        "GuestFunction",
        "InstanceGroup",
    ),
    "dl.instances.externals": ("External", "Function", "Global", "Memory", "Table", "Tag"),
    "dl.instances.instance": ("ImportSource", "Instance", "Module"),
    "dl.limits": ("Limits",),
    "dl.linker": ("Linker",),
    "dl.options": (
        "HostFunction",
        "MemoryType",
    ),
    "dl.trio": (
        "TrioLinker",
        "open_linker",
    ),
}
"""Where each public name is. A file is imported when one of its names is first asked for, so that naming an exception costs
no engine, and only what needs trio imports it."""

_FILES = {name: file for file, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import the file that a name is in."""
    file = _FILES.get(name)
    if file is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(file), name)
    return value


def __dir__() -> list[str]:
    """Return the names that there are, imported or not."""
    return sorted({*globals(), *__all__})


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
    "External",
    "FinalizationError",
    "Function",
    "Global",
    "GroupEndedError",
    "GuestData",
    "GuestFunction",
    "GuestThreadError",
    "HostFunction",
    "ImportCycleError",
    "ImportSource",
    "ImportTypeError",
    "InitializationError",
    "Instance",
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
    "Memory",
    "MemoryType",
    "MissingSymbol",
    "Module",
    "ModuleHandle",
    "NotDynamicError",
    "ProgramDeadlockedError",
    "ProgramExited",
    "ProgramForkedError",
    "ReplayFailedError",
    "ResourceLimitError",
    "SymbolNotFoundError",
    "Table",
    "Tag",
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
