"""Import lists that are made for a purpose: the specification's test harness, and programs of WASI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dl.engine.capabilities import Capabilities
from dl.instances.externals import External
from dl.instances.given import GivenImports
from dl.instances.instance import Module
from dl.instances.made import HostMade
from dl.instances.rules import WASI_NAMESPACES
from dl.instances.serve import BuiltIns, ImportSearch
from dl.wasm.types import FuncType, GlobalType, Limits, MemoryType, TableType

_PRINTS = {
    "print": (),
    "print_i32": ("i32",),
    "print_i64": ("i64",),
    "print_f32": ("f32",),
    "print_f64": ("f64",),
    "print_i32_f32": ("i32", "f32"),
    "print_f64_f64": ("f64", "f64"),
}
_NUMBERS = {"i32": 666, "i64": 666, "f32": 666.6, "f64": 666.6}


def spectest_imports(
    made: HostMade, capabilities: Capabilities, output: Callable[[str, tuple[Any, ...]], object]
) -> dict[str, External]:
    """Return what the module `spectest` of the specification's test harness exports; see `Linker.spectest_imports`.

    Source: the specification's `interpreter/host/spectest.ml`.
    """
    exports: dict[str, External] = {
        name: made.function(FuncType(params, ()), _printer(name, output)) for name, params in _PRINTS.items()
    }
    for kind, value in _NUMBERS.items():
        exports[f"global_{kind}"] = made.global_(GlobalType(kind, mutable=False), value)
    exports["table"] = made.table(TableType("funcref", Limits(10, 20, shared=False, is64=False)), None)
    if capabilities.memory64:
        exports["table64"] = made.table(TableType("funcref", Limits(10, 20, shared=False, is64=True)), None)
    exports["memory"] = made.memory(MemoryType(Limits(1, 2, shared=False, is64=False)))
    if capabilities.shared_memory:
        exports["shared_memory"] = made.memory(MemoryType(Limits(1, 2, shared=True, is64=False)))
    return exports


def _printer(name: str, output: Callable[[str, tuple[Any, ...]], object]) -> Callable[..., None]:
    def call(*arguments: Any) -> None:
        output(name, arguments)

    return call


def wasi_imports(module: Module, built_in: BuiltIns, made: HostMade) -> dict[tuple[str, str], External]:
    """Return what a module imports of WASI, and of the program's memory and table; see `Linker.wasi_imports`.

    Raises:
        DlError: what it imports of these is of another type.
    """
    search = ImportSearch(
        module.image.wasm,
        module.name,
        GivenImports(None, (), module.name),
        {},
        {},
        frozenset(),
        built_in,
        made,
        strict=False,
    )
    wanted = WASI_NAMESPACES | {"env"}
    return search.some(lambda entry: entry.module in wanted and built_in.has(entry))
