"""Where one thread's thread-local storage is: a block for each module that has any.

The first thread uses the block that wasm-ld lays out in the module's own data. A thread that the guest starts brings its block
of the main module. All others come from the linker, which takes them back with the module or the thread.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from dl.dlfcn import MAIN_HANDLE, ModuleHandle
from dl.glue.placement import ThreadLocalModule
from dl.program.program import Program
from memory import Block

if TYPE_CHECKING:
    from dl.engine.protocol import EngineInstance


class ThreadLocals:
    """The blocks of one instance group. Used by its thread.

    Args:
        program: whose memory they are in.
        main: address of the main module's block, bytes; None to allocate one.
    """

    def __init__(self, program: Program, main: int | None) -> None:
        self._program = program
        self._main = main
        self._blocks: dict[ModuleHandle, Block] = {}
        self._counted = False

    def count(self) -> None:
        """Count the group for the reserve until `free_all`; under the link lock."""
        if self._program.reserve is not None:
            self._counted = True
            self._program.reserve.add_group()

    def block(self, module: ThreadLocalModule, instance: EngineInstance, *, first: bool) -> int:
        """Return where a module's block is, bytes; 0 for one that needs none.

        Args:
            module: the module.
            instance: its instance in this group.
            first: whether no other group has instantiated it before.

        Raises:
            ResourceLimitError: there is no memory for it.
        """
        present = instance.global_value("__tls_base") if first else 0
        if present:
            return present
        if module.handle == MAIN_HANDLE and self._main is not None:
            return self._main
        if not module.size:
            return 0
        side_memory, reserve = self._program.side_memory, self._program.reserve
        assert side_memory is not None
        reserved = None if reserve is None else reserve.take(module.handle)
        if reserved is not None:
            # A former thread may have used it.
            self._program.memory.fill(reserved.address, 0, reserved.size)
            self._blocks[module.handle] = reserved
            return reserved.address
        block = side_memory.allocate(module.size, module.align_log2, "thread-local storage")
        self._blocks[module.handle] = block
        return block.address

    def blocks(self) -> dict[ModuleHandle, Block]:
        """Return the blocks, by the module whose they are. From any thread."""
        return self._blocks.copy()

    def take(self, handle: ModuleHandle) -> Callable[[], None] | None:
        """Take a module's block out; return what gives it back, or None if the module has none."""
        block = self._blocks.pop(handle, None)
        return None if block is None else partial(self._give_back, handle, block)

    def _give_back(self, handle: ModuleHandle, block: Block) -> None:
        reserve, side_memory = self._program.reserve, self._program.side_memory
        if reserve is not None:
            reserve.give_back(handle, block)
        elif side_memory is not None:
            side_memory.free_later(block)

    def free_all(self) -> None:
        """Give back every block; nothing of the group runs any more."""
        for handle in list(self._blocks):
            release = self.take(handle)
            if release is not None:
                release()
        if self._counted and self._program.reserve is not None:
            self._counted = False
            self._program.reserve.remove_group()
