"""Imports that name the library they mean: WAMR's convention, in which `(import "side.wasm" "f")` is `f` of side.wasm.

The dynamic linking convention has `env` for everything and the first definition in scope. Both may stand in one module.
"""

from __future__ import annotations

import os

from dl.dlfcn import MAIN_HANDLE
from dl.modules.image import ModuleImage
from dl.modules.linked_module import LinkedModule
from dl.program.program import Program


def named_module(program: Program, importer: LinkedModule, name: str) -> LinkedModule | None:
    """Return the module that an importer means by an import's module name; None if it means none.

    In this order: a library of its needed list, by the name that it has there or by its last part; the main module, by its
    file's name; a library of that base name that the importer sees.
    """
    if importer.needed and importer.dylink is not None:
        for needed, module in zip(dict.fromkeys(importer.dylink.needed), importer.needed, strict=False):
            if name in (needed, os.path.basename(needed)):
                return module
    main = program.main_module
    if main is not None and main.image.base_name == name:
        return main
    for module in program.state.by_base_name.get(name, ()):
        if module.handle != MAIN_HANDLE and (module.global_opens or module in (importer.scope or ())):
            return module
    return None


def names_a_library(program: Program, importer: ModuleImage, name: str) -> bool:
    """Whether an import's module name is that of a library that is loaded or that the importer needs, or of the main module."""
    needed = importer.wasm.dylink.needed if importer.wasm.dylink else ()
    main = program.main_module
    return (
        any(name in (one, os.path.basename(one)) for one in needed)
        or (main is not None and main.image.base_name == name)
        or name in program.state.by_base_name
    )
