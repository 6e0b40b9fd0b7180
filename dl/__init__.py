"""A dynamic linker for WebAssembly: libraries linked into a running program, for all its threads at once."""

from __future__ import annotations

import gc
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dl.api.blocks import GuestBlock
    from dl.api.callbacks import Callback
    from dl.api.executor import GuestExecutor
    from dl.api.explain import Explanation
    from dl.api.guest import GuestData, GuestFunction, TypedFunction
    from dl.api.host_thread import HostThread
    from dl.api.library import Library
    from dl.api.loaded import AddressInfo, LoadedModule, ModuleBinding, ModuleSymbol
    from dl.api.memory_map import MapRegion, MemoryMap
    from dl.api.profile import Profile
    from dl.api.timeline import Timeline, TimelineEvent
    from dl.api.values import F32, F64, I32, I64, V128, CString, Pointer, host_function
    from dl.description.spec import Spec
    from dl.dlfcn import (
        INVALID_HANDLE,
        MAIN_HANDLE,
        RTLD_DEEPBIND,
        RTLD_DEFAULT,
        RTLD_GLOBAL,
        RTLD_LAZY,
        RTLD_LOCAL,
        RTLD_NEXT,
        RTLD_NODELETE,
        RTLD_NOLOAD,
        RTLD_NOW,
        AddressKind,
        DlFlags,
        ModuleHandle,
    )
    from dl.errors import (
        BuildError,
        BundleError,
        DlError,
        DylinkError,
        EngineError,
        EngineNotFoundError,
        FinalizationError,
        Frame,
        GroupEndedError,
        GuestThreadError,
        GuestTimeoutError,
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
        PatchError,
        PoolFullError,
        ProgramDeadlockedError,
        ProgramExited,
        ProgramForkedError,
        RemoteError,
        ReplayFailedError,
        ResourceLimitError,
        SpecError,
        StalePointerError,
        SymbolNotFoundError,
        ThreadExited,
        TrapError,
        UncaughtExceptionError,
        UnresolvedCallError,
        UnresolvedSymbolsError,
        UnsupportedModuleError,
        ValueConversionError,
        WorkerLostError,
    )
    from dl.group import InstanceGroup
    from dl.include import get_include
    from dl.instances.externals import External, Function, Global, Memory, Table, Tag
    from dl.instances.instance import ImportSource, Instance, Module
    from dl.limits import Limits
    from dl.link.why import BoundImport, OtherDefinition
    from dl.linker import Linker
    from dl.options import HostFunction, MemoryType
    from dl.pool.processes import ProcessPool
    from dl.pool.programs import ProgramOutcome, ProgramPool
    from dl.program.events import Event, EventKind, EventQueue, Events, EventSubscription
    from dl.program.statistics import LinkerStatistics
    from dl.tasks import AsyncLinker, TrioLinker, open_linker
    from dl.wamr.dlfcn import WamrStatistics
    from dl.wamr.mode import WamrMode
    from dl.wasm.records import Export, Import
    from dl.wasm.types import FuncType, GlobalType, TableType, TagType
    from memory import (
        InvalidRequestError,
        InvalidStringError,
        LinearMemory,
        MemoryClosedError,
        MemoryMovesError,
        OutOfBoundsError,
    )
    from threads import RendezvousStatistics

_NAMES = {
    "dl.api.callbacks": ("Callback",),
    "dl.description.spec": ("Spec",),
    "dl.dlfcn": (
        "AddressKind",
        "INVALID_HANDLE",
        "MAIN_HANDLE",
        "RTLD_DEEPBIND",
        "RTLD_DEFAULT",
        "RTLD_GLOBAL",
        "RTLD_LAZY",
        "RTLD_LOCAL",
        "RTLD_NEXT",
        "RTLD_NODELETE",
        "RTLD_NOLOAD",
        "RTLD_NOW",
        "DlFlags",
        "ModuleHandle",
    ),
    "dl.errors": (
        "BuildError",
        "BundleError",
        "DlError",
        "DylinkError",
        "EngineError",
        "EngineNotFoundError",
        "FinalizationError",
        "Frame",
        "GroupEndedError",
        "GuestThreadError",
        "GuestTimeoutError",
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
        "PatchError",
        "PoolFullError",
        "ProgramDeadlockedError",
        "ProgramExited",
        "ProgramForkedError",
        "RemoteError",
        "ReplayFailedError",
        "ResourceLimitError",
        "SpecError",
        "StalePointerError",
        "SymbolNotFoundError",
        "ThreadExited",
        "TrapError",
        "UncaughtExceptionError",
        "UnresolvedCallError",
        "UnresolvedSymbolsError",
        "UnsupportedModuleError",
        "ValueConversionError",
        "WorkerLostError",
    ),
    "dl.api.blocks": ("GuestBlock",),
    "dl.api.executor": ("GuestExecutor",),
    "dl.api.explain": (
        "BoundImport",
        "Explanation",
        "OtherDefinition",
    ),
    "dl.api.memory_map": (
        "MapRegion",
        "MemoryMap",
    ),
    "dl.api.loaded": (
        "AddressInfo",
        "LoadedModule",
        "ModuleBinding",
        "ModuleSymbol",
    ),
    "dl.group": ("InstanceGroup",),
    "dl.api.host_thread": ("HostThread",),
    "dl.api.guest": (
        "GuestData",
        "GuestFunction",
        "TypedFunction",
    ),
    "dl.include": ("get_include",),
    "dl.api.profile": ("Profile",),
    "dl.api.timeline": ("Timeline", "TimelineEvent"),
    "dl.api.library": ("Library",),
    "dl.program.statistics": ("LinkerStatistics",),
    "dl.api.values": (
        "F32",
        "F64",
        "I32",
        "I64",
        "V128",
        "CString",
        "Pointer",
        "host_function",
    ),
    "dl.wasm.records": ("Export", "Import"),
    "dl.wasm.types": ("FuncType", "GlobalType", "TableType", "TagType"),
    "threads": ("RendezvousStatistics",),
    "memory": (
        "InvalidRequestError",
        "InvalidStringError",
        "LinearMemory",
        "MemoryClosedError",
        "MemoryMovesError",
        "OutOfBoundsError",
    ),
    "dl.instances.externals": ("External", "Function", "Global", "Memory", "Table", "Tag"),
    "dl.instances.instance": ("ImportSource", "Instance", "Module"),
    "dl.limits": ("Limits",),
    "dl.linker": ("Linker",),
    "dl.options": (
        "HostFunction",
        "MemoryType",
    ),
    "dl.pool.processes": ("ProcessPool",),
    "dl.pool.programs": ("ProgramOutcome", "ProgramPool"),
    "dl.program.events": (
        "Event",
        "EventKind",
        "EventQueue",
        "EventSubscription",
        "Events",
    ),
    "dl.tasks": (
        "AsyncLinker",
        "TrioLinker",
        "open_linker",
    ),
    "dl.wamr.dlfcn": ("WamrStatistics",),
    "dl.wamr.mode": ("WamrMode",),
}
"""Where each public name is. A file is imported when one of its names is first asked for, so that naming an exception costs
no engine, and only what needs anyio imports it."""

