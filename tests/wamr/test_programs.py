"""Programs of WAMR's kind: a root that opens libraries through `env`, in every mode."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import dl
from tests.support.groups import held
from tests.support.modules import MEMORY, TABLE, calls, imports, library, returns, static
from tests.wamr.programs import Guest, program
from tests.wamr.roots import GLOBAL, HEAP, LAZY, NODELETE, NOLOAD, NOW, root, side


class TestDlfcn:
    def test_the_example_of_the_proposal(self) -> None:
        """`dlopen(path, 0)`, `dlsym`, a call through the pointer and `dlclose`, all by the guest, give 1 + 42."""
        with program({"app.wasm": side()}) as guest:
            handle = guest.open("app.wasm", 0)
            assert handle == 2
            assert guest.call("call1", guest.symbol(handle, "add42"), 1) == 43
            assert guest.close(handle) == 0
            assert guest.error() is None

    def test_opened_twice_closed_once(self) -> None:
        """Two opens give one handle; after one close the state is kept, after the second a kept pointer traps."""
        with program({"app.wasm": side()}) as guest:
            before = held(guest.linker)
            handle = guest.open("app.wasm")
            bump = guest.symbol(handle, "bump")
            assert guest.open("app.wasm") == handle
            assert guest.call("call0", bump) == 43
            assert guest.close(handle) == 0
            assert guest.call("call0", bump) == 44
            assert guest.close(handle) == 0
            with pytest.raises(dl.TrapError):
                guest.call("call0", bump)
            assert held(guest.linker)[:3] == before[:3]

            again = guest.open("app.wasm")
            assert again > handle
            assert guest.call("call0", guest.symbol(again, "bump")) == 43

    def test_one_file_by_two_spellings(self, tmp_path: Path) -> None:
        """A bare name, a path and a path with dots give the guest one handle."""
        (tmp_path / "app.wasm").write_bytes(side())
        with program({}, library_path=[tmp_path], preopens={"/lib": tmp_path}) as guest:
            handle = guest.open("app.wasm")
            assert handle == 2
            assert guest.open("/lib/app.wasm") == handle
            assert guest.open("/lib/../lib/./app.wasm") == handle

    def test_what_cannot_be_opened(self) -> None:
        """A missing file, a module without dylink section and unknown flags give 0, and a text that says why."""
        libraries = {"plain.wasm": static(), "broken.wasm": b"\0asm\1\0\0\0\xff", "root.wasm": root()}
        with program(libraries) as guest:
            before = held(guest.linker)
            for name, flags, text in (
                ("none.wasm", 0, "not found"),
                ("plain.wasm", 0, "no dylink.0 section"),
                ("broken.wasm", 0, "malformed"),
                ("plain.wasm", 0x8000, "0x8000"),
            ):
                assert guest.open(name, flags) == 0
                assert text in (guest.error() or "")
                assert guest.error() is None
            assert guest.call("dlopen", 0, 0) == dl.MAIN_HANDLE
            assert guest.call("dlopen", 0x7FFFFFF0, 0) == 0
            assert "no string at 0x7ffffff0" in (guest.error() or "")
            # dlerror's own buffer is all that stays.
            assert held(guest.linker)[:3] == before[:3]
            assert guest.linker.statistics().side_regions <= 1

    def test_the_root_is_no_library_of_itself(self, tmp_path: Path) -> None:
        """Opening the root's own file gives 0 and says how it is opened."""
        file = tmp_path / "root.wasm"
        file.write_bytes(root())
        with dl.Linker(file, library_path=[tmp_path], wamr=0, stack_size=4096) as linker:
            guest = Guest(linker)
            assert guest.open("root.wasm") == 0
            assert "dlopen(NULL)" in (guest.error() or "")

    def test_unknown_symbols_and_handles(self) -> None:
        """`dlsym` of what is not there gives 0, `dlclose` of no handle a number that is not 0, each with a text."""
        with program({"app.wasm": side()}) as guest:
            handle = guest.open("app.wasm")
            assert guest.symbol(handle, "nothing") == 0
            assert "undefined symbol: nothing" in (guest.error() or "")
            for wrong in (77, -1, 0x7FFFFFFF):
                assert guest.symbol(wrong, "get") == 0
                assert "invalid module handle" in (guest.error() or "")
                assert guest.close(wrong) != 0
                assert "invalid module handle" in (guest.error() or "")
            assert guest.close(handle) == 0
            assert guest.close(handle) != 0
            assert guest.symbol(handle, "get") == 0
            assert "it was closed" in (guest.error() or "")

    def test_data_and_the_default_scope(self) -> None:
        """`dlsym` gives the address of data too, and handle 0 searches the root and what is global."""
        with program({"app.wasm": side(), "other.wasm": side(returns("only", 9))}) as guest:
            handle = guest.open("app.wasm")
            assert guest.linker.memory.read_u32(guest.symbol(handle, "counter")) == 42
            assert guest.symbol(0, "only") == 0
            assert guest.symbol(0, "call0") != 0
            guest.open("other.wasm", NOW | GLOBAL)
            assert guest.call("call0", guest.symbol(0, "only")) == 9

    def test_flags(self) -> None:
        """NOLOAD finds what is loaded only, and NODELETE keeps it through every close."""
        with program({"app.wasm": side()}) as guest:
            assert guest.open("app.wasm", NOW | NOLOAD) == 0
            assert "RTLD_NOLOAD" in (guest.error() or "")
            handle = guest.open("app.wasm", NOW | NODELETE)
            assert guest.open("app.wasm", NOW | NOLOAD) == handle
            assert guest.close(handle) == 0
            assert guest.close(handle) == 0
            assert guest.call("call1", guest.symbol(handle, "add42"), 1) == 43

    def test_a_failed_open_leaves_nothing(self) -> None:
        """A library whose constructor traps gives 0, its number means nothing, and all is as before; a retry works."""
        fails = side(
            '(import "env" "may_trap" (func $may_trap))',
            '(func (export "__wasm_call_ctors") (call $may_trap))',
        )
        failing = [True]

        def may_trap() -> None:
            if failing:
                raise dl.TrapError("asked to")

        with program({"app.wasm": fails}, imports={"env": {"may_trap": may_trap}}) as guest:
            before = held(guest.linker)
            for _ in range(20):
                assert guest.open("app.wasm") == 0
                assert "asked to" in (guest.error() or "")
                assert guest.symbol(2, "get") == 0
                guest.error()
            assert held(guest.linker)[:3] == before[:3]
            failing.clear()
            handle = guest.open("app.wasm")
            assert guest.call("call0", guest.symbol(handle, "get")) == 42

    def test_each_thread_has_an_error_of_its_own(self) -> None:
        """An error in one thread is not seen by another, and a thread that ends gives its buffer back."""
        main = static(
            '(import "env" "dlopen" (func $dlopen (param i32 i32) (result i32)))',
            '(import "env" "dlerror" (func $dlerror (result i32)))',
            '(func (export "dlopen") (param i32 i32) (result i32) (call $dlopen (local.get 0) (local.get 1)))',
            '(func (export "dlerror") (result i32) (call $dlerror))',
            memory='(import "env" "memory" (memory 4 100 shared))',
        )
        with dl.Linker(main, name="root.wasm", wamr=0, stack_size=4096) as linker:
            guest = Guest(linker)
            assert guest.open("none.wasm") == 0
            name = guest.text("other.wasm")

            def in_thread(group: dl.InstanceGroup) -> str:
                get, opens = group.dlsym(dl.MAIN_HANDLE, "dlerror"), group.dlsym(dl.MAIN_HANDLE, "dlopen")
                assert isinstance(get, dl.GuestFunction)
                assert isinstance(opens, dl.GuestFunction)
                assert get() == 0
                assert opens(name, 0) == 0
                return linker.memory.read_cstring(get())

            for _ in range(3):
                assert "other.wasm" in linker.spawn(in_thread).join()
            regions = linker.statistics().side_regions
            for _ in range(5):
                linker.spawn(in_thread).join()
            assert linker.statistics().side_regions == regions
            assert "none.wasm" in (guest.error() or "")


