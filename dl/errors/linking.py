"""Errors of linking a module into the program, and of closing it."""

from __future__ import annotations

from collections.abc import Sequence

from dl.errors.base import DlError
from dl.records import dataclass
from dl.text import MOST_LISTED, first_of, shown


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
        advice = f": give some by library_path, or a path, such as './{module}'"
        super().__init__(module, self._reason(self.tried, advice))

    @property
    def for_guest(self) -> str:
        """The message with the paths as a guest may learn of them; it may still name modules as the host does."""
        return str(LinkError(self.module, self._reason(self.guest_tried, "")))

    def _reason(self, tried: Tried, advice: str) -> str:
        where = (
            "; ".join(f"{path}: {why}" for path, why in tried[:MOST_LISTED])
            or f"no directory to search{advice}"
        )
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
        remedy: what to do about it, if the symbols are of a well-known library; else empty.
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
        alone = all(name == module for name in self.searched)
        self.remedy = _bringer([m.symbol for m in self.missing], module if alone else "")
        advice = f"; {self.remedy}" if self.remedy else ""
        super().__init__(module, f"undefined symbols: {listed} (searched {where}){advice}")


_CXX = (
    "_Zn",
    "_Zd",
    "_ZNSt",
    "_ZNKSt",
    "_ZTISt",
    "_ZTVSt",
    "_ZTVN10__cxxabiv1",
    "__cxa_",
    "__gxx_",
    "_Unwind_",
)
"""How names of the run-time library of C++ begin."""

_C = frozenset(
    [
        "abort",
        "calloc",
        "errno",
        "exit",
        "fclose",
        "fflush",
        "fopen",
        "fprintf",
        "fputs",
        "free",
        "fwrite",
        "malloc",
        "memcmp",
        "memcpy",
        "memmove",
        "memset",
        "printf",
        "putchar",
        "puts",
        "qsort",
        "realloc",
        "snprintf",
        "stderr",
        "stdin",
        "stdout",
        "strchr",
        "strcmp",
        "strcpy",
        "strdup",
        "strlen",
        "strncmp",
        "strtol",
        "vsnprintf",
    ]
)
"""Functions that tell that a module expects a C library."""


THREAD_FUNCTIONS = ("pthread_", "thrd_", "mtx_", "cnd_", "sem_")
"""How names of the C library's functions for threads begin."""


def _bringer(names: Sequence[str], alone: str) -> str:
    """Return how to build a program that has what is missing, if it is of the C or C++ library.

    Args:
        names: the missing symbols.
        alone: the name of a module that is loaded into no program; empty if there are others.
    """
    if any("St3__2" in name for name in names):
        return (
            "they are of another C++ library, std::__2, than the std::__1 of programs that `dlrun c++` builds: build this "
            "with `dlrun c++ -shared`, or let it do without"
        )
    threads = any(name.startswith(THREAD_FUNCTIONS) for name in names)
    for library, has, command in (
        ("C++", any(name.startswith(_CXX) for name in names), "c++"),
        ("C", threads or not _C.isdisjoint(names), "cc"),
    ):
        if has:
            path = shown(alone if "/" in alone else f"./{alone}")
            return (
                f"the {library} library has such symbols: load this into a program that carries it, "
                f"built with `dlrun {command}{' -pthread' if threads else ''} -rdynamic`"
                + (f", as in `dlrun --preload {path} --invoke FUNCTION app.wasm`" if alone else "")
                + ("; build this with -pthread, too" if threads else "")
            )
    return ""


class ImportTypeError(LinkError):
    """A definition was found, but its type is not the one the import asks for.

    Attributes:
        symbol: namespace and name of the import, joined by a dot.
        expected: the import's type as text.
        got: the definition's type as text.
        provider: name of the module, or `the host`, that defines it.
        index: the import's place among all imports of the module, from 0; None where it is not known.
        remedy: what to do about it, if that is known; else empty.
    """

    def __init__(
        self,
        module: str,
        symbol: str,
        expected: str,
        got: str,
        provider: str,
        index: int | None = None,
        *,
        remedy: str = "",
    ) -> None:
        self.symbol, self.expected, self.got, self.provider = symbol, expected, got, provider
        self.index = index
        self.remedy = remedy
        place = "" if index is None else f" {index},"
        reason = f"import{place} {symbol} is {expected}, but {provider} defines it as {got}"
        super().__init__(module, f"{reason}; {remedy}" if remedy else reason)


class ImportCycleError(LinkError):
    """Modules import from each other by name in a circle, so none of them can be instantiated first.

    Attributes:
        chain: their names, from the one that was asked for to the one that closes the circle.
    """

    def __init__(self, module: str, chain: Sequence[str]) -> None:
        self.chain = tuple(chain)
        super().__init__(
            module, f"modules import from each other in a circle: {' -> '.join(map(shown, self.chain))}"
        )


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
