"""What a user can ask of a linker, apart from the program itself."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeVar, get_args

from dl.checks import each, flag, function, taken, word
from dl.dlfcn import ALL_FLAGS, DlFlags, has_flag
from dl.errors import LinkerUsageError
from dl.records import dataclass
from dl.wasm.types import NUMBER_TYPES, FuncType, Limits
from dl.wasm.types import MemoryType as WasmMemoryType

DEFAULT_STACK_BYTES = 1 << 20
"""Shadow stack of the main thread when nothing else is asked for: that of wasm-ld's `-z stack-size` for WASIX, 1 MiB."""

T = TypeVar("T")

MAX_PAGES = 65536

ModuleSource = str | os.PathLike[str] | bytes
"""A module: the path of a file, or the bytes themselves."""

SideMemorySource = Literal["auto", "grow", "allocator"]
"""Where the data of side modules goes: pages added by growing memory; blocks from the main module's own allocator (for
C libraries that take everything above their heap base for theirs, as Emscripten's does); or whichever the main module needs."""

Binding = Literal["lazy", "now"]
"""When functions that nothing defines are missed: at their first call, if a dlopen does not ask otherwise; or at each load."""

GuestDlfcn = Literal["wasix", "elf"]
"""How the guest's dlopen and dlsym act: as WASIX has them, which ignores flags, or as ELF does; see docs/dlfcn.md."""

Output = Callable[[bytes], object] | str | os.PathLike[str] | None

Finder = Callable[[str], "ModuleSource | AbstractContextManager[ModuleSource] | None"]
"""Returns the module of a name: bytes, a path, a context manager that gives one of these and releases it, or None for none."""


@dataclass(frozen=True)
class NamingOptions:
    """How modules are found by the names that others import from; see `Linker`."""

    modules: Mapping[str, ModuleSource] | None = None
    module_path: Sequence[str | os.PathLike[str]] = ()
    finder: Sequence[Finder] | Finder = ()
    isolate: bool = False

    @property
    def names_modules(self) -> bool:
        """Whether there is any name that a module may be found by."""
        return bool(self.modules or self.module_path or self.finder)


def flags_of(flags: int) -> DlFlags:
    """Return the flags of a dlopen from a number.

    Raises:
        LinkerUsageError: it is none.
    """
    try:
        return DlFlags(flags)
    except (ValueError, TypeError):
        raise LinkerUsageError(
            f"dlopen takes flags of dl.DlFlags, such as dl.RTLD_NOW, not {flags!r}"
        ) from None


def checked_flags(flags: DlFlags) -> DlFlags:
    """Return the flags of a dlopen, if they are some.

    Raises:
        LinkerUsageError: they do not say when to bind, or have bits of another system's numbering.
    """
    if not has_flag(flags, DlFlags.LAZY) and not has_flag(flags, DlFlags.NOW):
        raise LinkerUsageError("dlopen needs RTLD_LAZY or RTLD_NOW among its flags")
    unknown = int(flags) & ~ALL_FLAGS
    if unknown:
        raise LinkerUsageError(f"dlopen knows no flags {unknown:#x}; its flags are those of dl.DlFlags")
    return flags


def _checked_choice(option: str, value: str, choices: object) -> None:
    if value not in get_args(choices):
        raise LinkerUsageError(f"{option} must be one of {get_args(choices)}, not {value!r}")


def checked_side_memory(source: SideMemorySource) -> SideMemorySource:
    """Return the source of side modules' memory, if there is such a one.

    Raises:
        LinkerUsageError: there is none.
    """
    _checked_choice("side_memory", source, SideMemorySource)
    return source


def checked_binding(bind: Binding) -> bool:
    """Return whether all loads demand all functions.

    Raises:
        LinkerUsageError: it is neither "lazy" nor "now".
    """
    _checked_choice("bind", bind, Binding)
    return bind == "now"


def checked_dlfcn(guest_dlfcn: GuestDlfcn) -> bool:
    """Return whether the guest's dlopen and dlsym act as ELF's.

    Raises:
        LinkerUsageError: it is neither "wasix" nor "elf".
    """
    _checked_choice("guest_dlfcn", guest_dlfcn, GuestDlfcn)
    return guest_dlfcn == "elf"


