"""Whose `malloc` it is: the linker's, the root's, or that of an AssemblyScript root."""

from __future__ import annotations

import pytest

import dl
from tests.support.groups import held
from tests.support.modules import MEMORY, library, static
from tests.wamr.programs import Guest, program
from tests.wamr.roots import HEAP, root, side


class TestMemory:
    USER = side(
        '(import "env" "malloc" (func $malloc (param i32) (result i32)))',
        '(import "env" "free" (func $free (param i32)))',
        '(import "env" "realloc" (func $realloc (param i32 i32) (result i32)))',
        '(import "GOT.func" "malloc" (global $at (mut i32)))',
        '(func (export "take") (param i32) (result i32) (call $malloc (local.get 0)))',
        '(func (export "take_by_pointer") (param i32) (result i32)'
        " (call_indirect (param i32) (result i32) (local.get 0) (global.get $at)))",
        '(func (export "again") (param i32) (result i32) (call $realloc (local.get 0) (i32.const 64)))',
        '(func (export "give") (param i32) (result i32) (call $free (local.get 0)) (i32.const 0))',
        '(func (export "pointer") (result i32) (global.get $at))',
    )

    def test_from_the_root(self) -> None:
        """A library's `malloc` is the root's, called directly and through its pointer."""
        with program({"app.wasm": self.USER}, root(*HEAP), mode=2) as guest:
            handle = guest.open("app.wasm")
            assert guest.call("mallocs") == 0
            first = guest.call("call1", guest.symbol(handle, "take"), 24)
            second = guest.call("call1", guest.symbol(handle, "take_by_pointer"), 24)
            assert guest.call("mallocs") == 2
            assert (first, second) == (70000, 70032)
            pointer = guest.call("call0", guest.symbol(handle, "pointer"))
            assert pointer == guest.symbol(1, "malloc")

    def test_a_root_without_them_is_refused(self) -> None:
        """Mode `root` and a root that exports no `malloc`, or no `free`, is an error that names each missing one."""
        with pytest.raises(
            dl.LinkError, match=r"no malloc \(i32\) -> i32, no free \(i32\) -> \(\), no realloc"
        ):
            dl.Linker(root(), wamr=2)
        part = root('(func (export "malloc") (param i32) (result i32) (i32.const 0))')
        with pytest.raises(dl.LinkError, match=r"exports no free \(i32\)"):
            dl.Linker(part, wamr=2)

    def test_two_heaps_are_refused(self) -> None:
        """Mode `host` and a root with an allocator of its own is an error: blocks would be freed into the other heap."""
        with pytest.raises(dl.LinkError, match="two heaps"):
            dl.Linker(root(*HEAP), wamr=0)

    def test_from_the_host(self) -> None:
        """Mode `host` serves libraries and root from one heap, and hears of a block that it has not handed out."""
        main = root(
            '(import "env" "free" (func $free (param i32)))',
            '(func (export "root_free") (param i32) (result i32) (call $free (local.get 0)) (i32.const 0))',
        )
        with program({"app.wasm": self.USER}, main, mode=0) as guest:
            handle = guest.open("app.wasm")
            before = held(guest.linker)
            take, give, again = (guest.symbol(handle, name) for name in ("take_by_pointer", "give", "again"))
            block = guest.call("call1", take, 24)
            assert block % 16 == 0
            guest.linker.memory.write(block, b"kept")
            block = guest.call("call1", again, block)
            assert guest.linker.memory.read(block, 4) == b"kept"
            assert guest.call("root_free", block) == 0
            assert held(guest.linker) == before
            for wrong in (block, 70000):
                with pytest.raises(dl.TrapError, match="has not handed out"):
                    guest.call("call1", give, wrong)
            assert guest.call("call1", give, 0) == 0
            assert guest.call("call1", take, -1) == 0

    def test_blocks_are_given_back(self) -> None:
        """Ten thousand blocks that are freed do not grow memory."""
        with program({"app.wasm": self.USER}, mode=0) as guest:
            handle = guest.open("app.wasm")
            take, give = guest.symbol(handle, "take"), guest.symbol(handle, "give")
            guest.call("call1", give, guest.call("call1", take, 1000))
            before = guest.linker.memory.size
            for _ in range(2000):
                guest.call("call1", give, guest.call("call1", take, 1000))
            assert guest.linker.memory.size == before

    def test_a_root_that_keeps_its_memory_to_itself(self) -> None:
        """A root whose memory nobody can reach gets no block and no text, and no library."""
        main = static(
            '(import "env" "malloc" (func $malloc (param i32) (result i32)))',
            '(import "env" "dlerror" (func $error (result i32)))',
            '(import "env" "dlsym" (func $dlsym (param i32 i32) (result i32)))',
            '(func (export "f") (result i32) (i32.or (call $malloc (i32.const 8)) (call $error)))',
            memory="(memory 1)",
        )
        with dl.Linker(main, wamr=0) as linker:
            assert Guest(linker).call("f") == 0

    def test_the_user_comes_first(self) -> None:
        """A function that the host gives in `imports` is taken instead of the mode's."""
        with program({"app.wasm": self.USER}, imports={"env": {"malloc": lambda n: n + 1}}) as guest:
            handle = guest.open("app.wasm")
            assert guest.call("call1", guest.symbol(handle, "take"), 24) == 25
            assert guest.linker.unused_imports() == []


