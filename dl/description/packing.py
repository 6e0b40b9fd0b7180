"""The modules of a description as bytes: what it names, and what that needs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dl.assembly import new_locator
from dl.description.functions import named_function
from dl.errors import SpecError
from dl.limits import Limits
from dl.modules.image import ModuleImage, image_from_bytes, image_from_file
from dl.modules.locate import Locator, requester_of
from dl.modules.reading import ReadBudget
from dl.options import ModuleSource

if TYPE_CHECKING:
    from dl.description.spec import Spec


def module_bytes(source: ModuleSource, name: str, limits: Limits) -> bytes:
    """Return a module's bytes.

    Args:
        source: the path of a file, or the bytes.
        name: what errors call it.
        limits: bound what is read.

    Raises:
        DlError: the file cannot be read, is too large, or is no module.
    """
    if isinstance(source, bytes):
        return source
    return _image(source, name, limits).wasm.data


def _image(source: ModuleSource, name: str, limits: Limits) -> ModuleImage:
    if isinstance(source, bytes):
        return image_from_bytes(source, name, f"<memory>/{name}")
    return image_from_file(
        Path(source), os.fspath(source), ReadBudget(limits.module_bytes, limits.load_bytes)
    )


def packed_modules(spec: Spec) -> dict[str, Any]:
    """Return the fields of a description that change when it holds its modules and what they need.

    Raises:
        DlError: a module cannot be found or read.
        SpecError: one name stands for two modules.
    """
    given = {name: _image(source, name, spec.limits) for name, source in spec.libraries.items()}
    map_name = None if spec.map_name is None else named_function(spec.map_name, "map_name")
    held = {name: image.wasm.data for name, image in given.items()}
    locator = new_locator(spec.library_path, held, spec.limits, map_name)
    known = dict(given)
    pending = list(given.values())
    main: bytes | None = None
    name = spec.name
    if spec.main is not None:
        name = name or ("main" if isinstance(spec.main, bytes) else os.path.basename(spec.main))
        image = _image(spec.main, name, spec.limits)
        main = image.wasm.data
        pending.append(image)
    preload = []
    for path in spec.preload:
        image = locator.find(os.fspath(path), known=known.get)
        _add(known, image.base_name, image)
        preload.append(image.base_name)
        pending.append(image)
    _add_needed(known, pending, locator)
    return {
        "main": main,
        "name": name,
        "preload": tuple(preload),
        "libraries": {name: image.wasm.data for name, image in known.items()},
        "modules": {name: module_bytes(source, name, spec.limits) for name, source in spec.modules.items()},
    }


def _add_needed(known: dict[str, ModuleImage], pending: list[ModuleImage], locator: Locator) -> None:
    while pending:
        image = pending.pop()
        for needed in image.wasm.dylink.needed if image.wasm.dylink else ():
            found = locator.find(needed, requester_of(image), known=known.get)
            name = needed
            if locator.map_name is not None:
                name = locator.map_name(needed, os.path.splitext(image.name)[1])
            if _add(known, name, found):
                pending.append(found)


def _add(known: dict[str, ModuleImage], name: str, image: ModuleImage) -> bool:
    """Let a name stand for a module; return whether it did not before."""
    present = known.setdefault(name, image)
    if present.digest != image.digest:
        raise SpecError("libraries", f"{name} stands for two modules: {present.name} and {image.name}")
    return present is image
