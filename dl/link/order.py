"""The order in which the modules of a load are constructed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dl.modules.linked_module import LinkedModule


def dependencies_first(modules: Sequence[LinkedModule]) -> list[LinkedModule]:
    """Return modules so that each comes after those of them that it needs, unless they need it in turn.

    Modules that need one another, a strongly connected component, stay together, in the order given: whichever comes first
    lacks something that it needs. What the component needs beside itself comes before all of it. The order in which a
    cycle was found is not enough for that: the member at which it closes may need a library that is found later.

    Tarjan's algorithm, which finishes a component after all it leads to; iterative, as a chain may be long.
    """
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
        return module, iter([needed for needed in module.needed if id(needed) in place])

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