class TestAssemblyScript:
    STACK = '(global (export "__user_stack_pointer") (mut i32) (i32.const 60000))'

    NEW = (
        "(global $next (mut i32) (i32.const 70016))",
        "(global $pins (mut i32) (i32.const 0))",
        '(func (export "__new") (param i32 i32) (result i32) (local i32)'
        " (local.set 2 (global.get $next))"
        " (i32.store (i32.sub (local.get 2) (i32.const 4)) (local.get 0))"
        " (global.set $next (i32.and (i32.add (i32.add (local.get 2) (local.get 0)) (i32.const 47)) (i32.const -16)))"
        " (local.get 2))",
        '(func (export "__pin") (param i32) (result i32)'
        " (global.set $pins (i32.add (global.get $pins) (i32.const 1))) (local.get 0))",
        '(func (export "__unpin") (param i32) (global.set $pins (i32.sub (global.get $pins) (i32.const 1))))',
        '(func (export "pins") (result i32) (global.get $pins))',
    )

    OLD = (
        '(func (export "__alloc") (param i32) (result i32) (i32.const 80000))',
        '(func (export "__free") (param i32))',
        '(func (export "__realloc") (param i32 i32) (result i32) (i32.const 81000))',
    )

    def test_the_stack_pointer(self) -> None:
        """A library moves the root's `__user_stack_pointer`."""
        spends = library(
            MEMORY,
            '(import "env" "__stack_pointer" (global $sp (mut i32)))',
            '(func (export "spend") (result i32) (global.set $sp (i32.sub (global.get $sp) (i32.const 16))) (global.get $sp))',
        )
        main = root(
            *HEAP,
            "(global $sp (mut i32) (i32.const 60000))",
            '(export "__user_stack_pointer" (global $sp))',
            '(func (export "twice") (param i32) (result i32)'
            " (drop (call_indirect (result i32) (local.get 0))) (global.get $sp))",
        )
        with program({"app.wasm": spends}, main, mode=8 | 2) as guest:
            assert guest.call("twice", guest.symbol(guest.open("app.wasm"), "spend")) == 59984

    def test_its_allocator_under_the_names_of_c(self) -> None:
        """`malloc` of a library is `__new`, pinned until it is freed, or `__alloc` of earlier versions."""
        with program({"app.wasm": TestMemory.USER}, root(self.STACK, *self.NEW), mode=8 | 2) as guest:
            handle = guest.open("app.wasm")
            pinned = guest.call("pins")
            assert pinned >= 1  # the library's own data
            block = guest.call("call1", guest.symbol(handle, "take_by_pointer"), 24)
            assert guest.call("pins") == pinned + 1
            guest.linker.memory.write(block, b"kept")
            block = guest.call("call1", guest.symbol(handle, "again"), block)
            assert guest.linker.memory.read(block, 4) == b"kept"
            assert guest.call("pins") == pinned + 1
            guest.call("call1", guest.symbol(handle, "give"), block)
            assert guest.call("pins") == pinned
            guest.close(handle)
            guest.linker.statistics()
            guest.open("app.wasm")  # what was given back is freed by the next that allocates
            assert guest.call("pins") == pinned
        memory = '(memory (export "memory") 4)'
        with program(
            {"app.wasm": TestMemory.USER}, root(self.STACK, *self.OLD, memory=memory), mode=8 | 2
        ) as guest:
            handle = guest.open("app.wasm")
            assert guest.call("call1", guest.symbol(handle, "take"), 24) == 80000
            assert guest.call("call1", guest.symbol(handle, "again"), 80000) == 81000

    def test_abort_says_what_the_program_says(self) -> None:
        """`env.abort` ends the call with the program's message, file and place."""
        text = "out of luck".encode("utf-16-le")
        main = root(
            *HEAP,
            self.STACK,
            '(import "env" "abort" (func $abort (param i32 i32 i32 i32)))',
            '(func (export "fail") (param i32) (result i32)'
            " (call $abort (local.get 0) (i32.const 0) (i32.const 7) (i32.const 3)) (i32.const 0))",
        )
        with program({}, main, mode=8 | 2) as guest:
            guest.linker.memory.write_u32(2000, len(text))
            guest.linker.memory.write(2004, text)
            with pytest.raises(dl.TrapError, match=r"abort: out of luck at \?:7:3"):
                guest.call("fail", 2004)
            with pytest.raises(dl.TrapError, match=r"abort: no message at"):
                guest.call("fail", -4)
