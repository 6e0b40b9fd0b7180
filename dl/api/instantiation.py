"""Instances and externals that are objects: made by the host, instantiated from lists, or found by import name."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dl.api.linker_base import LinkerBase
from dl.api.option_checks import check_library
from dl.checks import flag, instance, optional, taken, word
from dl.checks import function as callable_
from dl.options import ModuleSource
from dl.wasm.types import FuncType, GlobalType, MemoryType, TableType, TagType

if TYPE_CHECKING:
    from dl.instances.externals import External, Function, Global, Memory, Table, Tag
    from dl.instances.instance import Given, Instance, Module
    from dl.instances.rules import Initialize


def _check_module(module: object) -> None:
    """Check the type of what is to be instantiated.

    Raises:
        LinkerUsageError: it is no module.
    """
    if isinstance(module, (str, bytes, os.PathLike)):
        return
    from dl.instances.instance import Module  # noqa: PLC0415  not every program has any

    if not isinstance(module, Module):
        check_library(module, None, None)


class Instantiation(LinkerBase):
    """The methods of `Linker` for ordinary modules, with memories of their own, beside the program and its libraries.

    All of them are called in a thread that has an instance group, and serve all threads. `docs/instances.md` says what can be
    done in a program with several threads.
    """

    def instantiate(
        self,
        module: ModuleSource | Module,
        imports: Given = None,
        *,
        name: str | None = None,
        strict: bool = False,
        initialize: Initialize = True,
    ) -> Instance:
        """Instantiate a module, and before it the modules that it imports from by name.

        Args:
            module: the path of a file, its bytes, or what `load` returned.
            imports: what it imports: a list in the order of its imports, with None for what is not given; or a mapping by
                (module, field); or by module name, of mappings by field, or of instances. Each is an external, a function that
                `dlsym` found, a Python function, or the number of a global.
            name: what messages call the instance.
            strict: whether all must be given; else what is missing comes from instances that are registered, from what is
                built in, and from modules that are found by name, in this order.
            initialize: whether WASI's rules for commands and reactors hold, and what a module exports for that is called once:
                `_initialize` of a reactor, `__post_instantiate`, and `__wasm_call_ctors` of a module without WASI that has
                neither `_start` nor `_initialize`. "wasi" calls `_initialize` only where WASI is imported, and
                `__wasm_call_ctors` wherever it is not, as WAMR does.

        Returns:
            The instance; its `sources` say where each import came from.

        Raises:
            ImportTypeError: something that was given or found does not fit.
            UnresolvedSymbolsError: nothing serves some imports.
            ImportCycleError: modules import from each other by name in a circle.
            InitializationError: a start function, an active segment or one of those functions trapped.
            DlError: a module cannot be read or compiled. After any of these all externals can be used as before.
        """
        self._check_open()
        _check_module(module)
        taken(optional(word), name, "name")
        taken(flag, strict, "strict")
        return self.parts.instances().instantiate(
            module, imports, name=name, strict=strict, initialize=initialize
        )

    def load(self, module: ModuleSource | Module, *, name: str | None = None, resolve: bool = True) -> Module:
        """Read a module that can be instantiated any number of times.

        Args:
            module: the path of a file, or its bytes.
            name: what messages call it.
            resolve: whether to read the modules that it imports from by name, too, and demand that nothing is missing.

        Raises:
            UnresolvedSymbolsError: `resolve`, and nothing serves some imports.
            DlError: it cannot be read.
        """
        self._check_open()
        _check_module(module)
        taken(optional(word), name, "name")
        taken(flag, resolve, "resolve")
        return self.parts.instances().load(module, name, resolve=resolve)

    def register(self, name: str, what: Instance | Module, *, replace: bool = False) -> None:
        """Let modules import from an instance, or from a module that is instantiated when the first one does, by a name.

        Args:
            name: the import module name.
            what: the instance or module. A module has one name at most.
            replace: whether the name may have been that of another module; instances that were made stay as they are.

        Raises:
            LinkerUsageError: the name is that of another module, or of what is built in, or the module has another name.
        """
        self._check_open()
        taken(flag, replace, "replace")
        self.parts.instances().named.register(name, what, replace=replace)

    def find(self, name: str) -> Module | None:
        """Return the module of a name: registered, or found because another imports from it; None if there is none."""
        self._check_open()
        taken(word, name, "name")
        return self.parts.instances().named.find(name)

    def instance(self, name: str) -> Instance | None:
        """Return the one instance of a name: registered, or made for another module's import; None if there is none."""
        self._check_open()
        taken(word, name, "name")
        return self.parts.instances().instance(name)

    # externals of the host

    def new_memory(
        self, minimum: int, maximum: int | None = None, *, shared: bool = False, is64: bool = False
    ) -> Memory:
        """Make a memory that modules can import.

        Args:
            minimum: pages of 64 KiB to begin with, 0 to 65536 (2**48 with 64-bit addresses).
            maximum: pages that it may grow to; None for no limit but the program's. A shared memory needs one.
            shared: whether it is one memory for all threads, and for instances of other programs on the same engine.
            is64: whether its addresses have 64 bits.

        Raises:
            LinkerUsageError: the sizes are impossible, or it is not shared and the program has several threads.
            ResourceLimitError: `Limits.memory_pages`, or the engine has no room.
        """
        from dl.instances.made import limits  # noqa: PLC0415  few programs have objects for instances; see `Later`

        self._check_open()
        return self.parts.instances().made.memory(
            MemoryType(limits(minimum, maximum, shared=shared, is64=is64))
        )

    def new_table(
        self,
        element: str = "funcref",
        minimum: int = 0,
        maximum: int | None = None,
        *,
        is64: bool = False,
        initial: Any = None,
    ) -> Table:
        """Make a table that modules can import.

        Args:
            element: "funcref" or "externref".
            minimum: elements to begin with.
            maximum: elements that it may grow to; None for no limit but the program's.
            is64: whether its indices have 64 bits.
            initial: what each element holds to begin with.

        Raises:
            LinkerUsageError: type or sizes are impossible, or the program has several threads.
            ResourceLimitError: `Limits.table_elements`.
            ValueConversionError: `initial` is no element.
        """
        from dl.instances.made import limits  # noqa: PLC0415  as above

        self._check_open()
        taken(word, element, "element")
        kind = TableType(element, limits(minimum, maximum, is64=is64))
        return self.parts.instances().made.table(kind, initial)

    def new_global(self, kind: str, value: Any, *, mutable: bool = False) -> Global:
        """Make a global that modules can import.

        Args:
            kind: "i32", "i64", "f32", "f64", "v128", "funcref" or "externref".
            value: what it holds to begin with; see `dl.Global`.
            mutable: whether it can change.

        Raises:
            ValueConversionError: the value is of another type.
            LinkerUsageError: there is no such type, or the program has several threads and the global can change or refers to
                something.
        """
        self._check_open()
        taken(word, kind, "kind")
        taken(flag, mutable, "mutable")
        return self.parts.instances().made.global_(GlobalType(kind, mutable), value)

    def new_function(self, kind: FuncType | str, function: Callable[..., Any]) -> Function:
        """Make a Python function one that modules can import, and that tables can hold.

        Args:
            kind: its signature, as a `FuncType` or text such as `"(i32, funcref) -> externref"`.
            function: gets and returns values as a `dl.Function` does. What it raises unwinds the guest.

        Raises:
            LinkerUsageError: the text is no signature.
            ValueConversionError: the signature has values that Python code cannot hold.
        """
        from dl.instances.made import signature  # noqa: PLC0415  as above

        self._check_open()
        taken(callable_, function, "function")
        return self.parts.instances().made.function(signature(kind), function)

    def new_tag(self, kind: FuncType | str) -> Tag:
        """Make an exception tag that modules can import.

        Args:
            kind: what its exceptions carry, as the parameters of a signature such as `"(i32) -> ()"`.

        Raises:
            LinkerUsageError: the text is no signature, it has results, or the engine has no exceptions.
        """
        from dl.instances.made import signature  # noqa: PLC0415  as above

        self._check_open()
        return self.parts.instances().made.tag(TagType(signature(kind)))

    # lists that are made for a purpose

    def wasi_imports(self, module: Module) -> dict[tuple[str, str], External]:
        """Return what a module imports of WASI, and of the program's memory and table, by module and field: for `instantiate`.

        Raises:
            ImportTypeError: it imports something of these with another type.
            UnsupportedModuleError: a function cannot work on the module's memory.
        """
        from dl.instances.instance import Module  # noqa: PLC0415  as above
        from dl.instances.lists import wasi_imports  # noqa: PLC0415  as above

        self._check_open()
        taken(instance(Module), module, "module")
        instances = self.parts.instances()
        return wasi_imports(module, instances.built_in, instances.made)

    def spectest_imports(
        self, output: Callable[[str, tuple[Any, ...]], object] = lambda _name, _arguments: None
    ) -> dict[str, External]:
        """Make what the module `spectest` of the specification's tests exports, by field: for `instantiate`.

        Numbers 666 and 666.6, tables of 10 to 20 elements, a memory of 1 to 2 pages, and functions that print.

        Args:
            output: gets the name of a function that prints, and its arguments.

        Raises:
            LinkerUsageError: the program has several threads.
        """
        from dl.instances.lists import spectest_imports  # noqa: PLC0415  as above

        self._check_open()
        return spectest_imports(self.parts.instances().made, self.engine.capabilities, output)
