"""Calling the guest from Python: libraries as objects, text and structures, memory without a copy, bounds, annotations."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import inspect
import signal
import subprocess
import sys
import threading
import time
from types import FrameType
from typing import Any

import pytest

import dl
from dl.api.deadlines import bounded
from tests.support.modules import MEMORY, pie
from tests.support.paths import ROOT
from tests.support.text_library import Pair, text_library

pytestmark = pytest.mark.timeout(60)


class TestLibrary:
    def test_functions_are_attributes_and_items(self, lib: dl.Library) -> None:
        """A function is called as an attribute; a name that the class has itself is reached as an item."""
        close = lib["close"]
        assert isinstance(close, dl.GuestFunction)
        assert lib.add(2, 3) == 5
        assert lib["add"] is lib.function("add")
        assert close() == 77

    def test_it_lists_what_it_defines(self, lib: dl.Library) -> None:
        """Iterating and `dir` give the names of functions and data, and nothing of the linker's own."""
        assert {"add", "length", "word"} <= set(lib)
        assert set(lib) <= set(dir(lib))
        assert "add" in lib
        assert "ad" not in lib
        assert len(lib) == len(list(lib))

    def test_a_misspelt_symbol_is_reported_with_the_nearest(self, lib: dl.Library) -> None:
        """The error is an AttributeError too, so that `hasattr` works, and says what may have been meant."""
        with pytest.raises(dl.SymbolNotFoundError, match=r"lenght.*did you mean length\?") as caught:
            lib.lenght("x")
        assert isinstance(caught.value, AttributeError)
        assert not hasattr(lib, "nothing_like_it")

    def test_functions_and_data_are_told_apart(self, lib: dl.Library) -> None:
        """Asking for the one kind and finding the other says so."""
        with pytest.raises(dl.LinkerUsageError, match="is data"):
            lib.function("word")
        with pytest.raises(dl.LinkerUsageError, match="is a function"):
            lib.data("add")

    def test_it_is_closed_once(self, linker: dl.Linker) -> None:
        """Closing twice, or at the end of a `with` after that, takes back one dlopen only; the object is of no use then."""
        first = linker.main_group.library("libtext.so")
        with linker.main_group.library("libtext.so") as second:
            assert second.handle == first.handle
            second.close()
        assert first.add(1, 1) == 2
        with pytest.raises(dl.InvalidHandleError, match="closed"):
            second.add(1, 1)
        first.close()
        assert linker.statistics().modules == 0
        assert repr(first) == "<Library (closed)>"

    def test_a_function_of_a_library_that_others_unload_is_refused(self, linker: dl.Linker) -> None:
        """What was looked up before is of no use afterwards, whoever has closed the library."""
        lib = linker.main_group.library("libtext.so")
        add, word = lib.add, lib.word
        assert lib.add is add
        linker.main_group.dlclose(lib.handle)
        for use in (lambda: lib.add(1, 2), lambda: add(1, 2), lambda: lib.word.address, lambda: word.address):
            with pytest.raises(dl.InvalidHandleError):
                use()

    def test_its_symbols_are_not_set(self, linker: dl.Linker, lib: dl.Library) -> None:
        """Assigning to data says how data is written, and hides nothing."""
        with pytest.raises(AttributeError, match=r"write_i32\(lib.data\('word'\), value\)"):
            lib.word = 3
        linker.memory.write_i32(lib.data("word"), 3)
        assert linker.memory.read_i32(lib.word) == 3

    def test_it_passes_for_its_handle(self, linker: dl.Linker, lib: dl.Library) -> None:
        """`dlsym` and `dlclose` take the library itself."""
        assert linker.main_group.dlsym(lib, "add") is lib.add
        linker.main_group.dlclose(lib)

    def test_names_and_signatures_are_shown(self, linker: dl.Linker, lib: dl.Library) -> None:
        """Functions have a name and a signature for `help`; libraries and linkers a table for notebooks."""
        assert lib.add.__name__ == "add"
        assert str(inspect.signature(lib.add)) == "(arg0: int, arg1: int, /) -> int"
        assert "<code>add</code>" in lib._repr_html_()
        assert "libtext.so" in linker._repr_html_()
        assert "libtext.so" in repr(lib)


