"""Libraries as the host names them: by path, by bare name, or as bytes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from dl.dlfcn import DlFlags, ModuleHandle
from dl.errors import LibraryNotFoundError
from dl.groups.entry import Group
from dl.groups.registry import Groups
from dl.link.open import open_library
from dl.link.plan import LoadRequest
from dl.modules.image import ModuleImage, image_from_bytes, image_from_file
from dl.modules.locate import Requester
from dl.options import ModuleSource, checked_flags, listed

_numbers = itertools.count(1)
"""Of modules that were given as bytes without a name: each is another module."""


def module_image(source: ModuleSource, name: str | None) -> ModuleImage:
    """Read a module that the host gives as a path or as bytes.

    Raises:
        DlError: it cannot be read, or is no valid module.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        known_as = name or f"<bytes {next(_numbers)}>"
        return image_from_bytes(bytes(source), known_as, f"<memory>/{known_as}")
    if "\0" in os.fspath(source):
        raise LibraryNotFoundError(os.fspath(source), [(repr(source), "not a path")])
    return image_from_file(Path(source), name or os.fspath(source))


def open_for_host(
    groups: Groups,
    group: Group,
    library: ModuleSource,
    flags: DlFlags,
    *,
    name: str | None = None,
    library_path: Sequence[str | os.PathLike[str]] | None = None,
) -> ModuleHandle:
    """Load a library for the host; see `InstanceGroup.dlopen`."""
    program = groups.program
    flags = checked_flags(flags)
    first = [Path(p) for p in listed("library_path", library_path or ())]
    locator = program.locator
    named: str | None = None
    if isinstance(library, (bytes, bytearray, memoryview)):
        image = module_image(bytes(library), name)
        if name is not None and locator.add(name, bytes(library)):
            named = name
    else:
        image = locator.find(os.fspath(library), Requester(), first)
    try:
        program.check_dynamic(image.name)
        return open_library(groups, group, image, LoadRequest(flags, search_first=first))
    except BaseException:
        if named is not None:
            locator.remove(named)
        raise