class TestPointers:
    def test_pointers_mean_the_same_everywhere(self) -> None:
        """A library's function is called by another library, the root's by a library, and a wrong type traps."""
        caller = library(
            MEMORY,
            TABLE,
            '(func (export "call1") (param i32 i32) (result i32)'
            " (call_indirect (param i32) (result i32) (local.get 1) (local.get 0)))",
        )
        main = root(
            '(func (export "own") (param i32) (result i32) (i32.mul (local.get 0) (i32.const 3)))',
            '(func (export "call_with") (param i32 i32 i32) (result i32)'
            " (call_indirect (param i32 i32) (result i32) (local.get 1) (local.get 2) (local.get 0)))",
        )
        with program({"app.wasm": side(), "caller.wasm": caller}, main) as guest:
            first, second = guest.open("app.wasm"), guest.open("caller.wasm")
            call1 = guest.symbol(second, "call1")
            assert guest.call("call_with", call1, guest.symbol(first, "add42"), 9) == 51
            assert guest.call("call_with", call1, guest.symbol(1, "own"), 5) == 15
            with pytest.raises(dl.TrapError, match="indirect call type mismatch"):
                guest.call("call_with", call1, guest.symbol(first, "get"), 5)

    def test_host_functions_have_one_pointer(self) -> None:
        """Two libraries that take the address of one host function get the same number, and both can call it."""
        taker = library(
            MEMORY,
            TABLE,
            '(import "env" "strange" (func $strange (param i32) (result i32)))',
            '(import "GOT.func" "strange" (global $at (mut i32)))',
            '(func (export "at") (result i32) (global.get $at))',
            '(func (export "direct") (param i32) (result i32) (call $strange (local.get 0)))',
        )
        libraries = {"one.wasm": taker, "two.wasm": taker}
        with program(libraries, imports={"env": {"strange": lambda n: n + 5}}) as guest:
            at = [guest.call("call0", guest.symbol(guest.open(name), "at")) for name in libraries]
            assert at[0] == at[1] != 0
            assert guest.call("call1", at[0], 37) == 42


