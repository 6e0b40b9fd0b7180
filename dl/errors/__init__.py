"""Every exception of the linker, as one tree.

::

    DlError                            anything the linker reports
    ├── MalformedModuleError           the bytes are not a valid WebAssembly module
    │   └── DylinkError                its dylink section is corrupt or asks for the impossible
    ├── UnsupportedModuleError         valid, but uses something this linker or engine does not handle
    ├── LinkError                      a module cannot be linked into the program
    │   ├── LibraryNotFoundError       no file for a library's name
    │   ├── NotDynamicError            the module is not a shared library, or the main module cannot take any
    │   ├── InvalidModuleError         the engine refuses to compile the module
    │   ├── UnresolvedSymbolsError     nothing defines what the module needs
    │   ├── ImportTypeError            something defines it, with another type
    │   ├── ImportCycleError           modules import from each other by name in a circle
    │   ├── InstantiationError         the engine refuses to instantiate the module
    │   └── InitializationError        its start function, relocations or constructors trapped
    ├── ResourceLimitError             linear memory, table, handles or another bound is used up
    ├── SymbolNotFoundError            dlsym found no such symbol
    ├── InvalidHandleError             no module has this handle
    ├── FinalizationError              a destructor of a library that was closed failed
    ├── UnresolvedCallError            the guest called an import that nothing provides
    ├── TrapError                      the guest trapped
    │   ├── StalePointerError          it called a function pointer into a library that was closed
    │   └── UncaughtExceptionError     it threw an exception that none of it caught
    ├── GuestTimeoutError              a call took longer than it may
    ├── ProgramExited                  the guest ended the program
    ├── ThreadExited                   the guest ended the calling thread
    ├── GuestThreadError               a thread of the guest ended abnormally, and the program with it
    ├── ProgramDeadlockedError         all threads of the program wait for each other
    ├── WorkerLostError                the process that ran a function died
    ├── PoolFullError                  a pool of programs takes no request
    ├── GroupEndedError                the instance group can run no more guest code
    │   └── ReplayFailedError          it could not make a link operation that all others have made
    ├── ValueConversionError           a Python value does not fit a WebAssembly signature
    ├── BuildError                     a tool that builds programs failed, or is missing
    │   └── PatchError                 a module cannot be changed as was asked
    ├── BundleError                    a bundle cannot be made, or is damaged or hostile
    ├── EngineError                    the engine failed, or refuses a configuration or a module
    ├── EngineNotFoundError            no engine of this name is installed
    ├── InternalError                  a fault of the linker itself, to be reported
    ├── RemoteError                    an exception of another process that cannot be made again here
    └── LinkerUsageError               the API was used in a way it cannot serve
        ├── LinkerClosedError          the linker or group was closed
        ├── SpecError                  a description of a program holds what no linker takes
        └── ProgramForkedError         the linker belongs to the parent of this process
"""

from __future__ import annotations

from dl.errors.base import (
    DlError,
    InternalError,
    RemoteError,
    sendable,
)
from dl.errors.frames import Frame
from dl.errors.linking import (
    FinalizationError,
    ImportCycleError,
    ImportTypeError,
    InitializationError,
    InstantiationError,
    InvalidModuleError,
    LibraryNotFoundError,
    LinkError,
    MissingSymbol,
    NotDynamicError,
    UnresolvedSymbolsError,
)
from dl.errors.lookup import (
    InvalidHandleError,
    ResourceLimitError,
    SymbolNotFoundError,
    UnresolvedCallError,
)
from dl.errors.modules import (
    DylinkError,
    MalformedModuleError,
    UnsupportedModuleError,
)
from dl.errors.running import (
    GroupEndedError,
    GuestThreadError,
    GuestTimeoutError,
    PoolFullError,
    ProgramDeadlockedError,
    ProgramExited,
    ReplayFailedError,
    StalePointerError,
    ThreadExited,
    TrapError,
    UncaughtExceptionError,
    WorkerLostError,
)
from dl.errors.usage import (
    BuildError,
    BundleError,
    EngineError,
    EngineNotFoundError,
    LinkerClosedError,
    LinkerUsageError,
    PatchError,
    ProgramForkedError,
    SpecError,
    ValueConversionError,
)

__all__ = [
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
    "LinkError",
    "LinkerClosedError",
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
    "sendable",
]
