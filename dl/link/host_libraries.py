"""Libraries as the host names them: by path, by bare name, or as bytes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from dl.dlfcn import MAIN_HANDLE, DlFlags, ModuleHandle
from dl.errors import LibraryNotFoundError, LinkError
from dl.groups.entry import Group
from dl.groups.registry import Groups
from dl.link.open import open_library
from dl.link.plan import LoadRequest
from dl.modules.image import ModuleImage, image_from_bytes, image_from_file
from dl.modules.locate import Locator, Requester, SearchPolicy
from dl.options import ModuleSource, checked_flags, listed


def module_image(locator: Locator, source: ModuleSource, name: str | None) -> ModuleImage:
    """Read a module that the host gives as a path or as bytes.

    Args:
        locator: the program's; it numbers the modules that have no name, and bounds what is read.
        source: the module.
        name: what messages call it; by which bytes are known.

    Raises:
        DlError: it cannot be read, or is no valid module.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        known_as = name or locator.next_anonymous_name()
        return image_from_bytes(bytes(source), known_as, f"<memory>/{known_as}")
    if "\0" in os.fspath(source):
        raise LibraryNotFoundError(os.fspath(source), [(repr(source), "not a path")])
    return image_from_file(Path(source), name or os.fspath(source), locator.budget)


def open_for_host(
    groups: Groups,
    group: Group,
    library: ModuleSource | None,
    flags: DlFlags,
    *,
    name: str | None = None,
    library_path: Sequence[str | os.PathLike[str]] | None = None,
    load_needed: bool = True,
) -> ModuleHandle:
    """Load a library for the host; see `InstanceGroup.dlopen`."""
    flags = checked_flags(flags)
    if library is None:
        return MAIN_HANDLE
    in_memory = isinstance(library, (bytes, bytearray, memoryview))
    known_as = name or ("a module of bytes" if in_memory else os.fspath(cast("str", library)))
    with groups.program.events.telling_failure(known_as):
        return _open(groups, group, library, flags, name, library_path, load_needed=load_needed)


def _open(
    groups: Groups,
    group: Group,
    library: ModuleSource,
    flags: DlFlags,
    name: str | None,
    library_path: Sequence[str | os.PathLike[str]] | None,
    *,
    load_needed: bool,
) -> ModuleHandle:
    program = groups.program
    policy = SearchPolicy.of_host(listed("library_path", library_path or ()), program.options.paths)
    locator = program.locator
    named: str | None = None
    if isinstance(library, (bytes, bytearray, memoryview)):
        image = module_image(locator, bytes(library), name)
        if name is not None:
            if locator.add(name, bytes(library)):
                named = name
            elif locator.libraries.get(name, library) != library:
                raise LinkError(
                    name, "there is another module of this name, with other bytes; give this one another"
                )
    else:
        image = locator.find(os.fspath(library), Requester(), policy, program.state.image_by_base_name)
    try:
        program.check_dynamic(image.name)
        return open_library(groups, group, image, LoadRequest(flags, policy=policy, load_needed=load_needed))
    except BaseException:
        if named is not None:
            locator.remove(named)
        raise
