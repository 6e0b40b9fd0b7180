"""What WAMR's programs get wrong or bound tightly, done right: table space, alignment, fresh data, order, traps."""

from __future__ import annotations

from typing import Any

import pytest

import dl
from tests.support.groups import held
from tests.support.modules import (
    MEMORY,
    MEMORY_BASE,
    TABLE,
    TABLE_BASE,
    calls,
    data,
    got,
    imports,
    library,
    reads,
    returns,
)
from tests.wamr.programs import program
from tests.wamr.roots import HEAP, root, side


def test_thousands_of_elements_and_exports() -> None:
    """A library with 5,000 table elements and 3,000 exports opens, and the last of both can be called."""
    big = library(
        MEMORY,
        TABLE,
        TABLE_BASE,
        "(func $element (result i32) i32.const 77)",
        f"(elem (global.get $table_base) func {' '.join(['$element'] * 5000)})",
        '(func (export "last") (result i32) (i32.add (global.get $table_base) (i32.const 4999)))',
        *(returns(f"f{i}", i) for i in range(3000)),
        table_size=5000,
    )
    with program({"big.wasm": big}) as guest:
        handle = guest.open("big.wasm")
        last = guest.call("call0", guest.symbol(handle, "last"))
        assert guest.call("call0", last) == 77
        assert guest.call("call0", guest.symbol(handle, "f2999")) == 2999


