"""The three kinds of main module, over shared and unshared memory, and what each means for libraries."""

from __future__ import annotations

from typing import Any

import pytest

import dl
from tests.support.modules import (
    MEMORY,
    MEMORY_BASE,
    SHARED_MEMORY,
    STACK_POINTER,
    TABLE,
    TABLE_BASE,
    calls,
    data,
    got,
    imports,
    library,
    module,
    pie,
    reads,
    returns,
    static,
)

STORE = '(func (export "store") (param i32 i32) local.get 0 local.get 1 i32.store)'
LOAD = '(func (export "load") (param i32) (result i32) local.get 0 i32.load)'
POINTER = '(func (export "call_pointer") (param i32) (result i32) local.get 0 call_indirect (result i32))'
# Uses its data, its element, the stack pointer and a function of whoever provides one.
PUSH = """(func (export "push") (param i32) (result i32)
  (global.set $sp (i32.sub (global.get $sp) (i32.const 16)))
  (i32.store (global.get $sp) (local.get 0))
  (global.get $sp))"""


def plugin(memory: str = MEMORY, **info: Any) -> bytes:
    return library(
        memory, TABLE, STACK_POINTER, MEMORY_BASE, TABLE_BASE, STORE, LOAD, POINTER, PUSH,
        '(func $seven (export "seven") (result i32) i32.const 7)', "(elem (global.get $table_base) $seven)",
        data("word", 0), reads("sp", "sp"), **{"memory_size": 16, "memory_align": 4, "table_size": 1, **info},
    )  # fmt: skip


def check_plugin(program: dl.Linker) -> dl.ModuleHandle:
    """Load the plugin and use its data, its function pointer, and the stack."""
    group = program.main_group
    handle = group.dlopen("plugin.so", dl.RTLD_NOW)
    word = group.dlsym(handle, "word").address
    group.dlsym(handle, "store")(word, 1234)
    assert program.memory.read_u32(word) == 1234
    assert group.dlsym(handle, "call_pointer")(group.dlsym(handle, "seven").address) == 7
    before = group.dlsym(handle, "sp")()
    slot = group.dlsym(handle, "push")(99)
    assert slot == before - 16
    assert slot % 16 == 0
    assert program.memory.read_u32(slot) == 99
    return handle