class TestText:
    def test_text_and_bytes_are_lent_for_the_call(self, linker: dl.Linker, lib: dl.Library) -> None:
        """Text goes in as UTF-8 with a zero behind it, and its memory is given back."""
        before = linker.statistics().side_bytes
        assert lib.length("café") == 5
        assert lib.length(b"abc") == 3
        assert lib.length("") == 0
        assert linker.statistics().side_bytes == before

    def test_text_with_a_zero_is_refused(self, lib: dl.Library) -> None:
        """The guest would see a part of it only."""
        with pytest.raises(dl.LinkerUsageError, match="length: argument 0 is text with a zero"):
            lib.length("a\0b")

    def test_results_are_read_as_declared(self, linker: dl.Linker, lib: dl.Library) -> None:
        """The same function gives text, bytes, a pointer or a plain number."""
        text = lib.function("greeting", dl.CString)()
        assert text == "café"
        assert linker.memory.read_cstring(text.address) == "café"
        assert lib.length(text) == 5
        assert lib.function("greeting", str)() == "café"
        assert lib.function("greeting", bytes)() == "café".encode()
        assert lib.function("greeting", dl.Pointer)() == lib.data("word").address
        assert lib.function("nothing", bool)() is False

    def test_a_null_pointer_is_no_text(self, lib: dl.Library) -> None:
        """It is refused, naming the function and what to ask for instead."""
        with pytest.raises(dl.ValueConversionError, match=r"nothing .*null pointer.*dl\.Pointer"):
            lib.function("nothing", dl.CString)()

    def test_a_result_that_cannot_be_is_refused(self, lib: dl.Library) -> None:
        """A float is no text."""
        with pytest.raises(dl.LinkerUsageError, match="double is .*cannot be of type CString"):
            lib.function("double", dl.CString)

    def test_pointers_above_two_gib_are_unsigned(self, lib: dl.Library) -> None:
        """As plain results they are negative, as pointers they are not; both may be given."""
        assert lib.same(0x80000010) == -0x7FFFFFF0
        assert lib.function("same", dl.Pointer)(0x80000010) == 0x80000010
        assert lib.same(dl.Pointer(-16)) == -16

    def test_errors_name_the_function(self, lib: dl.Library) -> None:
        """Too few arguments, and ones of the wrong kind."""
        with pytest.raises(
            dl.ValueConversionError, match=r"function add \(i32, i32\) -> i32: takes 2 arguments, got 1"
        ):
            lib.add(1)
        with pytest.raises(
            dl.ValueConversionError, match=r"function add .*: argument 1 must be an integer, got 1.5"
        ):
            lib.add("x", 1.5)
        with pytest.raises(dl.ValueConversionError, match=r"function double .*: argument 0 must be a number"):
            lib.double("x")

    @pytest.mark.parametrize("kind", [str, dl.CString])
    def test_a_result_that_is_no_text_names_the_function(
        self, linker: dl.Linker, lib: dl.Library, kind: type[str]
    ) -> None:
        """What the memory has to say of bytes that are no UTF-8, or are outside of it, is the error's cause."""
        same = lib.function("same", kind)
        with linker.allocate(16) as block:
            block.write(b"\xff\xfe\0")
            with pytest.raises(
                dl.ValueConversionError, match=f"^function same .*is no {kind.__name__}: "
            ) as caught:
                same(block)
        assert isinstance(caught.value.__cause__, dl.InvalidStringError)
        for read in (same, lib.function("same", bytes), lib.function("same", Pair)):
            with pytest.raises(
                dl.ValueConversionError, match=r"^function same .*outside the memory"
            ) as caught:
                read(0xFFFFFFF0)
            assert isinstance(caught.value.__cause__, dl.OutOfBoundsError)


