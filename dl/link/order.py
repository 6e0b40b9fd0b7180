"""The order in which modules are constructed, and in which their ends come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from dl.dlfcn import ModuleHandle
from dl.modules.linked_module import LinkedModule


def _needed(module: LinkedModule) -> Iterable[LinkedModule]:
    return module.needed


def dependencies_first(
    modules: Sequence[LinkedModule],
    uses: Callable[[LinkedModule], Iterable[LinkedModule]] = _needed,
) -> list[LinkedModule]:
    """Return modules so that each comes after those of them that it uses, unless they use it in turn.

    Args:
        modules: the modules, in the order that they keep where nothing speaks against it.
        uses: what a module uses: by default, what it needs.

    Modules that need one another, a strongly connected component, stay together, in the order given: whichever comes first
    lacks something that it needs. What the component needs beside itself comes before all of it. The order in which a
    cycle was found is not enough for that: the member at which it closes may need a library that is found later.

    Tarjan's algorithm, which finishes a component after all it leads to; iterative, as a chain may be long.
    """
    if len(modules) < 2:
        return list(modules)
    place = {id(module): number for number, module in enumerate(modules)}
    reached: dict[int, int] = {}
    lowest: dict[int, int] = {}
    waiting: list[LinkedModule] = []  # reached, and not in a finished component yet
    unfinished: set[int] = set()
    order: list[LinkedModule] = []

    def enter(module: LinkedModule) -> tuple[LinkedModule, Iterator[LinkedModule]]:
        reached[id(module)] = lowest[id(module)] = len(reached)
        waiting.append(module)
        unfinished.add(id(module))
        return module, iter([used for used in uses(module) if id(used) in place])

    for root in modules:
        open_ = [] if id(root) in reached else [enter(root)]
        while open_:
            module, needs = open_[-1]
            needed = next(needs, None)
            if needed is not None:
                if id(needed) not in reached:
                    open_.append(enter(needed))
                elif id(needed) in unfinished:
                    lowest[id(module)] = min(lowest[id(module)], reached[id(needed)])
                continue
            open_.pop()
            if open_:
                above = id(open_[-1][0])
                lowest[above] = min(lowest[above], lowest[id(module)])
            if lowest[id(module)] == reached[id(module)]:
                component = [waiting.pop()]
                while component[-1] is not module:
                    component.append(waiting.pop())
                unfinished.difference_update(map(id, component))
                order += sorted(component, key=lambda member: place[id(member)])
    return order


def users_first(
    modules: Iterable[LinkedModule], by_handle: Mapping[ModuleHandle, LinkedModule]
) -> list[LinkedModule]:
    """Return modules so that each comes before those of them that it needs or is bound to; else the last constructed first.

    Reverse construction alone is not enough: a stub of a library may have been bound to one that came later, and a
    destructor may call it. In a circle of both, the needed lists decide, as in ELF.

    Args:
        modules: modules that go together.
        by_handle: the modules of the program.
    """

    def used(module: LinkedModule) -> Iterable[LinkedModule]:
        bound_to = [
            by_handle.get(handle) for handle in sorted(module.bound_to())
        ]  # other threads may remove some
        return [*module.needed, *(other for other in bound_to if other is not None)]

    in_order_of_construction = sorted(modules, key=lambda module: module.constructed)
    return dependencies_first(dependencies_first(in_order_of_construction), used)[::-1]
