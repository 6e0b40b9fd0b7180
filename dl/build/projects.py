"""Small projects that `dlrun new` writes."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from dl.errors import BuildError

TEMPLATES = ("plugin-host",)


def write_project(template: str, directory: str) -> list[str]:
    """Write a project into a new or empty directory; return the paths of its files.

    Raises:
        BuildError: there is no such template, or the directory has something in it.
        OSError: it cannot be written.
    """
    if template not in TEMPLATES:
        raise BuildError(f"no template {template!r}; there are {', '.join(TEMPLATES)}")
    target = Path(directory)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BuildError(f"{directory} exists and is not an empty directory")
    source = files("dl.build") / "templates" / template
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for item in sorted(source.iterdir(), key=lambda item: item.name):
        path = target / item.name.removesuffix(
            ".txt"
        )  # which keeps Python's tools from taking it for a part of `dl`
        path.write_bytes(item.read_bytes())
        written.append(str(path))
    return written
