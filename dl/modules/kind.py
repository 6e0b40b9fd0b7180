"""What kind of module a module is to the linker, and which modules can be linked as libraries."""

from __future__ import annotations

from enum import Enum

from dl.errors import NotDynamicError, UnsupportedModuleError
from dl.wasm.module import WasmModule

_OF_A_MAIN_MODULE = {
    ("GOT.mem", name) for name in ("__heap_base", "__heap_end", "__stack_low", "__stack_high")
}
_STARTS = {"_start", "__main_argc_argv", "__main_void", "main"}


class ModuleKind(Enum):
    """The three kinds of module."""

    PIE = "pie"
    """Position-independent main module."""
    SIDE = "side"
    """Side module: a shared library."""
    STATIC = "static"
    """Ordinary module, without a dylink section."""


def kind_of(module: WasmModule) -> ModuleKind:
    """Return what kind of module it is.

    The format does not mark main modules: one exports what starts a program, or asks where its stack and heap are. An
    `_initialize` says nothing, since libraries of wasi-sdk export it too.
    """
    if module.dylink is None:
        return ModuleKind.STATIC
    imported = {(entry.module, entry.name) for entry in module.imports}
    starts = _STARTS & module.exports.keys()
    return ModuleKind.PIE if starts or _OF_A_MAIN_MODULE & imported else ModuleKind.SIDE


def check_address_width(module: WasmModule) -> None:
    """Check that a library or main module has 32-bit addresses, as memory bases, GOT entries and the linker have.

    Raises:
        UnsupportedModuleError: its memory has 64-bit addresses.
    """
    if module.memories and module.memories[0].limits.is64:
        raise UnsupportedModuleError(
            module.name,
            "a 64-bit memory: libraries and main modules have 32-bit addresses (build for wasm32; an ordinary module "
            "can be instantiated, see Linker.instantiate)",
        )


def check_side_module(module: WasmModule) -> None:
    """Check that a module can be linked into a program as a library.

    Raises:
        NotDynamicError: it has no dylink section, or its memory is not the program's but one of its own.
        UnsupportedModuleError: its memory has 64-bit addresses.
    """
    if module.dylink is None:
        raise NotDynamicError(
            module.name,
            "not a shared library: it has no dylink.0 section (link it with wasm-ld -shared --experimental-pic)",
        )
    check_address_width(module)
    if module.memories and not module.import_counts["memory"]:
        raise NotDynamicError(
            module.name,
            "not a shared library: it defines a memory of its own instead of importing the program's, "
            "so nobody else could read what it writes",
        )
