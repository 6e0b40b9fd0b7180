"""The package as others see it: its names, and a memory of a real engine."""

from __future__ import annotations

import ctypes

import pytest

import memory
from memory import (
    LinearMemory,
    MemoryLayoutError,
)


def test_memory_exports_are_exactly_these() -> None:
    """The package's public names are pinned, and every error has the one root."""
    assert all(hasattr(memory, name) for name in memory.__all__)
    errors = [value for name in memory.__all__ if name.endswith("Error") for value in [getattr(memory, name)]]
    assert len(errors) == 8
    assert all(issubclass(error, MemoryLayoutError) for error in errors)


def test_memory_runs_in_a_real_engine() -> None:
    """Allocator and access work on an engine's memory that guest code grows and reads at the same time."""
    wasmtime = pytest.importorskip("wasmtime")
    store = wasmtime.Store()
    module = wasmtime.Module(
        store.engine,
        """(module
          (memory (export "memory") 1 40)
          (func (export "sbrk") (param i32) (result i32) (memory.grow (local.get 0)))
          (func (export "load") (param i32) (result i32) (i32.load (local.get 0)))
          (func (export "store") (param i32 i32) (i32.store (local.get 0) (local.get 1))))""",
    )
    exports = wasmtime.Instance(store, module, []).exports(store)
    guest = exports["memory"]

    class Guest:
        def data_address(self) -> int:
            return ctypes.addressof(guest.data_ptr(store).contents)

        def data_size(self) -> int:
            return guest.data_len(store)

    def grow(pages: int) -> int | None:
        old = exports["sbrk"](store, pages)
        return None if old == -1 else old

    linear = LinearMemory(Guest())
    allocator = memory.Allocator(grow)
    regions = []
    for number in range(12):
        region = allocator.allocate(50_000, 4)
        exports["sbrk"](store, number % 2)
        linear.fill(region.address, 0, region.size)
        linear.write_u32(region.end - 4, number)
        regions.append(region)
    exports["store"](store, regions[0].address, -2)

    assert [exports["load"](store, region.end - 4) for region in regions] == list(range(12))
    assert linear.read_i32(regions[0].address) == -2
    assert linear.size == guest.data_len(store)
    with pytest.raises(memory.LayoutExhaustedError):
        allocator.allocate(30 * 65536, 0)
    for region in regions:
        allocator.free(region)
    assert allocator.statistics().bytes_free == allocator.statistics().pages_grown * 65536
