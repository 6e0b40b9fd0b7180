"""Functions that one module imports from another, bound all at once; a part of the phase "resolve".

What is bound here is what `dl.link.resolve` would bind one by one: the first definition in the importer's scope, of the same
type, in a module that is instantiated before. Whatever is less plain than that is left to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet

from dl.glue.resolution import Binding
from dl.link.plan import LinkPlan
from dl.modules.function_runs import Bindings, FunctionRun, match, plain_functions
from dl.modules.linked_module import LinkedModule
from dl.wasm.records import Import

_MOST_MODULES = 8
"""Modules of a local scope that are looked through; where there are more, an index of their names is faster."""


def bind_all(
    plan: LinkPlan,
    module: LinkedModule,
    not_plain: AbstractSet[str],
    bind_import: Callable[[LinkedModule, Import], Binding],
) -> Bindings:
    """Return what each import of a module means.

    Args:
        plan: the load.
        module: one of its modules.
        not_plain: functions of `env` that other sources than the modules may define.
        bind_import: binds one import.

    Raises:
        ImportTypeError: a definition has another type than the import.
        UnsupportedModuleError: an import of a kind or type that cannot be served.
    """
    imports = module.wasm.imports
    runs = () if module.deep_bind else tuple(_runs(plan, module, not_plain))
    plain = plain_functions(module.wasm)
    rest: Collection[int] = plain.others
    if sum(len(run.match.positions) for run in runs) < len(plain.positions):
        bound = {position for run in runs for position in run.match.positions}
        rest = [position for position in range(len(imports)) if position not in bound]
    return Bindings(imports, runs, {position: bind_import(module, imports[position]) for position in rest})


def _runs(plan: LinkPlan, module: LinkedModule, not_plain: AbstractSet[str]) -> Iterable[FunctionRun]:
    plain = plain_functions(module.wasm)
    names = plain.names
    if not names:
        return
    every = not_plain.isdisjoint(plain.set_of_names)
    owners = plan.program.state.global_symbols.owners(names)
    first = owners[0]
    if every and first is not None and owners.count(first) == len(owners):
        provider = plan.program.state.module(first.handle)
        assert provider is not None
        run = _run(module, provider, None)
        if run is not None:
            yield run
        return
    by_owner: dict[int, tuple[LinkedModule, list[int]]] = {}
    unknown: list[int] = []
    for number, owner in enumerate(owners):
        if not every and names[number] in not_plain:
            continue
        if owner is None:
            unknown.append(number)
            continue
        group = by_owner.get(owner.handle)
        if group is None:
            provider = plan.program.state.module(owner.handle)
            assert provider is not None
            group = by_owner[owner.handle] = provider, []
        group[1].append(number)
    groups = [*by_owner.values(), *_in_scope(plan, module, names, unknown)]
    for provider, numbers in groups:
        run = _run(module, provider, tuple(numbers))
        if run is not None:
            yield run


def _in_scope(
    plan: LinkPlan, module: LinkedModule, names: Sequence[str], unknown: Sequence[int]
) -> Iterable[tuple[LinkedModule, list[int]]]:
    """Yield which modules of the load and of the importer's own scope define what the global scope does not."""
    added = plan.program.state.not_global(plan.promoted)
    scope = list(dict.fromkeys((*added, *(module.scope or ()))))
    if not unknown or len(scope) > _MOST_MODULES:
        return
    for provider in scope:
        exports = provider.wasm.exports
        # What a module exports and does not define is passed over too: it is looked at one by one.
        numbers = [number for number in unknown if names[number] in exports]
        if numbers:
            yield provider, numbers
            left = set(numbers)
            unknown = [number for number in unknown if number not in left]


def _run(
    importer: LinkedModule, provider: LinkedModule, numbers: tuple[int, ...] | None
) -> FunctionRun | None:
    if provider.handle >= importer.handle:
        return None  # instantiated later: its functions are called through the table
    found = match(importer.wasm, provider.wasm, (importer.image.digest, provider.image.digest), numbers)
    return None if found is None else FunctionRun(provider.handle, provider.seat, found)
