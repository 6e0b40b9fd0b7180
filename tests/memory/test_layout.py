"""The main module's layout in memory and table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory import InvalidRequestError, LayoutExhaustedError, MainLayout, main_layout


def test_main_layout_puts_stack_behind_data_and_heap_behind_stack() -> None:
    """Data begins at its alignment, the stack at the next multiple of 1,024, the heap behind the stack."""
    layout = main_layout(memory_size=5000, memory_align_log2=4, stack_size=8192, table_size=3)

    assert layout == MainLayout(
        memory_base=16,
        data_end=5016,
        stack_low=5120,
        stack_high=13312,
        heap_base=13312,
        table_base=1,
        minimum_pages=1,
    )


@pytest.mark.parametrize(("align_log2", "base"), [(0, 16), (3, 16), (4, 16), (5, 32), (16, 65536)])
def test_main_layout_never_puts_data_at_address_zero(align_log2: int, base: int) -> None:
    """The memory base is 2**alignment, and 16 where that is less."""
    assert main_layout(memory_size=0, memory_align_log2=align_log2, stack_size=1024).memory_base == base


@pytest.mark.parametrize(("align_log2", "base"), [(0, 1), (1, 2), (5, 32)])
def test_main_layout_never_puts_functions_at_table_index_zero(align_log2: int, base: int) -> None:
    """The table base is the first aligned index behind the null function pointer."""
    layout = main_layout(
        memory_size=0, memory_align_log2=0, stack_size=1024, table_size=10, table_align_log2=align_log2
    )

    assert layout.table_base == base


@pytest.mark.parametrize(("memory_size", "pages"), [(65536 - 2048, 1), (65536 - 2047, 2)])
def test_main_layout_counts_pages_up_to_the_heap(memory_size: int, pages: int) -> None:
    """The minimum covers everything below the heap base and not a page more."""
    layout = main_layout(memory_size=memory_size - 16 + 1024, memory_align_log2=0, stack_size=1024)

    assert layout.minimum_pages == pages


@pytest.mark.parametrize("stack_size", [-1024, 0, 1, 1000, 1025])
def test_main_layout_with_an_odd_stack_size_is_refused(stack_size: int) -> None:
    """A stack is a positive multiple of 1,024 bytes."""
    with pytest.raises(
        InvalidRequestError,
        match=rf"^stack_size must be a positive multiple of 1024 bytes \(got {stack_size}\)$",
    ):
        main_layout(memory_size=0, memory_align_log2=0, stack_size=stack_size)


@pytest.mark.parametrize("name", ["memory_size", "memory_align_log2", "table_size", "table_align_log2"])
def test_main_layout_with_a_negative_number_names_it(name: str) -> None:
    """A negative argument is a caller's mistake and says which."""
    arguments = {"memory_size": 0, "memory_align_log2": 0, "stack_size": 1024, name: -1}
    with pytest.raises(InvalidRequestError, match=rf"^{name} must not be negative"):
        main_layout(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"memory_size": 2**32},
        {"memory_size": 2**32 - 1024 - 16},
        {"stack_size": 2**32 - 1024},
        {"memory_align_log2": 32},
        {"memory_align_log2": 2**40},
        {"memory_align_log2": 31, "memory_size": 2**31 - 1024},
        {"table_size": 2**32 - 1},
        {"table_align_log2": 2**40},
        {"table_align_log2": 31, "table_size": 2**31},
    ],
)
def test_main_layout_over_the_address_space_is_refused(arguments: dict[str, int]) -> None:
    """Lying sizes and alignments are refused, however large, and the error says what was asked for."""
    full = {"memory_size": 0, "memory_align_log2": 0, "stack_size": 1024, **arguments}
    with pytest.raises(LayoutExhaustedError, match=r"nothing was reserved$") as caught:
        main_layout(**full)

    assert caught.value.requested_bytes == full["memory_size"]
    assert caught.value.requested_elements == full.get("table_size", 0)


def test_main_layout_may_fill_the_address_space() -> None:
    """The largest layout whose end is still a 32-bit address is accepted."""
    layout = main_layout(memory_size=2**32 - 1024 - 1024 - 16, memory_align_log2=0, stack_size=1024)

    assert layout.heap_base == 2**32 - 1024
    assert layout.minimum_pages == 65536


@given(
    memory_size=st.integers(0, 2**33),
    memory_align_log2=st.integers(0, 33),
    stack_units=st.integers(1, 2**23),
    table_size=st.integers(0, 2**33),
    table_align_log2=st.integers(0, 33),
)
def test_main_layout_keeps_order_and_alignment(
    memory_size: int, memory_align_log2: int, stack_units: int, table_size: int, table_align_log2: int
) -> None:
    """Whatever is accepted is ordered, aligned, does not overlap and is covered by the minimum pages."""
    try:
        layout = main_layout(
            memory_size=memory_size,
            memory_align_log2=memory_align_log2,
            stack_size=stack_units * 1024,
            table_size=table_size,
            table_align_log2=table_align_log2,
        )
    except LayoutExhaustedError:
        room = max(2 ** min(memory_align_log2, 32), 16) + memory_size + 1023 + stack_units * 1024
        elements = 2 ** min(table_align_log2, 32) + table_size
        assert room >= 2**32 or elements >= 2**32
        return

    assert layout.memory_base >= 16
    assert layout.memory_base % 2**memory_align_log2 == 0
    assert layout.data_end - layout.memory_base == memory_size
    assert 0 <= layout.stack_low - layout.data_end < 1024
    assert layout.stack_low % 1024 == 0
    assert layout.stack_high - layout.stack_low == stack_units * 1024
    assert layout.heap_base == layout.stack_high < 2**32
    assert 0 <= layout.minimum_pages * 65536 - layout.heap_base < 65536
    assert layout.table_base >= 1
    assert layout.table_base % 2**table_align_log2 == 0
    assert layout.table_base + table_size < 2**32