def cycles(number: int) -> None:
    """Open, use and close libraries; what the program holds is the same at the end as after the first rounds."""
    libraries = {f"l{i}.wasm": side(returns("own", i), table_size=i) for i in range(4)}
    with program(libraries) as guest:
        sizes = []
        for i in range(number):
            name = f"l{i % 4}.wasm"
            handle = guest.open(name)
            assert guest.call("call0", guest.symbol(handle, "own")) == i % 4
            assert guest.call("call0", guest.symbol(handle, "bump")) == 43
            assert guest.close(handle) == 0
            if i % 4 == 3:
                guest._free = 1024
                sizes.append(
                    (held(guest.linker), guest.linker.statistics().table_length, guest.linker.memory.size)
                )
        # Up to 1,024 table indices of closed libraries rest before they are used again.
        assert len(set(sizes[len(sizes) // 2 :])) == 1
        assert sizes[-1][1] < 8 + 1024 + 64


def test_opening_and_closing_does_not_grow() -> None:
    """600 rounds of open, call and close leave table, memory and all else as they are."""
    cycles(600)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_opening_and_closing_ten_thousand_times() -> None:
    """10,000 rounds of open, call and close leave table, memory and all else as they are."""
    cycles(10_000)


@pytest.mark.parametrize("memory_operations", ["root", "host"])
def test_every_alignment_and_zeroed_data(memory_operations: Any) -> None:
    """Data lies at a multiple of 2**0 to 2**16, and is zero also where a closed library has written before."""
    main = root(*(HEAP if memory_operations == "root" else ()), memory='(memory (export "memory") 8)')
    aligned = {
        f"a{log2}.wasm": library(
            MEMORY,
            TABLE,
            MEMORY_BASE,
            '(func (export "base") (result i32) (global.get $memory_base))',
            memory_size=4096,
            memory_align=log2,
        )
        for log2 in range(17)
    }
    mode = dl.WamrMode(memory_operations=memory_operations)
    with program(aligned, main, mode) as guest:
        for _ in range(2):
            for log2 in range(17):
                handle = guest.open(f"a{log2}.wasm")
                base = guest.call("call0", guest.symbol(handle, "base"))
                assert base % (1 << log2) == 0
                assert guest.linker.memory.read(base, 4096) == bytes(4096)
                guest.linker.memory.fill(base, 0xAA, 4096)
                assert guest.close(handle) == 0


def test_addresses_of_functions_and_data_across_libraries() -> None:
    """`GOT.func` and `GOT.mem` of another library's function and data are its one pointer and its address."""
    user = library(
        MEMORY,
        TABLE,
        got("add42", "func"),
        got("counter", "mem"),
        reads("function", "got_func_add42"),
        reads("address", "got_mem_counter"),
        needed=("side.wasm",),
    )
    with program({"side.wasm": side(), "user.wasm": user, "again.wasm": user}) as guest:
        first = guest.open("side.wasm")
        pointer = guest.symbol(first, "add42")
        for name in ("user.wasm", "again.wasm"):
            handle = guest.open(name)
            assert guest.call("call0", guest.symbol(handle, "function")) == pointer
            address = guest.call("call0", guest.symbol(handle, "address"))
            assert address == guest.symbol(first, "counter")
            assert guest.linker.memory.read_u32(address) == 42
        assert guest.call("call1", pointer, 1) == 43


def test_an_address_whose_library_is_linked_later_in_the_same_open() -> None:
    """In a circle of needed lists an address is right in both directions; one that nobody has is an error."""
    a = library(
        MEMORY,
        got("in_b", "mem"),
        reads("at", "got_mem_in_b"),
        data("in_a", 0),
        memory_size=8,
        needed=("b.wasm",),
    )
    b = library(
        MEMORY,
        got("in_a", "mem"),
        reads("back", "got_mem_in_a"),
        data("in_b", 4),
        memory_size=8,
        needed=("a.wasm",),
    )
    with program({"a.wasm": a, "b.wasm": b, "lost.wasm": library(MEMORY, got("nowhere", "mem"))}) as guest:
        handle = guest.open("a.wasm")
        assert guest.call("call0", guest.symbol(handle, "at")) == guest.symbol(handle, "in_b")
        assert guest.call("call0", guest.symbol(handle, "back")) == guest.symbol(handle, "in_a")
        assert guest.open("lost.wasm", 1) == 0
        assert "GOT.mem.nowhere" in (guest.error() or "")


def test_the_stack_pointer_is_one() -> None:
    """A library moves the root's stack pointer, and the root reads what it set."""
    spends = library(
        MEMORY,
        '(import "env" "__stack_pointer" (global $sp (mut i32)))',
        '(func (export "spend") (result i32)'
        " (global.set $sp (i32.sub (global.get $sp) (i32.const 32))) (global.get $sp))",
    )
    main = root(
        "(global $sp (mut i32) (i32.const 60000))",
        '(export "__stack_pointer" (global $sp))',
        '(func (export "after") (param i32) (result i32) (drop (call_indirect (result i32) (local.get 0))) (global.get $sp))',
    )
    with program({"app.wasm": spends}, main) as guest:
        assert guest.call("after", guest.symbol(guest.open("app.wasm"), "spend")) == 59968


def test_start_relocations_constructors() -> None:
    """All start functions, then all relocations, then all constructors; dependencies first, each once."""

    def tells(number: int, *needed: str) -> bytes:
        steps = "".join(
            f"(func {how} (call $ran (i32.const {number + i})))"
            for i, how in enumerate(
                ("$start", '(export "__wasm_apply_data_relocs")', '(export "__wasm_call_ctors")')
            )
        )
        return library('(import "env" "ran" (func $ran (param i32)))', steps, "(start $start)", needed=needed)

    ran: list[int] = []
    libraries = {"low.wasm": tells(10), "top.wasm": tells(20, "low.wasm")}
    with program(libraries, imports={"env": {"ran": ran.append}}) as guest:
        guest.open("top.wasm")
        guest.open("top.wasm")
    assert ran == [10, 20, 11, 21, 12, 22]


def test_a_trap_reaches_the_caller_and_the_program_goes_on() -> None:
    """A trap in a library ends the root's call with its text and both modules; other calls work, also in the same library."""
    breaks = side(
        '(func (export "divide") (result i32) (i32.div_s (i32.const 1) (i32.const 0)))',
        '(func (export "far") (result i32) (i32.load (i32.const -8)))',
    )
    with program({"app.wasm": breaks}) as guest:
        handle = guest.open("app.wasm")
        for name, text in (("divide", "integer divide by zero"), ("far", "out of bounds memory access")):
            with pytest.raises(dl.TrapError, match=text) as caught:
                guest.call("call0", guest.symbol(handle, name))
            assert any("app.wasm" in frame for frame in caught.value.frames)
            assert guest.call("call0", guest.symbol(handle, "get")) == 42


def test_libraries_share_buffers_with_the_root() -> None:
    """A library reads and writes what the root passes by address, and the root what the library exports as data."""
    fills = side(
        '(func (export "double_at") (param i32) (result i32)'
        " (i32.store (local.get 0) (i32.mul (i32.load (local.get 0)) (i32.const 2))) (i32.const 0))"
    )
    with program({"app.wasm": fills}) as guest:
        handle = guest.open("app.wasm")
        guest.linker.memory.write_u32(2048, 21)
        guest.call("call1", guest.symbol(handle, "double_at"), 2048)
        assert guest.linker.memory.read_u32(2048) == 42
        guest.linker.memory.write_u32(guest.symbol(handle, "counter"), 7)
        assert guest.call("call0", guest.symbol(handle, "get")) == 7


def test_a_library_uses_functions_of_the_root() -> None:
    """`env.own` of a library is the root's function; one that is defined twice is the first definition's, the root's."""
    main = root(returns("own", 1003))
    user = library(imports("own"), calls("f", "own"), returns("own2", 1))
    both = library(imports("own"), calls("g", "own"), needed=("other.wasm",))
    with program(
        {"user.wasm": user, "both.wasm": both, "other.wasm": library(returns("own", 5))}, main
    ) as guest:
        assert guest.call("call0", guest.symbol(guest.open("user.wasm"), "f")) == 1003
        assert guest.call("call0", guest.symbol(guest.open("both.wasm"), "g")) == 1003


def test_a_library_with_a_memory_of_its_own() -> None:
    """A library with a memory of its own is refused with the reason, and a program without a root has the same rules."""
    own = library('(memory (export "memory") 1)', returns("f", 1))
    with program({"own.wasm": own}) as guest:
        assert guest.open("own.wasm") == 0
        assert "memory of its own" in (guest.error() or "")
    with dl.Linker(None, libraries={"own.wasm": own}, wamr=0) as linker, pytest.raises(dl.NotDynamicError):
        linker.main_group.dlopen("own.wasm")