class TestPie:
    @pytest.mark.parametrize("shared", [False, True])
    def test_layout(self, shared: bool) -> None:
        """Data comes first, then the stack of the size asked for, then the heap; address 0 and table index 0 stay free."""
        symbols = ["__stack_low", "__stack_high", "__heap_base", "__heap_end"]
        main = pie(
            *(got(s, "mem") for s in symbols), *(reads(s[2:], f"got_mem_{s}") for s in symbols),
            reads("mb", "memory_base"), reads("tb", "table_base"), reads("sp", "sp"), data("var", 8),
            shared=shared, memory_size=100, memory_align=5, table_size=3, table_align=3,
        )  # fmt: skip
        with dl.Linker(main, stack_size=64 << 10) as program:
            group = program.main_group
            at = {
                n: group.dlsym(1, n)()
                for n in ("mb", "tb", "sp", "stack_low", "stack_high", "heap_base", "heap_end")
            }

            assert at["mb"] % 32 == 0 < at["mb"]
            assert group.dlsym(1, "var").address == at["mb"] + 8
            assert at["tb"] % 8 == 0 < at["tb"]
            assert at["mb"] + 100 <= at["stack_low"]
            assert at["stack_high"] - at["stack_low"] == 64 << 10
            assert at["sp"] == at["stack_high"] <= at["heap_base"] <= at["heap_end"]
            assert program.memory.size >= at["stack_high"]
            assert program.memory.read_u32(0) == 0

    @pytest.mark.parametrize("shared", [False, True])
    def test_with_a_library(self, shared: bool) -> None:
        """A PIE main module takes libraries; their data lies above its heap base."""
        main = pie(got("__heap_base", "mem"), reads("heap_base", "got_mem___heap_base"), shared=shared)
        with dl.Linker(main, libraries={"plugin.so": plugin(SHARED_MEMORY if shared else MEMORY)}) as program:
            handle = check_plugin(program)

            group = program.main_group
            assert group.dlsym(handle, "word").address >= group.dlsym(1, "heap_base")()

    def test_without_memory(self) -> None:
        """A module with a dylink section and no memory is refused as a program."""
        with pytest.raises(dl.NotDynamicError, match="import its memory"):
            dl.Linker(library(returns("f", 1)))

    def test_run(self) -> None:
        """run() calls _start and returns 0, or what the program exits with."""
        exit_ = '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))'
        for body, code in (
            ("", 0),
            ("i32.const 3 call $exit", 3),
            ("i32.const -1 call $exit unreachable", 0xFFFFFFFF),
        ):
            with dl.Linker(pie(exit_, f'(func (export "_start") {body})')) as program:
                assert program.main_group.run() == code

    def test_run_of_what_is_no_program(self) -> None:
        """A main module without _start, and no main module, cannot be run."""
        with (
            dl.Linker(pie(), name="prog") as program,
            pytest.raises(dl.LinkerUsageError, match="prog exports no _start"),
        ):
            program.main_group.run()
        with dl.Linker(None) as program, pytest.raises(dl.LinkerUsageError, match="no main module"):
            program.main_group.run()

    def test_a_program_runs_once(self) -> None:
        """A second run is refused before any of its code runs, also after a first that trapped."""
        count = '(global $n (mut i32) (i32.const 0)) (func (export "count") (result i32) (global.get $n))'
        for rest in ("", "unreachable"):
            start = f'(func (export "_start") (global.set $n (i32.add (global.get $n) (i32.const 1))) {rest})'
            with dl.Linker(pie(count, start), name="prog") as program:
                try:
                    program.main_group.run()
                except dl.TrapError:
                    assert rest
                with pytest.raises(dl.LinkerUsageError, match="prog has run already.*make another Linker"):
                    program.main_group.run()
                assert program.main_group.library(None).count() == 1

    @pytest.mark.parametrize("stack_size", [0, -1024, 1000, 1 << 32])
    def test_impossible_stacks(self, stack_size: int) -> None:
        """A stack size that is not a positive multiple of 1,024 bytes below 4 GiB is refused."""
        for main in (pie(), None, static()):
            with pytest.raises(dl.DlError, match="stack"):
                dl.Linker(main, stack_size=stack_size)

    def test_data_that_does_not_fit(self) -> None:
        """A main module whose data is larger than its memory may be is refused before anything is made."""
        with pytest.raises(dl.ResourceLimitError):
            dl.Linker(pie(memory_size=(1 << 32) - 1))
        small = library('(import "env" "memory" (memory 1 2))', MEMORY_BASE, memory_size=1 << 20)
        with pytest.raises(dl.ResourceLimitError, match="allows 2"):
            dl.Linker(small)

    def test_a_lying_table_size(self) -> None:
        """A main module that asks for more table elements than the linker allows is refused."""
        with pytest.raises(dl.ResourceLimitError, match="table"):
            dl.Linker(pie(table_size=1 << 31))

    def test_elements_outside_of_what_it_asks_for(self) -> None:
        """A module whose element segment is longer than its table size would overwrite other modules' functions."""
        extra = "(func $f) (elem (global.get $table_base) $f $f)"
        with pytest.raises(dl.LinkError, match="element segment"):
            dl.Linker(pie(extra, table_size=1))

    def test_memory_option(self) -> None:
        """The memory option raises the minimum and lowers the maximum of the memory a main module imports."""
        main = library('(import "env" "memory" (memory 1 500))', MEMORY_BASE)
        with dl.Linker(main, memory=dl.MemoryType(40, 50)) as program:
            assert program.memory.size == 40 * 65536
            assert program.grow_memory(10) == 40
            assert program.grow_memory(1) is None
        with pytest.raises(dl.UnsupportedModuleError, match="shared"):
            dl.Linker(main, memory=dl.MemoryType(1, 50, shared=True))

    def test_start_symbol_of_another_type(self) -> None:
        """A _start with parameters is not a program's start."""
        with dl.Linker(pie('(func (export "_start") (param i32))')) as program:
            with pytest.raises(dl.DlError, match="_start"):
                program.main_group.run()