class TestMemory:
    def test_a_block_is_lent_and_given_back(self, linker: dl.Linker, lib: dl.Library) -> None:
        """It passes for its address, knows its bounds, and is of no use after the `with`."""
        before = linker.statistics().side_bytes
        with linker.allocate(16) as block:
            assert block.read() == bytes(16)
            block.write(b"hello\0", 4)
            assert lib.length(block.address + 4) == 5
            assert lib.same(block) == block.address
            with pytest.raises(dl.LinkerUsageError, match="do not fit"):
                block.write(b"hello", 12)
        assert linker.statistics().side_bytes == before
        with pytest.raises(dl.LinkerUsageError, match="given back"):
            block.read()

    @pytest.mark.parametrize(
        ("size", "align"), [(0, 16), (-1, 16), (1 << 33, 16), (8, 3), (8, 0), (8, 1 << 20)]
    )
    def test_impossible_blocks_are_refused(self, linker: dl.Linker, size: int, align: int) -> None:
        """Sizes and alignments that cannot be, with what can."""
        with pytest.raises(dl.LinkerUsageError):
            linker.allocate(size, align)

    def test_a_structure_is_lent_and_read_back(self, lib: dl.Library) -> None:
        """A structure of ctypes and a bytearray go in, and have afterwards what the guest has made of them."""
        pair = Pair(1, 2)
        lib.swap(pair)
        assert (pair.first, pair.second) == (2, 1)
        octets = bytearray(b"\1\0\0\0\2\0\0\0")
        lib.swap(octets)
        assert octets == b"\2\0\0\0\1\0\0\0"

    def test_a_structure_lies_in_the_memory(self, linker: dl.Linker, lib: dl.Library) -> None:
        """Both sides see each other's writes."""
        with linker.allocate(8) as block:
            pair = linker.memory.structure(Pair, block.address)
            pair.first, pair.second = 5, 6
            lib.swap(block)
            assert (pair.first, pair.second) == (6, 5)

    def test_a_structure_with_host_pointers_is_refused(self, linker: dl.Linker) -> None:
        """Pointers of ctypes have another size than the guest's."""

        class Wrong(ctypes.Structure):
            _fields_ = [("pairs", Pair * 2), ("text", ctypes.c_char_p)]

        class Derived(Wrong):
            _fields_ = [("more", ctypes.c_uint32)]

        for kind in (Wrong, Derived):
            with pytest.raises(dl.InvalidRequestError, match=r"Wrong\.text is c_char_p; use c_uint32"):
                linker.memory.structure(kind, 16)

    def test_a_view_stays_right_while_the_memory_grows(self, linker: dl.Linker, lib: dl.Library) -> None:
        """Host and guest grow the memory by 64 MiB; the view shows what the guest writes afterwards."""
        with linker.allocate(8) as block:
            view = block.view()
            view[:] = b"\1\0\0\0\2\0\0\0"
            assert linker.grow_memory(500) is not None
            assert lib.grow(500) > 500
            lib.swap(block)
            assert bytes(view) == b"\2\0\0\0\1\0\0\0"
            assert len(view) == 8

    def test_a_view_outlives_the_linker(self) -> None:
        """The bytes stay readable and writable; a new view is refused."""
        for shared in (False, True):
            linker = dl.Linker(None, memory=dl.MemoryType(2, 100, shared=shared))
            memory = linker.memory
            view = memory.view(65536, 65536)
            view[:4] = b"kept"
            linker.close()
            del linker
            gc.collect()
            assert bytes(view[:4]) == b"kept"
            view[65535] = 1
            with pytest.raises(dl.MemoryClosedError):
                memory.view(0, 1)

    def test_views_free_the_memory_with_the_last_of_them(self) -> None:
        """A hundred linkers whose views are dropped leave no address space behind."""

        def address_space() -> int:
            with open("/proc/self/statm") as statm:
                return int(statm.read().split()[0]) * 4096

        def one(shared: bool) -> None:
            with dl.Linker(None, memory=dl.MemoryType(2, 100, shared=shared)) as linker:
                view = linker.memory.view(0, 10)
            assert len(view) == 10

        for shared in (False, True):
            one(shared)
            gc.collect()
            before = address_space()
            for _ in range(30):
                one(shared)
            gc.collect()
            assert address_space() - before < 8 << 30

    def test_views_are_checked(self, linker: dl.Linker) -> None:
        """A view ends inside the memory."""
        with pytest.raises(dl.OutOfBoundsError):
            linker.memory.view(linker.memory.size - 4, 8)
        assert len(linker.memory) == linker.memory.size

    def test_numpy_works_in_the_memory(self, linker: dl.Linker, lib: dl.Library) -> None:
        """An array over a view is the guest's memory; an array as an argument is lent."""
        numpy = pytest.importorskip("numpy")
        with linker.allocate(8) as block:
            array = numpy.frombuffer(block.view(), dtype="<i4")
            array[:] = [7, 8]
            lib.swap(block)
            assert array.tolist() == [8, 7]
        own = numpy.array([1, 2], dtype="<i4")
        lib.swap(own)
        assert own.tolist() == [2, 1]
        with pytest.raises(dl.LinkerUsageError, match="swap: argument 0 is not contiguous"):
            lib.swap(numpy.arange(8, dtype="<i4")[::2])

    def test_the_programs_malloc_can_be_asked(self) -> None:
        """A block of the program's own allocator is one that the guest may free."""
        main = pie(
            '(global $next (mut i32) (i32.const 4096)) (global $freed (export "freed_at") (mut i32) (i32.const 0))',
            '(func (export "malloc") (param i32) (result i32) (global.get $next))',
            '(func (export "free") (param i32) (global.set $freed (local.get 0)))',
            '(func (export "last_freed") (result i32) (global.get $freed))',
        )
        with dl.Linker(main, memory=dl.MemoryType(2, 100)) as linker:
            with linker.allocate(10, source="program") as block:
                assert block.address == 4096
            last = linker.main_group.dlsym(dl.MAIN_HANDLE, "last_freed")
            assert isinstance(last, dl.GuestFunction)
            assert last() == 4096

    @pytest.mark.parametrize("size", [1 << 31, (1 << 31) - (1 << 16), 1 << 32])
    def test_the_programs_malloc_is_not_asked_for_what_makes_it_abort(self, size: int) -> None:
        """A size that the C library's `sbrk` takes for a negative one is more than there is, and no guest code runs for it."""
        main = pie('(func (export "malloc") (param i32) (result i32) unreachable)')
        with (
            dl.Linker(main, memory=dl.MemoryType(2, 100)) as linker,
            pytest.raises(dl.ResourceLimitError, match=f"malloc has no {size} bytes"),
        ):
            linker.allocate(size, source="program")


