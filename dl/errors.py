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
    │   ├── InstantiationError         the engine refuses to instantiate the module
    │   └── InitializationError        its start function, relocations or constructors trapped
    ├── ResourceLimitError             linear memory, table, handles or another bound is used up
    ├── SymbolNotFoundError            dlsym found no such symbol
    ├── InvalidHandleError             no module has this handle
    ├── FinalizationError              a destructor of a library that was closed failed
    ├── UnresolvedCallError            the guest called an import that nothing provides
    ├── TrapError                      the guest trapped
    │   └── UncaughtExceptionError     it threw an exception that none of it caught
    ├── ProgramExited                  the guest ended the program
    ├── ThreadExited                   the guest ended the calling thread
    ├── GuestThreadError               a thread of the guest ended abnormally, and the program with it
    ├── ProgramDeadlockedError         all threads of the program wait for each other
    ├── GroupEndedError                the instance group can run no more guest code
    │   └── ReplayFailedError          it could not make a link operation that all others have made
    ├── ValueConversionError           a Python value does not fit a WebAssembly signature
    ├── EngineError                    the engine failed, or refuses a configuration or a module
    ├── EngineNotFoundError            no engine of this name is installed
    ├── InternalError                  a fault of the linker itself, to be reported
    └── LinkerUsageError               the API was used in a way it cannot serve
        ├── LinkerClosedError          the linker or group was closed
        └── ProgramForkedError         the linker belongs to the parent of this process
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dl.text import MOST_LISTED, first_of, shown


class DlError(Exception):
    """Base of all errors of the linker."""


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


class LinkError(DlError):
    """A module cannot be linked into the program; the program is as before.

    Attributes:
        module: name of the module that could not be linked.
        reason: why, lower case, without the module's name.
    """

    def __init__(self, module: str, reason: str) -> None:
        super().__init__(module, reason)
        self.module = module
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot link {shown(self.module) or repr('')}: {self.reason}"


Tried = Sequence[tuple[str, str]]  # paths, each with what was wrong with it


class LibraryNotFoundError(LinkError):
    """No file was found for a library's name.

    Attributes:
        needed_by: the module whose needed list or dlopen asked for it; None when the host asked.
        tried: every path that was tried, with what was wrong with it, in order (the message lists the first 100).
        guest_tried: the same paths, as a guest may learn of them.
    """

    def __init__(
        self, module: str, tried: Tried, needed_by: str | None = None, *, guest_tried: Tried | None = None
    ) -> None:
        self.tried = tuple(tried)
        self.guest_tried = self.tried if guest_tried is None else tuple(guest_tried)
        self.needed_by = needed_by
        super().__init__(module, self._reason(self.tried))

    @property
    def for_guest(self) -> str:
        """The message with the paths as a guest may learn of them; it may still name modules as the host does."""
        return str(LinkError(self.module, self._reason(self.guest_tried)))

    def _reason(self, tried: Tried) -> str:
        where = "; ".join(f"{path}: {why}" for path, why in tried[:MOST_LISTED]) or "no directory to search"
        more = f"; and {len(tried) - MOST_LISTED} more" if len(tried) > MOST_LISTED else ""
        return f"not found ({where}{more})" + (f" (needed by {self.needed_by})" if self.needed_by else "")


class NotDynamicError(LinkError):
    """The module is not a shared library, or the main module cannot take any."""


class InvalidModuleError(LinkError):
    """The engine refuses to compile the module."""


@dataclass(frozen=True)
class MissingSymbol:
    """An import that nothing defines.

    Attributes:
        importer: name of the importing module.
        namespace: the import's module name, such as `env` or `GOT.mem`.
        symbol: the import's field name.
        type: the import's type as text.
        hint: a name much like it among the host's imports; empty when there is none.
    """

    importer: str
    namespace: str
    symbol: str
    type: str
    hint: str = ""

    def __str__(self) -> str:
        hint = f"; imports has {shown(self.hint)}" if self.hint else ""
        return f"{shown(self.namespace)}.{shown(self.symbol)} ({shown(self.type)}{hint})"


class UnresolvedSymbolsError(LinkError):
    """Nothing defines what modules need: every missing symbol, not only the first (the message tells the first 100).

    Attributes:
        missing: the unresolved imports, in import order.
        searched: names of the modules that were searched, in order.
    """

    def __init__(self, module: str, missing: Sequence[MissingSymbol], searched: Sequence[str]) -> None:
        self.missing = tuple(missing)
        self.searched = tuple(searched)
        several = len({m.importer for m in self.missing}) > 1 or self.missing[0].importer != module
        listed = first_of(
            [f"{m} needed by {m.importer}" if several else str(m) for m in self.missing[:MOST_LISTED]],
            len(self.missing),
        )
        where = first_of(self.searched, len(self.searched)) or "nothing else is loaded"
        super().__init__(module, f"undefined symbols: {listed} (searched {where})")


class ImportTypeError(LinkError):
    """A definition was found, but its type is not the one the import asks for.

    Attributes:
        symbol: namespace and name of the import, joined by a dot.
        expected: the import's type as text.
        got: the definition's type as text.
        provider: name of the module, or `the host`, that defines it.
    """

    def __init__(self, module: str, symbol: str, expected: str, got: str, provider: str) -> None:
        self.symbol, self.expected, self.got, self.provider = symbol, expected, got, provider
        super().__init__(module, f"import {symbol} is {expected}, but {provider} defines it as {got}")


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


class InstantiationError(LinkError):
    """The engine refuses to instantiate the module."""


