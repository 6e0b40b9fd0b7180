"""The rooms of `dl`, and the one order of their imports."""

from __future__ import annotations

from pathlib import Path

ORDER = (
    ("__main__",),
    ("cli", "stress"),
    ("__init__",),  # the public names
    ("cluster",),
    ("pool",),
    ("shipping", "description"),
    ("tasks",),
    ("assembly", "linker", "group", "api"),  # see FACADE
    ("wamr",),
    ("instances",),
    ("wasix",),
    ("link",),
    ("groups",),
    ("program",),
    ("modules",),
    ("glue",),
    ("engine",),
    ("options",),
    ("wasm", "build"),
    (
        "memory",
        "threads",
        "errors",
        "dlfcn",
        "include",
        "limits",
        "digests",
        "recent",
        "later",
        "forks",
        "text",
        "records",
        "logs",
        "checks",
        "conflicts",
    ),
)
"""The floors of the house, from the top: what is on one imports what is on floors below it, or beside it."""

FACADE = {"assembly", "linker", "group", "api"}
"""What users hold counts as one room: a linker has groups, and a group knows its linker. The rest of it lies in `dl/api/`."""

FLOOR = {room: number for number, rooms in enumerate(ORDER) for room in rooms}


def room_of(file: str) -> str:
    """Return the room of a file: the folder in `dl`, the file's own name beside them, or the other package."""
    package, *inside = Path(file).with_suffix("").parts
    return package if package != "dl" else inside[0]
