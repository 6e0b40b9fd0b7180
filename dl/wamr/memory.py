"""`malloc` and its fellows for libraries: one heap, whoever calls them.

Mode `host`: the linker's allocator, for every module that imports them from `env`. A root that has an allocator of its own is
refused, since a block of one heap must never be freed into the other. Mode `root`: the root exports them, and so they are what
libraries find in the global scope; a root of AssemblyScript may export its runtime's own functions instead, which are adapted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from dl.errors import LinkError, ResourceLimitError, TrapError
from dl.link.root_allocator import FREE, MALLOC, REALLOC, CalledAllocator, RootAllocator
from dl.options import HostFunction
from dl.wasm.types import FuncType
from memory import Block

if TYPE_CHECKING:
    from dl.groups.registry import Groups
    from dl.program.main_module import RootNames
    from dl.wamr.mode import WamrMode
    from dl.wasm.module import WasmModule

MOST_BLOCKS: Final = 1 << 20
"""Blocks that a program may have at a time from the linker's allocator: each takes some 300 bytes of the host's memory."""

_ALIGN_LOG2: Final = 4
_ADDRESS_SPACE: Final = 1 << 32
_MASK: Final = _ADDRESS_SPACE - 1
_CALLOC: Final = FuncType(("i32", "i32"), ("i32",))


class HostAllocator:
    """C's allocator functions over the linker's own blocks of linear memory. Any thread of the program may call them.

    `_blocks` needs no lock: each step on it is atomic, and two threads that free the same block are the guest's fault, of which
    the second one hears.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, Block] = {}

    def connect(self, groups: Groups) -> None:
        """Set the program whose memory is handed out, once."""
        self._groups = groups

    def malloc(self, size: int) -> int:
        """Return the address of a zeroed block, a multiple of 16; 0 if there is no room."""
        size &= _MASK
        if len(self._blocks) >= MOST_BLOCKS:
            return 0
        side_memory = self._groups.program.side_memory
        if side_memory is None:
            return 0  # the root keeps its memory to itself
        try:
            block = side_memory.allocate(max(size, 1), _ALIGN_LOG2, "malloc")
        except ResourceLimitError:
            return 0
        self._blocks[block.address] = block
        return block.address

    def calloc(self, count: int, size: int) -> int:
        """Return the address of a zeroed block for some elements of a size; 0 if there is no room."""
        total = (count & _MASK) * (size & _MASK)
        return self.malloc(total) if total < _ADDRESS_SPACE else 0

    def realloc(self, address: int, size: int) -> int:
        """Return the address of a block of another size with the same beginning; 0 if there is no room: then it stays."""
        address &= _MASK
        if not address:
            return self.malloc(size)
        old = self._blocks.get(address)
        if old is None:
            raise self._stranger("realloc", address)
        new = self.malloc(size)
        if new:
            memory = self._groups.program.memory
            memory.write(new, memory.read(address, min(old.size, size & _MASK)))
            self.free(address)
        return new

    def free(self, address: int) -> None:
        """Give a block back.

        Raises:
            TrapError: it is none, or was given back before.
        """
        address &= _MASK
        if not address:
            return
        block = self._blocks.pop(address, None)
        if block is None:
            raise self._stranger("free", address)
        side_memory = self._groups.program.side_memory
        assert side_memory is not None
        side_memory.free(block)

    def _stranger(self, function: str, address: int) -> TrapError:
        return TrapError(
            f"{function} of {address:#x}, which the linker's allocator has not handed out, or has taken back"
        )

    def functions(self) -> Mapping[str, HostFunction]:
        """Return what modules import from `env`."""
        return {
            "malloc": _host(self.malloc, MALLOC),
            "calloc": _host(self.calloc, _CALLOC),
            "realloc": _host(self.realloc, REALLOC),
            "free": _host(self.free, FREE),
        }


class AdaptedAllocator:
    """The allocator of an AssemblyScript root under C's names, as far as the root does not export these itself.

    Args:
        exports: what the root exports of its allocator.
        own: the names that it exports itself.
    """

    def __init__(self, exports: RootAllocator, own: frozenset[str]) -> None:
        self._exports = exports
        self._own = own

    def connect(self, groups: Groups) -> None:
        """Set the program whose root is called, once."""
        self._groups = groups
        self._called: CalledAllocator | None = None

    def _calls(self) -> CalledAllocator:
        if self._called is None:
            program = self._groups.program
            main = program.main_module
            assert main is not None
            self._called = CalledAllocator(self._exports, main, self._groups.current, lambda: program.memory)
        return self._called

    def functions(self) -> Mapping[str, HostFunction]:
        """Return what modules import from `env`."""
        adapted = {
            "malloc": _host(lambda size: self._calls().malloc(size), MALLOC),
            "realloc": _host(lambda address, size: self._calls().realloc(address, size), REALLOC),
            "free": _host(lambda address: self._calls().free(address), FREE),
        }
        return {name: function for name, function in adapted.items() if name not in self._own}


def memory_functions(
    mode: WamrMode, root: WasmModule | None, names: RootNames
) -> HostAllocator | AdaptedAllocator | None:
    """Return who serves `malloc` and its fellows beside the root itself; None if the root does it all.

    Args:
        mode: the program's.
        root: its root; None for libraries only.
        names: under which the root exports its allocator.

    Raises:
        LinkError: the root lacks what the mode wants of it, or has an allocator that the mode does not use.
    """
    if mode.memory_operations == "host":
        own = sorted({"malloc", "free", "realloc"} & (root.exports.keys() if root else set()))
        if root is not None and own:
            raise LinkError(
                root.name,
                f"exports {', '.join(own)}, but memory_operations is 'host': blocks of two heaps would be mixed "
                "(ask for 'root', bit 1 of the mode)",
            )
        return HostAllocator()
    name = root.name if root else "libraries only"
    exports = None if root is None else RootAllocator.of(root, names)
    missing = ["malloc", "free", "realloc"] if exports is None else exports.missing
    if missing:
        raise LinkError(
            name,
            f"memory_operations is 'root', but it exports no {', no '.join(missing)} (bit 1 of the mode)",
        )
    assert root is not None
    assert exports is not None
    served = frozenset({"malloc", "free", "realloc"} & root.exports.keys())
    return AdaptedAllocator(exports, served) if len(served) < 3 else None


def _host(function: Callable[..., int | None], kind: FuncType) -> HostFunction:
    return HostFunction(function, kind.params, kind.results)