def listed(option: str, value: Sequence[T]) -> tuple[T, ...]:
    """Return the values of an option that takes several.

    Raises:
        LinkerUsageError: it is one text or path, which Python would take for a list of its characters.
    """
    if isinstance(value, (str, bytes, os.PathLike)):
        raise LinkerUsageError(f"{option} must be a list, not {value!r} alone")
    return tuple(value)


_SIGNATURE = r"\s*\(([^()]*)\)\s*->\s*(?:\(([^()]*)\)|(\w+))\s*"


def parse_signature(text: str, *, references: bool = False) -> FuncType:
    """Return the signature that a text such as `"(i32, f64) -> i32"` or `"() -> ()"` stands for.

    The inverse of `str(FuncType(...))`.

    Args:
        text: the text.
        references: whether `funcref` and `externref` are value types too.

    Raises:
        LinkerUsageError: it is no signature.
    """
    match = re.fullmatch(_SIGNATURE, str(text))
    if match is None:
        raise LinkerUsageError(f"not a signature such as '(i32, f64) -> i32': {text!r}")
    params, results, result = match.groups()
    known = NUMBER_TYPES | {"funcref", "externref"} if references else NUMBER_TYPES
    return FuncType(_types(params, text, known), _types(result if results is None else results, text, known))


def _types(listed: str, text: str, known: frozenset[str]) -> tuple[str, ...]:
    if not listed.strip():
        return ()
    names = tuple(name.strip() for name in listed.split(","))
    for name in names:
        if name not in known:
            *most, last = sorted(known, key=lambda one: (one not in NUMBER_TYPES, one))
            raise LinkerUsageError(
                f"{name!r} in the signature {text!r} is none of {', '.join(most)} and {last}"
            )
    return names


@dataclass(frozen=True)
class MemoryType:
    """A linear memory that the host provides.

    Attributes:
        minimum: pages of 64 KiB to begin with, 0 to 65536.
        maximum: pages it may grow to; None for 65536.
        shared: whether threads share it; needs an engine with shared memory.
    """

    minimum: int = 1
    maximum: int | None = None
    shared: bool = False

    def __post_init__(self) -> None:
        for pages in (self.minimum, 0 if self.maximum is None else self.maximum):
            if not hasattr(pages, "__index__"):
                raise LinkerUsageError(f"a memory has a number of pages, not {pages!r}")
        taken(flag, self.shared, "shared")
        top = MAX_PAGES if self.maximum is None else self.maximum
        if not 0 <= self.minimum <= top <= MAX_PAGES:
            raise LinkerUsageError(
                f"memory of {self.minimum} to {top} pages is outside 0 <= minimum <= maximum <= {MAX_PAGES}"
            )

    def wasm(self) -> WasmMemoryType:
        """Return the WebAssembly type; a shared memory always has a maximum."""
        maximum = MAX_PAGES if self.shared and self.maximum is None else self.maximum
        return WasmMemoryType(Limits(self.minimum, maximum, self.shared, is64=False))


@dataclass(frozen=True)
class HostFunction:
    """A Python function with a WebAssembly signature of its own.

    Needed only where no import states the signature: a function whose address the guest takes but that it never calls
    by name. Everywhere else a plain callable takes the signature of the import that asks for it.

    Attributes:
        function: what to call.
        params: value types, such as `("i32", "f64")`.
        results: value types; several results are returned as a tuple.
    """

    function: Callable[..., Any]
    params: tuple[str, ...] = ()
    results: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        taken(function, self.function, "function")
        taken(each(word), self.params, "params")
        taken(each(word), self.results, "results")

    @property
    def type(self) -> FuncType:
        """The signature."""
        return FuncType(tuple(self.params), tuple(self.results))


HostImports = Mapping[str, Mapping[str, Callable[..., Any] | HostFunction | int | float]]
"""Import module name, to field name, to a function, or the value of a global or data address."""
