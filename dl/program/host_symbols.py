"""Host functions and values: what the program can import that no module defines.

Users give Python callables by namespace and name; system interfaces add theirs the same way. A callable takes its
signature from the import that asks for it, so one callable may serve imports of several signatures: each is
one engine function.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any

from dl.errors import ImportTypeError, LinkerUsageError, UnsupportedModuleError, ValueConversionError
from dl.glue.imports import taking_caller
from dl.glue.names import HOST_NAMESPACE
from dl.glue.resolution import HOST, FromNamespace
from dl.options import HostFunction, HostImports
from dl.records import dataclass
from dl.wasm.matching import host_fits
from dl.wasm.types import FuncType
from threads import found_in

if TYPE_CHECKING:
    from dl.engine.protocol import HostFunctions, RawFunction

ATOMICS = "dl.atomics"
"""Namespace of what rewritten modules reach through reserved table slots; no module can import from it."""


FINALIZERS = "dl.finalizers"
"""Namespace of what libraries get for `atexit` and the like; no module can import from it. See `dl.link.finalizers`."""


ENV = "env"
_MOST_COMPARED = 200


@dataclass(frozen=True)
class SystemFunction:
    """A function of a system interface, with the signature its ABI gives it.

    Attributes:
        type: its signature.
        binding: how modules reach it, when it is not a Python function.
        function: the Python function that gets typed values.
        raw: the Python function that works on slots.
        blocking: whether it may wait, link or call back into the guest.
        takes_caller: whether the Python function gets the importing module's handle before the arguments of its type.
        alternatives: the same function with other signatures, for programs whose tools lower it otherwise.
    """

    type: FuncType
    binding: FromNamespace | None = None
    function: Callable[..., Any] | None = None
    raw: RawFunction | None = None
    blocking: bool = True
    takes_caller: bool = False
    alternatives: tuple[SystemFunction, ...] = ()


class HostSymbols:
    """The host's side of symbol resolution.

    Args:
        functions: where host functions are defined for the engine.
        imports: what the user gave.
        more: further functions that the user asked for by an option; those given by name come before them.
        disagreement: returns in what a function that the user gave differs from the type that an import has for it, in words,
            as far as can be known before it is called; None if it does not.

    `_lock` guards `_defined`; the engine's definition runs under it, which takes only locks of its own.
    """

    def __init__(
        self,
        functions: HostFunctions,
        imports: HostImports,
        more: HostImports | None = None,
        *,
        disagreement: Callable[[Callable[..., Any], FuncType], str | None] = lambda _function, _kind: None,
    ) -> None:
        self._disagreement = disagreement
        self._functions = functions
        self._lock = threading.Lock()
        self._defined: dict[tuple[str, str, FuncType], FromNamespace] = {}
        self._given = imports
        self.user: dict[str, dict[str, Any]] = {
            ns: {**(more or {}).get(ns, {}), **imports.get(ns, {})} for ns in {**imports, **(more or {})}
        }
        for namespace, names in self.user.items():
            for name, value in names.items():
                if not (callable(value) or isinstance(value, (HostFunction, int, float))):
                    raise LinkerUsageError(
                        f"imports[{namespace!r}][{name!r}] is neither a function nor a number: {value!r}"
                    )
        self.system: dict[str, dict[str, SystemFunction]] = {}

    def has_namespace(self, namespace: str) -> bool:
        """Whether a namespace belongs to a system interface."""
        return namespace in self.system

    def number(self, namespace: str, name: str) -> int | float | None:
        """Return the number a user gave for a global or data address; None if there is none."""
        value = found_in(found_in(self.user, namespace, {}), name)
        return value if isinstance(value, (int, float)) else None

    def signature(self, namespace: str, name: str) -> FuncType | None:
        """Return the signature of a function that states its own; None if it has none or there is no such function."""
        value = self.user.get(namespace, {}).get(name)
        return value.type if isinstance(value, HostFunction) else None

    def defines_function(self, namespace: str, name: str) -> bool:
        """Whether a user gave a function of this name."""
        value = found_in(found_in(self.user, namespace, {}), name)
        return isinstance(value, HostFunction) or callable(value)

    def similar(self, namespace: str, name: str) -> str:
        """Return what a user gave under much the same names, as text; empty if there is nothing like it."""
        import difflib  # noqa: PLC0415  only for messages

        wanted = f"{ENV if namespace.startswith('GOT.') else namespace}.{name}"
        given = [f"{ns}.{field}" for ns, names in self._given.items() for field in names]
        close = difflib.get_close_matches(wanted[:_MOST_COMPARED], given, 1, 0.8)
        return close[0] if close and close[0] != wanted else ""

    def unused(self, imported: Container[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return what a user gave and no import means, by namespace and name.

        Args:
            imported: namespace and name of every import of the program.
        """

        def means(namespace: str, name: str) -> bool:
            addresses = (("GOT.mem", name), ("GOT.func", name)) if namespace == ENV else ()
            return any(place in imported for place in ((namespace, name), *addresses))

        return [(ns, name) for ns, names in self._given.items() for name in names if not means(ns, name)]

    def bind(self, namespace: str, name: str, kind: FuncType, importer: str) -> FromNamespace | None:
        """Return how a function import reaches the host's function; None if the host has none of that name.

        Raises:
            ImportTypeError: the function has another signature.
            UnsupportedModuleError: the signature has values that Python code cannot hold.
        """
        return self.bind_user(namespace, name, kind, importer) or self.bind_system(
            namespace, name, kind, importer
        )

    def bind_system(self, namespace: str, name: str, kind: FuncType, importer: str) -> FromNamespace | None:
        """Return how a function import reaches the system interface; see `bind`."""
        system = self.system.get(namespace, {}).get(name)
        if system is None:
            return None
        if not host_fits(system.type, kind):
            alternative = next((o for o in system.alternatives if host_fits(o.type, kind)), None)
            if alternative is None:
                raise ImportTypeError(
                    importer, f"{namespace}.{name}", str(kind), str(system.type), "the host"
                )
            system = alternative
        return system.binding or self._define(namespace, name, kind, importer, system)

    def bind_user(self, namespace: str, name: str, kind: FuncType, importer: str) -> FromNamespace | None:
        """Return how a function import reaches what the user gave; see `bind`."""
        value = self.user.get(namespace, {}).get(name)
        return None if value is None else self._bind_value(namespace, name, kind, importer, value)

    def _bind_value(
        self, namespace: str, name: str, kind: FuncType, importer: str, value: Any
    ) -> FromNamespace:
        wanted = f"{namespace}.{name}"
        if isinstance(value, HostFunction):
            if not host_fits(value.type, kind):
                raise ImportTypeError(importer, wanted, str(kind), str(value.type), "the host")
            value = value.function
        elif not callable(value):
            raise ImportTypeError(importer, wanted, str(kind), f"the number {value}", "the host")
        elif (namespace, name, kind) not in self._defined:
            differs = self._disagreement(value, kind)
            if differs is not None:
                raise ImportTypeError(
                    importer, wanted, str(kind), "a function of another type", "the host", remedy=differs
                )
        return self._define(namespace, name, kind, importer, SystemFunction(kind, function=value))

    def _define(
        self, namespace: str, name: str, kind: FuncType, importer: str, what: SystemFunction
    ) -> FromNamespace:
        key = (namespace, name, kind)
        with self._lock:
            binding = self._defined.get(key)
            if binding is None:
                # The length tells `a.b` + `c` from `a` + `b.c`.
                label = f"{len(namespace)}:{namespace}.{name} {kind}"
                kind = taking_caller(kind) if what.takes_caller else kind
                if what.raw is not None:
                    self._functions.define_raw(HOST_NAMESPACE, label, kind, what.raw)
                else:
                    assert what.function is not None
                    try:
                        check_numbers(kind)
                        self._functions.define(
                            HOST_NAMESPACE, label, kind, what.function, blocking=what.blocking
                        )
                    except ValueConversionError as error:
                        raise UnsupportedModuleError(
                            importer, f"import {namespace}.{name}: {error.reason}"
                        ) from error
                binding = self._defined[key] = FromNamespace(HOST_NAMESPACE, label, HOST, what.takes_caller)
            return binding


def check_numbers(kind: FuncType) -> None:
    """Check that a signature has no references: these are for functions that are objects, see `dl.instances.externals`.

    Raises:
        ValueConversionError: it has some.
    """
    references = kind.references()
    if references:
        raise ValueConversionError(kind, f"a value of type {references[0]} cannot cross into Python")
