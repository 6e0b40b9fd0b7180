"""Blocks of linear memory that the linker grows the memory by: zeroed, unless nobody needs that."""

from __future__ import annotations

import dl


def test_a_block_that_need_not_be_zeroed_is_left_as_it_is() -> None:
    """A stack is not written to before its thread runs; a block for data is zero wherever another lay."""
    with dl.Linker(None, memory=dl.MemoryType(2, 100)) as linker:
        source, memory = linker.program.side_memory, linker.memory
        assert source is not None
        former = source.allocate(4096, 4, "a test")
        memory.fill(former.address, 0xAA, former.size)
        source.free(former)

        stack = source.allocate(4096, 4, "a test", zeroed=False)
        assert stack.address == former.address
        assert memory.read(stack.address, stack.size) == b"\xaa" * 4096
        source.free(stack)

        data = source.allocate(4096, 4, "a test")
        assert data.address == former.address
        assert not any(memory.read(data.address, data.size))
