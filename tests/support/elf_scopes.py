"""Random graphs whose libraries ask dlfcn themselves, some preloaded, some bound at the load, for `tests.support.elf`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random

from tests.support.elf import SYMBOLS, Graph, Operation, Part, random_graph

_FLAGS = (("GLOBAL", 0.4), ("DEEPBIND", 0.3), ("NOLOAD", 0.15))
_CALLED = ("call", "weak address")


def random_scopes(seed: int) -> Graph:
    """Return the graph of a seed: each library asks RTLD_NEXT and RTLD_DEFAULT for some functions, after every operation."""
    rng = Random(f"scopes {seed}")
    graph = random_graph(seed)
    parts = tuple(_asking(rng, part) for part in graph.parts)
    preload: tuple[str, ...] = ()
    if rng.random() < 0.5:
        chosen = rng.sample(graph.parts, min(len(graph.parts), rng.choice([1, 1, 2])))
        preload = tuple(f"{part.directory}/{part.name}" for part in chosen)
    operations = tuple(_operations(rng, graph.parts))
    return replace(graph, parts=parts, operations=operations, preload=preload, bind_now=rng.random() < 0.2)


def _asking(rng: Random, part: Part) -> Part:
    asks = [f"{where} {symbol}" for where in ("next", "default") for symbol in SYMBOLS if rng.random() < 0.4]
    uses = {symbol: rng.choice(_CALLED) for symbol in part.uses}
    return replace(part, asks=tuple(asks), uses=uses)


def _operations(rng: Random, parts: Sequence[Part]) -> Iterator[Operation]:
    taken: list[int] = []
    for slot in range(rng.randint(4, 9)):
        if taken and rng.random() < 0.25:
            yield Operation("close", "-", (), taken.pop(rng.randrange(len(taken))))
        part = rng.choice(parts)
        flags = [rng.choice(["LAZY", "LAZY", "NOW"]), *(f for f, often in _FLAGS if rng.random() < often)]
        taken.append(slot)
        yield Operation("open", f"{part.directory}/{part.name}", tuple(flags), slot)
        if rng.random() < 0.6:
            yield Operation("function", rng.choice(SYMBOLS), (), rng.choice([-1, *taken]))