class TestBounds:
    @pytest.mark.parametrize("bound", ["timeout", "cpu_time"])
    def test_a_call_that_computes_for_too_long_is_stopped(self, lib: dl.Library, bound: str) -> None:
        """The error names the function and the bound, and the group goes on."""
        start = time.monotonic()
        with pytest.raises(dl.GuestTimeoutError, match=r"spin was stopped: .*0\.05 seconds") as caught:
            lib.spin(**{bound: 0.05})
        assert isinstance(caught.value, TimeoutError)
        assert time.monotonic() - start < 20
        assert lib.add(1, 2, timeout=60, cpu_time=60) == 3

    @pytest.mark.parametrize("bound", ["timeout", "cpu_time"])
    def test_bounds_longer_than_the_platform_can_wait(self, lib: dl.Library, bound: str) -> None:
        """Infinity is no bound, a very large number a bound; what is no number of seconds is refused."""
        for seconds in (float("inf"), 1e10, 1e99, 10**12):
            assert lib.add(1, 2, **{bound: seconds}) == 3
        with pytest.raises(dl.GuestTimeoutError, match=r"0\.05 seconds"):
            lib.spin(**{"timeout": 1e99, "cpu_time": 1e99, bound: 0.05})
        for wrong in (float("nan"), -1, float("-inf"), 10**400, 10**5000):
            with pytest.raises(dl.LinkerUsageError, match=f"{bound} must be a number of seconds"):
                lib.add(1, 2, **{bound: wrong})

    def test_a_signal_handler_cannot_call_the_guest_that_computes(self, lib: dl.Library) -> None:
        """It gets an error of usage that says what to do instead; the call under way, and later ones, are undisturbed."""
        said: list[str] = []

        def ring(*_: object) -> None:
            for use in (lambda: lib.add(1, 1), lambda: lib.add(1, 1, timeout=5)):
                with pytest.raises(dl.LinkerUsageError, match="signal handler") as caught:
                    use()
                said.append(str(caught.value))

        former = signal.signal(signal.SIGALRM, ring)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(dl.GuestTimeoutError):
                lib.spin(timeout=0.5)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, former)
        assert len(said) == 2
        assert lib.add(1, 2) == 3

    def test_late_bounds_leave_nothing_behind(self, lib: dl.Library) -> None:
        """Two hundred calls whose bounds pass about when they end disturb none of the following ones."""
        for _ in range(200):
            with contextlib.suppress(dl.GuestTimeoutError):
                assert lib.add(1, 2, timeout=0.00005) == 3
            assert lib.add(1, 2) == 3

    def test_ctrl_c_as_a_bound_ends_leaves_nothing_behind(self, linker: dl.Linker, lib: dl.Library) -> None:
        """Ctrl-C at any line within the end of a bound that has passed disturbs no later call and leaves no thread."""
        body = bounded.__wrapped__.__code__  # type: ignore[attr-defined]
        former = signal.signal(signal.SIGINT, signal.default_int_handler)
        pressed, line = True, 1  # not the first one, which enters the guard: see `threads.uninterrupted`
        try:
            while pressed:
                pressed, ending, line, seen = False, False, line + 1, 0

                def trace(frame: FrameType, event: str, _argument: object) -> Any:
                    nonlocal pressed, seen
                    if frame.f_code is not body:
                        return None
                    seen += event == "line" and ending  # noqa: B023  of this round
                    if seen == line and not pressed:  # noqa: B023
                        pressed = True
                        signal.raise_signal(signal.SIGINT)
                    return trace

                sys.settrace(trace)
                try:
                    with bounded(linker, lib.group.own, "late", 0.001, None):
                        threading.Event().wait(0.005)
                        ending = True
                except KeyboardInterrupt:
                    pass
                finally:
                    sys.settrace(None)
                assert lib.add(1, 2) == 3
                assert not any(thread.name == "bound of late" for thread in threading.enumerate())
        finally:
            signal.signal(signal.SIGINT, former)
        assert line > 4

    def test_what_cannot_be_interrupted_cannot_be_bounded(self) -> None:
        """The error says what to ask of the linker."""
        with dl.Linker(None, libraries={"l.so": text_library(MEMORY)}, memory=dl.MemoryType(2)) as linker:
            lib = linker.main_group.library("l.so")
            with pytest.raises(dl.LinkerUsageError, match="interrupts=True"):
                lib.add(1, 2, timeout=1)

    def test_a_program_that_runs_for_too_long_is_stopped(self) -> None:
        """`run` takes the same bounds."""
        main = pie('(func (export "_start") (loop $again (br $again)))')
        with dl.Linker(main, name="endless", interrupts=True, memory=dl.MemoryType(2)) as linker:
            with pytest.raises(dl.GuestTimeoutError, match="endless was stopped"):
                linker.main_group.run(timeout=0.05)


def test_the_version_is_known() -> None:
    """`dl.__version__` is that of the distribution."""
    code = "import dl; print(dl.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip().count(".") == 2
