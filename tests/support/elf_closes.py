"""Random histories of opens and closes on random graphs of libraries, for `tests.support.elf` to build and drive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from tests.support.elf import MAIN, SYMBOLS, Graph, Operation, Part

_SLOTS = 12
_FLAGS = (("GLOBAL", 0.35), ("NOLOAD", 0.12), ("DEEPBIND", 0.1), ("NODELETE", 0.03))


def random_history(seed: int) -> Graph:
    """Return the graph of a seed, with operations of which about half take something back."""
    rng = Random(f"closes {seed}")
    density = rng.choice([0.15, 0.3, 0.5])
    names = [f"x{n}.so" for n in range(rng.randint(2, 7))]
    files = [("d0", name) for name in names]
    files += [("d1", name) for name in names if rng.random() < 0.15]
    parts = tuple(_part(rng, n, *file, names, density) for n, file in enumerate(files))
    needed = tuple(rng.sample(names, 1)) if rng.random() < 0.3 else ()
    functions = {s: False for s in SYMBOLS if rng.random() < density * 0.3}
    return Graph(seed, Part(MAIN, ".", "main", needed, (), functions), parts, tuple(_operations(rng, files)))


def _part(rng: Random, number: int, directory: str, name: str, names: Sequence[str], density: float) -> Part:
    needed = tuple(n for n in rng.sample(names, min(len(names), rng.choice([0, 0, 0, 1, 1, 2]))) if n != name)
    return Part(
        number,
        directory,
        name,
        needed,
        ("$ORIGIN",) if rng.random() < 0.2 else (),
        {s: rng.random() < 0.2 for s in SYMBOLS if rng.random() < density},
        {s: rng.random() < 0.2 for s in SYMBOLS if rng.random() < density},
        {s: rng.choice(["call", "call", "weak address"]) for s in SYMBOLS if rng.random() < 0.5},
        {s: "data" if rng.random() < 0.1 else "weak data" for s in SYMBOLS if rng.random() < 0.3},
    )


def _operations(rng: Random, files: Sequence[tuple[str, str]]) -> Iterator[Operation]:
    taken: list[int] = []
    often_quiet = rng.choice([0.0, 0.6, 0.9])
    for _ in range(rng.randint(12, 40)):
        quiet = ["QUIET"] if rng.random() < often_quiet else []
        free = [slot for slot in range(_SLOTS) if slot not in taken]
        if free and (not taken or rng.random() < 0.52):
            directory, name = rng.choice(files)
            flags = [rng.choice(["LAZY", "LAZY", "LAZY", "NOW"])]
            flags += [flag for flag, often in _FLAGS if rng.random() < often]
            flags += quiet
            slot = free[0]
            taken.append(slot)
            path = name if directory == "d0" and rng.random() < 0.6 else f"{directory}/{name}"
            yield Operation("open", path, tuple(flags), slot)
        else:
            slot = taken.pop(rng.randrange(len(taken)))
            yield Operation("close", "-", tuple(quiet), slot)
        for _ in range(rng.choice([0, 0, 1])):
            kind = rng.choice(["function", "data"])
            yield Operation(kind, rng.choice(SYMBOLS), (), rng.choice([-1, *taken]))
    for slot in rng.sample(taken, len(taken)):
        yield Operation("close", "-", (), slot)
