"""Several threads of the host access one memory at the same time."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor

from memory import LinearMemory


class Source:
    """A memory that stays where it is."""

    def __init__(self) -> None:
        self.octets = ctypes.create_string_buffer(65536)

    def data_address(self) -> int:
        """Where it is."""
        return ctypes.addressof(self.octets)

    def data_size(self) -> int:
        """How large it is."""
        return 65536


def test_threads_access_one_memory_at_the_same_time() -> None:
    """Each of four threads reads what it has written, also on an interpreter without a GIL."""
    memory = LinearMemory(Source(), stable_address=True)

    def work(number: int) -> int:
        right = 0
        for value in range(4000):
            memory.write_u32(64 * number, value)
            memory.borrow(64 * number + 8, 8)[:] = bytes(8)
            right += memory.read_struct("IIQ", 64 * number) == (value, 0, 0)
        return right

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4), timeout=60)) == [4000] * 4
