"""The main module's own allocator, as the linker calls it: C's, or that of AssemblyScript's runtime.

AssemblyScript's functions differ by version: `__alloc` and `__new` may take a class beside the size, and what `__new` returns
is an object that the garbage collector frees unless it is pinned. Class 0 has no pointers in it for the collector to follow.
An object's size is in the four bytes before it.
"""

from __future__ import annotations

from collections.abc import Callable

from dl.groups.entry import Group
from dl.modules.linked_module import LinkedModule
from dl.program.main_module import RootNames
from dl.records import dataclass
from dl.wasm.module import WasmModule
from dl.wasm.types import FuncType
from memory import LinearMemory

MALLOC, FREE = FuncType(("i32",), ("i32",)), FuncType(("i32",), ())
REALLOC = FuncType(("i32", "i32"), ("i32",))
_WITH_CLASS = FuncType(("i32", "i32"), ("i32",))
_PIN, _NEW, _UNPIN = "__pin", "__new", "__unpin"
_NO_POINTERS = 0
_MASK = 0xFFFFFFFF


@dataclass(frozen=True)
class RootAllocator:
    """What a main module exports of its allocator.

    Attributes:
        malloc, free, realloc: the export that does it, and its signature; None when there is none.
        pins: whether objects must be pinned.
    """

    malloc: tuple[str, FuncType] | None
    free: tuple[str, FuncType] | None
    realloc: tuple[str, FuncType] | None
    pins: bool = False

    @classmethod
    def of(cls, wasm: WasmModule, names: RootNames) -> RootAllocator:
        """Return what a main module exports of an allocator."""
        malloc = _export(wasm, names.malloc, (MALLOC, _WITH_CLASS) if names.assemblyscript else (MALLOC,))
        # An object of `__new` is given up by `__unpin`, a block of `__alloc` by `__free`.
        free = names.free
        if names.assemblyscript and malloc is not None:
            free = tuple(name for name in free if (name == _UNPIN) == (malloc[0] == _NEW))
        return cls(
            malloc,
            _export(wasm, free, (FREE,)),
            _export(wasm, names.realloc, (REALLOC,)),
            malloc is not None and malloc[0] == _NEW and _export(wasm, (_PIN,), (MALLOC,)) is not None,
        )

    @property
    def missing(self) -> list[str]:
        """Which of `malloc`, `free` and `realloc` it lacks, with their signatures; `__new` stands in for its `realloc`."""
        renews = self.malloc is not None and self.malloc[0] == _NEW
        wanted = (
            ("malloc", MALLOC, self.malloc),
            ("free", FREE, self.free),
            ("realloc", REALLOC, self.realloc),
        )
        return [
            f"{name} {kind}"
            for name, kind, found in wanted
            if found is None and not (name == "realloc" and renews)
        ]


class CalledAllocator:
    """A main module's allocator, called in the calling thread's group.

    Args:
        exports: what it exports of one; `malloc` and `free` at least.
        main: the main module.
        current: returns the calling thread's group.
        memory: the program's.
    """

    def __init__(
        self,
        exports: RootAllocator,
        main: LinkedModule,
        current: Callable[[], Group],
        memory: Callable[[], LinearMemory],
    ) -> None:
        self._exports = exports
        self._main = main
        self._current = current
        self._memory = memory

    def malloc(self, size: int) -> int:
        """Return the address of a block of some bytes, or 0."""
        found = self._exports.malloc
        assert found is not None
        name, kind = found
        arguments = (size,) if kind == MALLOC else (size, _NO_POINTERS)
        address = int(self._current().call_export(self._main, name, kind, *arguments)) & _MASK
        if self._exports.pins and address:
            self._current().call_export(self._main, _PIN, MALLOC, address)
        return address

    def free(self, address: int) -> None:
        """Give a block back; nothing for address 0."""
        found = self._exports.free
        assert found is not None
        if address:
            self._current().call_export(self._main, found[0], FREE, address)

    def realloc(self, address: int, size: int) -> int:
        """Return the address of a block with another size and the same beginning, or 0: then the block is as before."""
        found = self._exports.realloc
        if found is not None and not self._exports.pins:
            return int(self._current().call_export(self._main, found[0], REALLOC, address, size)) & _MASK
        new = self.malloc(size)
        if new and address:
            memory = self._memory()
            memory.write(new, memory.read(address, min(size, memory.read_u32(address - 4))))
            self.free(address)
        return new


def _export(
    wasm: WasmModule, names: tuple[str, ...], kinds: tuple[FuncType, ...]
) -> tuple[str, FuncType] | None:
    for name in names:
        export = wasm.exports.get(name)
        if export is not None and export.type in kinds:
            assert isinstance(export.type, FuncType)
            return name, export.type
    return None