__version__ = "0.1.0"
"""The version of the distribution `wasix-dl`; pyproject.toml reads it here, so that a tree that is not installed has it too."""

_FILES = {name: file for file, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import the file that a name is in."""
    file = _FILES.get(name)
    if file is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    collects = gc.isenabled()
    gc.disable()  # of the many objects that an import makes none is garbage: looking for it takes a tenth of the time
    try:
        module = import_module(file)
    except ImportError as error:
        from dl.conflicts import explained  # noqa: PLC0415  only where something is wrong

        reason = explained(error)
        if reason is error:
            raise
        raise reason from error
    finally:
        if collects:
            gc.enable()
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    """Return the names that there are, imported or not."""
    return sorted({*globals(), *__all__})


__all__ = [
    "F32",
    "F64",
    "I32",
    "I64",
    "INVALID_HANDLE",
    "MAIN_HANDLE",
    "RTLD_DEEPBIND",
    "RTLD_DEFAULT",
    "RTLD_GLOBAL",
    "RTLD_LAZY",
    "RTLD_LOCAL",
    "RTLD_NEXT",
    "RTLD_NODELETE",
    "RTLD_NOLOAD",
    "RTLD_NOW",
    "V128",
    "AddressInfo",
    "AddressKind",
    "AsyncLinker",
    "BoundImport",
    "BuildError",
    "BundleError",
    "CString",
    "Callback",
    "DlError",
    "DlFlags",
    "DylinkError",
    "EngineError",
    "EngineNotFoundError",
    "Event",
    "EventKind",
    "EventQueue",
    "EventSubscription",
    "Events",
    "Explanation",
    "Export",
    "External",
    "FinalizationError",
    "Frame",
    "FuncType",
    "Function",
    "Global",
    "GlobalType",
    "GroupEndedError",
    "GuestBlock",
    "GuestData",
    "GuestExecutor",
    "GuestFunction",
    "GuestThreadError",
    "GuestTimeoutError",
    "HostFunction",
    "HostThread",
    "Import",
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
    "InvalidRequestError",
    "InvalidStringError",
    "Library",
    "LibraryNotFoundError",
    "Limits",
    "LinearMemory",
    "LinkError",
    "Linker",
    "LinkerClosedError",
    "LinkerStatistics",
    "LinkerUsageError",
    "LoadedModule",
    "MalformedModuleError",
    "MapRegion",
    "Memory",
    "MemoryClosedError",
    "MemoryMap",
    "MemoryMovesError",
    "MemoryType",
    "MissingSymbol",
    "Module",
    "ModuleBinding",
    "ModuleHandle",
    "ModuleSymbol",
    "NotDynamicError",
    "OtherDefinition",
    "OutOfBoundsError",
    "PatchError",
    "Pointer",
    "PoolFullError",
    "ProcessPool",
    "Profile",
    "ProgramDeadlockedError",
    "ProgramExited",
    "ProgramForkedError",
    "ProgramOutcome",
    "ProgramPool",
    "RemoteError",
    "RendezvousStatistics",
    "ReplayFailedError",
    "ResourceLimitError",
    "Spec",
    "SpecError",
    "StalePointerError",
    "SymbolNotFoundError",
    "Table",
    "TableType",
    "Tag",
    "TagType",
    "ThreadExited",
    "Timeline",
    "TimelineEvent",
    "TrapError",
    "TrioLinker",
    "TypedFunction",
    "UncaughtExceptionError",
    "UnresolvedCallError",
    "UnresolvedSymbolsError",
    "UnsupportedModuleError",
    "ValueConversionError",
    "WamrMode",
    "WamrStatistics",
    "WorkerLostError",
    "__version__",
    "get_include",
    "host_function",
    "open_linker",
]