class TestBinding:
    LIBRARY = side(
        imports("absent_one"),
        imports("absent_two"),
        calls("calls_one", "absent_one"),
        calls("calls_two", "absent_two"),
    )

    def test_lazy(self) -> None:
        """In a lazy mode a library with undefined functions opens and runs; a call of one says which it is."""
        with program({"app.wasm": self.LIBRARY}, mode=1) as guest:
            handle = guest.open("app.wasm", 0)
            assert guest.call("call0", guest.symbol(handle, "get")) == 42
            with pytest.raises(dl.UnresolvedCallError, match="absent_one"):
                guest.call("call0", guest.symbol(handle, "calls_one"))

    def test_early_names_all(self) -> None:
        """In an early mode `dlopen` gives 0 and names every missing function; flags overrule the mode."""
        with program({"app.wasm": self.LIBRARY}, mode=0) as guest:
            assert guest.open("app.wasm", 0) == 0
            text = guest.error() or ""
            assert "absent_one" in text
            assert "absent_two" in text
            assert guest.open("app.wasm", LAZY) == 2
        with program({"app.wasm": self.LIBRARY}, mode=1) as guest:
            assert guest.open("app.wasm", NOW) == 0


class TestMode:
    def test_every_number(self) -> None:
        """All 32 numbers map to options and back; others are refused."""
        for bits in range(32):
            assert dl.WamrMode.from_mode_bits(bits).mode_bits == bits
        assert dl.WamrMode.from_mode_bits(14) == dl.WamrMode(
            memory_operations="root", table_cache=True, assemblyscript_root=True
        )
        for wrong in (-1, 32, 1 << 40, True, "3", 1.0):
            with pytest.raises(dl.LinkerUsageError, match="from 0 to 31"):
                dl.WamrMode.from_mode_bits(wrong)  # type: ignore[arg-type]
        with pytest.raises(dl.LinkerUsageError, match="from 0 to 31"):
            dl.Linker(root(), wamr=32)
        with pytest.raises(dl.LinkerUsageError, match="binding must be one of"):
            dl.WamrMode(binding="never")  # type: ignore[arg-type]

    def test_the_table_cache_saves_requests_and_nothing_else(self) -> None:
        """With it a late function is asked for once, without at each call; the results are the same."""
        libraries = {
            "app.wasm": library(imports("late"), calls("f", "late")),
            "late.wasm": library(returns("late", 8)),
        }
        for bits, asked in ((1, 10), (1 | 4, 1)):
            with program(libraries, mode=bits) as guest:
                f = guest.symbol(guest.open("app.wasm"), "f")
                guest.open("late.wasm", NOW | GLOBAL)
                assert [guest.call("call0", f) for _ in range(10)] == [8] * 10
                assert guest.linker.wamr_statistics().stub_requests == asked

    def test_the_resolve_cache_hits_and_forgets(self) -> None:
        """The second look-up of each of 100 symbols is a hit with the same answer; after a close none of them is given."""
        many = library(MEMORY, TABLE, *(returns(f"f{i}", i) for i in range(100)))
        with program({"app.wasm": many}, mode=16) as guest:
            handle = guest.open("app.wasm")
            first = [guest.symbol(handle, f"f{i}") for i in range(100)]
            assert guest.linker.wamr_statistics().cache_hits == 0
            assert [guest.symbol(handle, f"f{i}") for i in range(100)] == first
            assert guest.linker.wamr_statistics().cache_hits == 100
            assert [guest.call("call0", at) for at in first] == list(range(100))
            guest.close(handle)
            assert guest.symbol(handle, "f7") == 0
            again = guest.open("app.wasm")
            assert guest.call("call0", guest.symbol(again, "f7")) == 7
            assert guest.linker.wamr_statistics().cache_hits == 100
        with program({"app.wasm": many}, mode=0) as guest:
            handle = guest.open("app.wasm")
            assert guest.symbol(handle, "f1") == guest.symbol(handle, "f1")
            now = guest.linker.wamr_statistics()
            assert (now.lookups, now.cache_hits, now.cached) == (2, 0, 0)

    def test_needed_lists_can_be_left_alone(self) -> None:
        """Without `load_needed` a library is opened without what it needs, which need not even exist."""
        libraries = {"app.wasm": side(needed=("nowhere.wasm",))}
        with program(libraries, mode=dl.WamrMode(load_needed=False)) as guest:
            assert guest.call("call0", guest.symbol(guest.open("app.wasm"), "get")) == 42
        with program(libraries) as guest:
            assert guest.open("app.wasm") == 0
            assert "nowhere.wasm" in (guest.error() or "")

    def test_a_program_without_a_mode_has_no_statistics(self) -> None:
        """Asking for the statistics of a mode that was not given is an error, not zeros."""
        with dl.Linker(None) as linker, pytest.raises(dl.LinkerUsageError, match="no mode of WAMR"):
            linker.wamr_statistics()

    def test_every_mode_links_the_same(self) -> None:
        """A program whose root exports an allocator gives the same results in every mode with bit 1."""
        results = set()
        for bits in range(32):
            if bits & 2 and not bits & 8:
                with program({"app.wasm": side()}, root(*HEAP), mode=bits) as guest:
                    handle = guest.open("app.wasm")
                    results.add((handle, guest.call("call1", guest.symbol(handle, "add42"), 1)))
        assert results == {(2, 43)}


def test_destroying_a_program_with_open_handles() -> None:
    """Closing the linker with libraries open releases them, and a second close does nothing."""
    with program({"app.wasm": side()}) as guest:
        guest.open("app.wasm")
        linker = guest.linker
        linker.close()
        linker.close()
    assert dataclasses.is_dataclass(dl.WamrStatistics)


def test_wasi_arguments_work_together_with_a_mode(tmp_path: Path) -> None:
    """Arguments, environment and directories reach a root that also opens libraries."""
    main = root(
        '(import "wasi_snapshot_preview1" "args_sizes_get" (func $args (param i32 i32) (result i32)))',
        '(func (export "count") (result i32) (drop (call $args (i32.const 512) (i32.const 516))) (i32.load (i32.const 512)))',
    )
    (tmp_path / "app.wasm").write_bytes(side())
    with program({}, main, args=("root.wasm", "one", "two"), preopens={"/d": tmp_path}) as guest:
        assert guest.call("count") == 3
        assert guest.open("/d/app.wasm") == 2