class TestStatic:
    MEMORIES = {
        "exported": ('(memory (export "memory") 2)', MEMORY),
        "imported": ('(import "env" "memory" (memory 2))', MEMORY),
        "imported, shared": ('(import "env" "memory" (memory 2 100 shared))', SHARED_MEMORY),
        "exported under another name": ('(memory (export "mem") 2)', MEMORY),
        "imported and exported": ('(memory (export "memory") (import "env" "memory") 2)', MEMORY),
    }

    @pytest.mark.parametrize("pointer", ["own", "exported"])
    @pytest.mark.parametrize("memory", MEMORIES)
    def test_with_a_library(self, memory: str, pointer: str) -> None:
        """An ordinary module takes libraries when it shows its memory and its table, with or without its stack pointer."""
        field, library_memory = self.MEMORIES[memory]
        exported = '(export "__stack_pointer")' if pointer == "exported" else ""
        main = module(
            field, '(table (export "__indirect_function_table") 4 funcref)',
            f"(global $sp {exported} (mut i32) (i32.const 65536))",
            '(func $f (export "f") (result i32) i32.const 8)', "(elem (i32.const 1) $f)", reads("main_sp", "sp"),
        )  # fmt: skip
        with dl.Linker(main, libraries={"plugin.so": plugin(library_memory)}) as program:
            group = program.main_group
            handle = check_plugin(program)

            assert group.dlsym(handle, "call_pointer")(1) == 8
            shares = group.dlsym(1, "main_sp")() == group.dlsym(handle, "sp")()
            assert shares == (pointer == "exported")
            if not shares:
                assert group.dlsym(1, "main_sp")() == 65536

    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            (('(memory 1)', '(table (export "__indirect_function_table") 4 funcref)'), "nor exports its memory"),
            (('(memory (export "memory") 1)', "(table 4 funcref)"), "exports no table"),
            (
                ('(memory (export "memory") 1 2 shared)', '(table (export "__indirect_function_table") 4 funcref)'),
                "defines its shared memory",
            ),
            (('(memory (export "memory") 1)',), "exports no table"),
            (('(memory (export "memory") 1)', '(table (export "__indirect_function_table") 4 4 funcref)'), "cannot grow"),
        ],
    )  # fmt: skip
    def test_that_takes_no_libraries(self, fields: tuple[str, str] | tuple[str], reason: str) -> None:
        """A module that hides memory or table runs all the same; opening a library says why that cannot be."""
        main = module(*fields, returns("f", 1), '(func (export "_start"))')
        with dl.Linker(main, name="prog", libraries={"plugin.so": plugin()}) as program:
            group = program.main_group

            assert group.dlsym(1, "f")() == 1
            assert group.run() == 0
            with pytest.raises(dl.NotDynamicError, match=f"not a dynamically-linked instance.*{reason}"):
                group.dlopen("plugin.so")

    def test_that_passes_host_functions_on_without_a_table(self) -> None:
        """A module whose table cannot grow may export what it imports."""
        main = module(imports("f"), '(export "g" (func $f))', calls("h", "f"))
        with dl.Linker(main, imports={"env": {"f": lambda: 4}}) as program:
            group = program.main_group

            assert (group.dlsym(1, "g")(), group.dlsym(1, "h")()) == (4, 4)

    def test_that_brings_the_table_and_lacks_an_import(self) -> None:
        """A module that exports its table has stubs like any other: an error that names the import, then what was opened."""
        main = static(imports("late", "(param i64 i32) (result i64)"), imports("never"), calls("none", "never"),
                      '(func (export "f") (param i64 i32) (result i64) local.get 0 local.get 1 call $late)')  # fmt: skip
        late = library(
            '(func (export "late") (param i64 i32) (result i64) local.get 0 local.get 1 i64.extend_i32_u i64.sub)'
        )
        with dl.Linker(main, name="prog", libraries={"late.so": late}) as program:
            group = program.main_group
            f, none = group.dlsym(1, "f"), group.dlsym(1, "none")
            for call, symbol in ((lambda: f(1, 2), "late"), (none, "never")):
                with pytest.raises(
                    dl.UnresolvedCallError, match=f"prog: call of env.{symbol}: nothing provides it"
                ):
                    call()
            group.dlopen("late.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)

            assert f(1 << 40, 1) == (1 << 40) - 1
            with pytest.raises(dl.UnresolvedCallError):
                none()

    def test_that_imports_its_table(self) -> None:
        """A module linked with --import-table gets the linker's table."""
        main = module(
            '(memory (export "memory") 2)', '(import "env" "__indirect_function_table" (table 3 funcref))',
            '(func $f (export "f") (result i32) i32.const 8)', "(elem (i32.const 1) $f)", POINTER,
        )  # fmt: skip
        with dl.Linker(main, libraries={"plugin.so": plugin()}) as program:
            group = program.main_group
            handle = check_plugin(program)

            assert group.dlsym(handle, "call_pointer")(1) == 8
            assert group.dlsym(1, "call_pointer")(group.dlsym(handle, "seven").address) == 7

    def test_libraries_that_it_needs(self) -> None:
        """An ordinary module whose dylink section needs libraries gets them before it runs."""
        lib = library(
            MEMORY,
            MEMORY_BASE,
            "(global $made (mut i32) (i32.const 0))",
            '(func (export "__wasm_call_ctors") (global.set $made (i32.const 5)))',
            reads("f", "made"),
            memory_size=8,
        )
        main = library(
            '(memory (export "memory") 2)', '(table (export "__indirect_function_table") 4 funcref)',
            '(import "env" "f" (func $f (result i32)))', calls("g", "f"), needed=["lib.so"],
        )  # fmt: skip
        with dl.Linker(main, libraries={"lib.so": lib}) as program:
            group = program.main_group

            assert group.dlsym(1, "g")() == 5
            assert [m.name for m in program.modules][1:] == ["lib.so"]

    def test_needs_libraries_but_can_take_none(self) -> None:
        """Needed libraries of a module that can take none are an error at once."""
        main = library('(memory (export "memory") 2)', returns("f", 1), needed=["lib.so"])
        with pytest.raises(dl.NotDynamicError, match="needs libraries.*exports no table"):
            dl.Linker(main, libraries={"lib.so": library()})

    def test_memory_option_for_its_own_memory(self) -> None:
        """A memory cannot be asked for when the main module brings its own."""
        with pytest.raises(dl.LinkerUsageError, match="memory"):
            dl.Linker(static(), memory=dl.MemoryType(5))

    def test_a_host_function_in_its_table(self) -> None:
        """A host function that a static module's own table holds has that one index for libraries too."""
        main = static(imports("f"), "(elem (i32.const 2) $f)")
        lib = library(TABLE, imports("f"), got("f", "func"), reads("at", "got_func_f"), POINTER)
        with dl.Linker(main, libraries={"lib.so": lib}, imports={"env": {"f": lambda: 6}}) as program:
            group = program.main_group
            handle = group.dlopen("lib.so")

            assert group.dlsym(handle, "at")() == 2
            assert group.dlsym(handle, "call_pointer")(2) == 6

    def test_start_function(self) -> None:
        """A start function runs once, and may call the host."""
        seen: list[Any] = []
        main = static(
            '(import "env" "log" (func $log (param i32)))', "(func $s i32.const 5 call $log)", "(start $s)"
        )
        with dl.Linker(main, imports={"env": {"log": seen.append}}):
            assert seen == [5]

    def test_64_bit_memory(self) -> None:
        """A 64-bit memory is refused by name, wherever it is."""
        for main in (
            module('(memory (export "memory") i64 1)'),
            module('(import "env" "memory" (memory i64 1))'),
        ):
            with pytest.raises(dl.UnsupportedModuleError, match="64"):
                dl.Linker(main)


class TestAllocator:
    """Side modules' data from the main module's own malloc."""

    MALLOC = """
      (global $brk (mut i32) (i32.const 70000)) (global $live (mut i32) (i32.const 0))
      (func (export "malloc") (param i32) (result i32)
        (global.set $live (i32.add (global.get $live) (i32.const 1)))
        (global.get $brk) (global.set $brk (i32.add (global.get $brk) (local.get 0))))
      (func (export "free") (param i32) (global.set $live (i32.sub (global.get $live) (i32.const 1))))
      (func (export "live") (result i32) global.get $live)"""

    @pytest.mark.parametrize("kind", ["pie", "static"])
    def test_blocks_come_from_malloc(self, kind: str) -> None:
        """With side_memory="allocator" a library's data is a block of the program's malloc, aligned as asked."""
        if kind == "pie":
            main = pie(self.MALLOC, memory_size=1024)
        else:
            main = static(self.MALLOC, '(global (export "__stack_pointer") (mut i32) (i32.const 65536))')
        with dl.Linker(
            main,
            side_memory="allocator",
            memory=dl.MemoryType(4) if kind == "pie" else None,
            libraries={"plugin.so": plugin(memory_align=10)},
            stack_size=32768,
        ) as program:
            group = program.main_group
            handle = check_plugin(program)

            assert group.dlsym(handle, "word").address >= 70000
            assert group.dlsym(handle, "word").address % 1024 == 0
            assert group.dlsym(1, "live")() == 1

    def test_a_failed_load_frees_its_block(self) -> None:
        """What a load took from malloc is given back when the load fails."""
        broken = library(MEMORY, MEMORY_BASE, imports("nobody"), memory_size=64)
        with dl.Linker(
            pie(self.MALLOC),
            side_memory="allocator",
            memory=dl.MemoryType(4),
            stack_size=32768,
            libraries={"broken.so": broken},
        ) as program:
            group = program.main_group
            for _ in range(3):
                with pytest.raises(dl.UnresolvedSymbolsError):
                    group.dlopen("broken.so")

            assert group.dlsym(1, "live")() == 0

    @pytest.mark.parametrize("result", [0, 0x7FFFFFF0, -16])
    def test_a_malloc_that_fails_or_lies(self, result: int) -> None:
        """A malloc that returns null, or an address outside of memory, fails the load and nothing else."""
        lying = f"""(func (export "malloc") (param i32) (result i32) i32.const {result}) (func (export "free") (param i32))"""
        with dl.Linker(
            pie(lying),
            side_memory="allocator",
            libraries={"plugin.so": plugin(), "none.so": library(returns("f", 1))},
        ) as program:
            group = program.main_group
            with pytest.raises(dl.ResourceLimitError, match="malloc"):
                group.dlopen("plugin.so")

            assert group.dlsym(group.dlopen("none.so"), "f")() == 1

    def test_without_an_allocator(self) -> None:
        """A main module without malloc and free cannot be asked for memory."""
        with pytest.raises(dl.LinkerUsageError, match="malloc"):
            dl.Linker(pie(), side_memory="allocator")

    def test_needed_libraries_lie_below_the_heap(self) -> None:
        """Libraries loaded before the allocator runs lie at the heap base, which moves above them."""
        main = pie(
            self.MALLOC,
            got("__heap_base", "mem"),
            reads("heap_base", "got_mem___heap_base"),
            needed=["plugin.so"],
        )
        with dl.Linker(
            main,
            side_memory="allocator",
            memory=dl.MemoryType(4),
            libraries={"plugin.so": plugin()},
            stack_size=32768,
        ) as program:
            group = program.main_group
            word = group.dlsym(2, "word").address

            assert 32768 < word < word + 16 <= group.dlsym(1, "heap_base")()


class TestNone:
    @pytest.mark.parametrize("shared", [False, True])
    def test_libraries_only(self, shared: bool) -> None:
        """Without a main module the host provides memory, table and stack; the first library is handle 2, and not global."""
        memory = dl.MemoryType(minimum=3, maximum=100, shared=shared)
        with dl.Linker(
            None,
            memory=memory,
            libraries={
                "plugin.so": plugin('(import "env" "memory" (memory 0 100 shared))' if shared else MEMORY)
            },
        ) as program:
            assert program.memory.size >= 3 * 65536
            assert check_plugin(program) == 2
            with pytest.raises(dl.SymbolNotFoundError):
                program.main_group.dlsym(program.main, "f")

    def test_the_memory_may_be_too_small(self) -> None:
        """A maximum below what the stack needs is refused, and the message names the stack."""
        with pytest.raises(dl.ResourceLimitError, match="stack_size"):
            dl.Linker(None, memory=dl.MemoryType(1, 2))
        with dl.Linker(None, memory=dl.MemoryType(1, 2), stack_size=32 << 10) as program:
            assert program.memory.size <= 2 * 65536

    def test_memory_limit_stops_libraries(self) -> None:
        """A library whose data does not fit below the memory's maximum is refused, and smaller ones still load."""
        libs = {"big.so": library(MEMORY, memory_size=8 << 20), "plugin.so": plugin()}
        with dl.Linker(None, memory=dl.MemoryType(1, 40), libraries=libs) as program:
            with pytest.raises(dl.ResourceLimitError, match=r"big\.so"):
                program.main_group.dlopen("big.so")
            check_plugin(program)

    @pytest.mark.parametrize(("minimum", "maximum"), [(-1, None), (5, 4), (1, 65537), (65537, None)])
    def test_impossible_memories(self, minimum: int, maximum: int | None) -> None:
        """A memory type outside of 0 <= minimum <= maximum <= 65536 pages cannot be written down."""
        with pytest.raises(dl.LinkerUsageError):
            dl.MemoryType(minimum, maximum)
