"""Where a store finds the imports of a module by their positions, for engines that take lists of them.

A function of a library is taken from the table, where it has the same index in every store; what the program has once is known
by name; a number becomes a global. What is left, such as stubs, an import module exports.
"""

from __future__ import annotations

from collections.abc import Container

from dl.dlfcn import MAIN_HANDLE, ModuleHandle
from dl.engine.import_list import ImportList, TableFunctions
from dl.glue.imports import link_names
from dl.glue.names import BASE_NAMESPACE, STACK_POINTER_NAME, TABLE_NAME, module_namespace
from dl.glue.resolution import Constant, FromNamespace
from dl.link.sources import is_variable
from dl.modules.function_runs import Bindings, FunctionRun
from dl.modules.linked_module import LinkedModule
from dl.modules.symbols import places_itself
from dl.program.program import Program
from dl.wasm.types import GlobalType

_BY_NAME, _BY_NAME_EACH = 40.0, 0.65
_LISTED_EACH, _PLACED_EACH, _GENERATED = 1.7, 0.1, 40.0
"""Microseconds that an instance's imports take, about: an import module with its definitions, and each import of it; an import
that is listed one by one; one of many that are taken from the table; and an import module beside the list."""


def import_list(
    program: Program, module: LinkedModule, arriving: Container[ModuleHandle]
) -> ImportList | None:
    """Return where a store finds the imports of a module; None if it finds them faster by name.

    Args:
        program: the program.
        module: one of the modules of a load; its imports are bound.
        arriving: the handles of all modules of the load.
    """
    bindings, imports = module.bindings, module.wasm.imports
    if module.handle == MAIN_HANDLE or not imports or not isinstance(bindings, Bindings):
        return None  # a main module comes before the base module, which reads the table
    placed: list[tuple[TableFunctions, int]] = []
    named: list[tuple[int, str, str]] = []
    numbers: list[tuple[int, bool, int]] = []
    generated: list[int] = []
    for run in bindings.runs:
        found = _in_table(program, run, arriving)
        if found is None:
            namespace = module_namespace(run.seat)
            named += [(position, namespace, imports[position].name) for position in run.match.positions]
        else:
            placed += found
    anchors = program.main.anchors
    for position, binding in bindings.apart.items():
        entry = imports[position]
        if isinstance(binding, FromNamespace) and not binding.takes_caller:
            if binding.namespace == BASE_NAMESPACE:
                named.append((position, BASE_NAMESPACE, binding.name))
            elif binding == anchors.table:
                named.append((position, BASE_NAMESPACE, TABLE_NAME))
            elif binding == anchors.stack_pointer:
                named.append((position, BASE_NAMESPACE, STACK_POINTER_NAME))
            else:
                named.append((position, binding.namespace, binding.name))
        elif (
            isinstance(binding, Constant)
            and isinstance(entry.type, GlobalType)
            and entry.type.value == "i32"
            and not is_variable(entry)  # of which there is one for all
        ):
            numbers.append((position, entry.type.mutable, binding.value))
        else:
            generated.append(position)
    one_by_one = len(named) + len(numbers) + len(generated)
    listed = _LISTED_EACH * one_by_one + _PLACED_EACH * (len(imports) - one_by_one)
    if listed + _GENERATED * bool(generated) > _BY_NAME + _BY_NAME_EACH * len(imports):
        return None
    names = link_names(imports) if generated else []
    count = len(imports)
    if places_itself(module.wasm) and not module.wasm.tables:
        named.append(
            (count, BASE_NAMESPACE, TABLE_NAME)
        )  # what is compiled imports it for the function that places
        count += 1
    return ImportList(
        count,
        tuple(placed),
        tuple(named),
        tuple(numbers),
        tuple((position, names[position]) for position in generated),
    )


def _in_table(
    program: Program, run: FunctionRun, arriving: Container[ModuleHandle]
) -> list[tuple[TableFunctions, int]] | None:
    """Return a run's functions with the table indices where they begin; None if they are not there when it is needed."""
    provider = program.state.module(run.handle)
    assert provider is not None
    match, first = run.match, provider.first_placed
    if match.placed is not None and (
        first is None or (run.handle in arriving and not places_itself(provider.wasm))
    ):
        return None  # it has none, or a placement module puts them there when the whole load is instantiated
    found = [(match.own, 0 if match.fixed else provider.table_base)] if match.own is not None else []
    if match.placed is not None and first is not None:
        found.append((match.placed, first))
    return found