class InitializationError(LinkError):
    """A start function, relocation function or constructor ended abnormally; the load was undone.

    Attributes:
        function: what was running, such as `__wasm_call_ctors`.
    """

    def __init__(self, module: str, function: str, cause: BaseException) -> None:
        self.function = function
        super().__init__(module, f"{function} failed: {cause}")


class SymbolNotFoundError(DlError):
    """No module in the searched scope exports the symbol.

    Attributes:
        symbol: what was looked for.
        searched: names of the modules that were searched, in order.
        reason: why a definition that exists cannot be given out; empty when there is none.
    """

    def __init__(self, symbol: str, searched: Sequence[str], reason: str = "") -> None:
        super().__init__(symbol, searched, reason)
        self.symbol = symbol
        self.searched = tuple(searched)
        self.reason = reason

    def __str__(self) -> str:
        where = first_of(self.searched, len(self.searched)) or "nothing"
        return f"undefined symbol: {shown(self.symbol)} ({self.reason or 'searched ' + where})"


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


class FinalizationError(DlError):
    """A destructor of a library that was closed ended abnormally; the library is unloaded nevertheless.

    Attributes:
        module: name of the library.
        function: what was running.
        cause: how it ended.
    """

    def __init__(self, module: str, function: str, cause: Exception) -> None:
        super().__init__(module, function, cause)
        self.module = module
        self.function = function
        self.cause = cause

    def __str__(self) -> str:
        return f"{shown(self.module)}: its destructor {self.function} failed: {self.cause}"


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


class TrapError(DlError):
    """Guest code trapped.

    Attributes:
        reason: the trap in words, such as `unreachable`.
        code: the engine's trap code; None when the engine gives none.
        frames: the guest's stack, innermost first, as `module!function` texts.
    """

    def __init__(self, reason: str, code: int | None = None, frames: Sequence[str] = ()) -> None:
        super().__init__(reason, code, frames)
        self.reason = reason
        self.code = code
        self.frames = tuple(frames)

    def __str__(self) -> str:
        at = f" (in {' < '.join(self.frames[:8])})" if self.frames else ""
        return f"guest trapped: {self.reason}{at}"


class UncaughtExceptionError(TrapError):
    """Guest code threw a WebAssembly exception that none of the guest code in the call caught.

    It ends the call as a trap does: no guest code further out can catch it.

    Attributes:
        tag: name of the exception's tag, `__cpp_exception` or `__c_longjmp` for C++ and `longjmp`; None for a tag that
            no module exports.
        value: its first value if that is an i32, unsigned: with the two tags, an address in linear memory; None otherwise.
    """

    def __init__(
        self, tag: str | None, value: int | None, code: int | None = None, frames: Sequence[str] = ()
    ) -> None:
        named = f" with tag {tag}" if tag else ""
        carries = "" if value is None else f" (its first value is {value:#x})"
        super().__init__(f"uncaught exception{named}{carries}", code, frames)
        self.args = (tag, value, code, frames)
        self.tag = tag
        self.value = value


class ProgramExited(DlError):  # noqa: N818  an ending asked for, not a fault
    """The guest ended the program.

    Attributes:
        code: its exit code.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code

    def __str__(self) -> str:
        return f"program exited with code {self.code}"


class ThreadExited(DlError):  # noqa: N818  an ending asked for, not a fault
    """The guest ended the calling thread."""

    def __str__(self) -> str:
        return "thread exited"


class GuestThreadError(DlError):
    """A thread that the guest started ended abnormally, and the program with it.

    Attributes:
        thread: its name.
        cause: what ended it.
    """

    def __init__(self, thread: str, cause: BaseException) -> None:
        super().__init__(thread, cause)
        self.thread = thread
        self.cause = cause
        self.__cause__ = cause

    def __str__(self) -> str:
        return f"{self.thread}: {self.cause}"


class ProgramDeadlockedError(DlError):
    """All threads of the program wait, and nothing is left that could wake one.

    Attributes:
        threads: name of each thread, and what it waits for.
    """

    def __init__(self, threads: Sequence[tuple[str, str]]) -> None:
        super().__init__(threads)
        self.threads = tuple(threads)

    def __str__(self) -> str:
        return "deadlock: " + "; ".join(f"{name} waits for {what}" for name, what in self.threads)


class GroupEndedError(DlError):
    """The thread's instance group can run no more guest code; the program's other threads can.

    Attributes:
        thread: name of the group's thread.
        reason: why, lower case.
    """

    def __init__(self, thread: str, reason: str) -> None:
        super().__init__(thread, reason)
        self.thread = thread
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.thread}: its instance group has ended: {self.reason}"


class ReplayFailedError(GroupEndedError):
    """The group could not make a link operation that another thread has committed, so it alone has ended.

    Attributes:
        cause: what went wrong, such as memory or table that cannot grow.
    """

    def __init__(self, thread: str, cause: BaseException) -> None:
        super().__init__(thread, f"it cannot follow a link operation: {cause}")
        self.args = (thread, cause)
        self.cause = cause
        self.__cause__ = cause


class ValueConversionError(DlError, TypeError):
    """A Python value does not fit a WebAssembly signature.

    Attributes:
        kind: the signature.
        reason: what does not fit.
    """

    def __init__(self, kind: object, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind = kind
        self.reason = reason

    def __str__(self) -> str:
        return f"function {self.kind}: {self.reason}"


class EngineError(DlError):
    """The engine failed, or refuses a configuration."""


class InternalError(DlError):
    """The linker broke a rule of its own: a fault in it, to be reported with the whole traceback."""


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


class ProgramForkedError(LinkerUsageError):
    """A linker was used in a child made by `os.fork`; its threads, and whoever held its locks, stayed in the parent."""


class LinkerClosedError(LinkerUsageError):
    """The linker or the instance group was closed."""
