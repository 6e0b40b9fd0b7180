"""Callbacks: Python functions as function pointers of the guest, in every thread, until they are closed."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import dl
from dl.options import parse_signature
from dl.wasm.types import FuncType
from tests.support.modules import MEMORY, SHARED_MEMORY, TABLE, library, static

pytestmark = pytest.mark.timeout(120)

CALL = """(func (export "call") (param $pointer i32) (param $argument i32) (result i32)
  (call_indirect (param i32) (result i32) (local.get $argument) (local.get $pointer)))"""
KINDS = """(func (export "kinds") (param $pointer i32) (param i32 i64 f32 f64 v128) (result v128 f64 f32 i64 i32)
  (call_indirect (param i32 i64 f32 f64 v128) (result v128 f64 f32 i64 i32)
    (local.get 1) (local.get 2) (local.get 3) (local.get 4) (local.get 5) (local.get $pointer)))"""
SPIN = """(func (export "spin") (param $pointer i32) (param $until i32)
  (loop $again
    (br_if $again (i32.ne (local.get $until)
      (call_indirect (param i32) (result i32) (i32.const 0) (local.get $pointer))))))"""


def functions(memory: str) -> bytes:
    return library(memory, TABLE, CALL, KINDS, SPIN)


@pytest.fixture(name="linker")
def _linker() -> Iterator[dl.Linker]:
    with dl.Linker(None, memory=dl.MemoryType(2, 1000, shared=True)) as linker:
        linker.main_group.dlopen(functions(SHARED_MEMORY), name="functions.so")
        yield linker


def call(
    linker: dl.Linker, pointer: dl.Callback | int, argument: int, group: dl.InstanceGroup | None = None
) -> Any:
    """Call a pointer in a group, the calling thread's by default."""
    group = group or linker.main_group
    return group.dlsym(linker.modules[0].handle, "call")(pointer, argument)


def in_thread(linker: dl.Linker, function: Callable[..., Any], *arguments: Any) -> Any:
    return linker.spawn(lambda group: function(group, *arguments)).join(timeout=60)


class TestCalls:
    def test_the_guest_calls_a_python_function_through_its_pointer(self, linker: dl.Linker) -> None:
        """The address is a function pointer; the callback itself passes for it where an integer is asked for."""
        with linker.callback("(i32) -> i32", lambda x: 3 * x) as callback:
            assert call(linker, callback.address, 14) == 42
            assert call(linker, callback, -2) == -6
            assert callback.type == FuncType(("i32",), ("i32",))

    def test_a_thread_that_was_away_follows_the_table_as_it_grew(self, linker: dl.Linker) -> None:
        """The table grows three times for callbacks while a thread is in the host; then it calls the last of them."""
        made = [linker.callback("(i32) -> i32", lambda value: value)]
        away, grown = threading.Event(), threading.Event()

        def work(group: dl.InstanceGroup) -> int:
            call = group.library("functions.so").function("call", int)
            assert call(made[0], 7) == 7
            away.set()
            assert grown.wait(60)
            return call(made[-1], 8)

        thread = linker.spawn(work)
        assert away.wait(60)
        made += [linker.callback("(i32) -> i32", lambda value: value + 1) for _ in range(250)]
        grown.set()
        assert thread.join(60) == 9

    def test_values_of_every_type_pass_both_ways(self, linker: dl.Linker) -> None:
        """Numbers, vectors, and several results as a tuple."""
        seen = []

        def kinds(*arguments: Any) -> tuple[Any, ...]:
            seen.append(arguments)
            return arguments[::-1]

        vector = bytes(range(16))
        handle = linker.modules[0].handle
        with linker.callback("(i32, i64, f32, f64, v128) -> (v128, f64, f32, i64, i32)", kinds) as callback:
            results = linker.main_group.dlsym(handle, "kinds")(callback, -1, 1 << 40, 0.5, 0.1, vector)

        assert seen == [(-1, 1 << 40, 0.5, 0.1, vector)]
        assert results == (vector, 0.1, 0.5, 1 << 40, -1)

    def test_an_exception_of_the_function_reaches_whoever_called_the_guest(self, linker: dl.Linker) -> None:
        """It is the same object, and the callback can be called again."""
        error = KeyError("mine")

        def fails(x: int) -> Any:
            if x:
                raise error
            return 5

        with linker.callback("(i32) -> i32", fails) as callback:
            with pytest.raises(KeyError) as caught:
                call(linker, callback, 1)
            assert caught.value is error
            assert call(linker, callback, 0) == 5

    def test_a_result_that_does_not_fit_is_an_error(self, linker: dl.Linker) -> None:
        """The guest gets no wrong value."""
        with linker.callback("(i32) -> i32", lambda _x: "text") as callback:
            with pytest.raises(dl.ValueConversionError):
                call(linker, callback, 1)

    def test_a_call_with_another_signature_traps(self, linker: dl.Linker) -> None:
        """A function pointer has one type, as in C."""
        with (
            linker.callback("(i64) -> i32", lambda _x: 1) as callback,
            pytest.raises(dl.TrapError, match="type mismatch"),
        ):
            call(linker, callback, 1)

    def test_a_callback_may_call_the_guest_and_load_libraries(self, linker: dl.Linker) -> None:
        """It runs in the calling thread, outside guest code: dlopen, dlsym, other callbacks, all go."""

        def deep(x: int) -> int:
            if not x:
                group = linker.main_group
                handle = group.dlopen(functions(SHARED_MEMORY), name="other.so")
                with linker.callback("(i32) -> i32", lambda y: y + 1) as inner:
                    return group.dlsym(handle, "call")(inner, 41)
            return call(linker, callback, x - 1)

        with linker.callback("(i32) -> i32", deep) as callback:
            assert call(linker, callback, 20) == 42

    def test_a_program_with_unshared_memory_has_callbacks(self) -> None:
        """And so has a static program whose table can grow."""
        main = static('(func (export "call") (param i32 i32) (result i32)'
                      " (call_indirect (param i32) (result i32) (local.get 1) (local.get 0)))")  # fmt: skip
        with dl.Linker(main, name="main.wasm") as linker:
            with linker.callback("(i32) -> i32", lambda x: x + 1) as callback:
                assert linker.main_group.dlsym(linker.main, "call")(callback, 41) == 42
        with dl.Linker(None) as linker:
            linker.main_group.dlopen(functions(MEMORY), name="functions.so")
            with linker.callback("(i32) -> i32", lambda x: x + 1) as callback:
                assert call(linker, callback, 41) == 42


class TestLife:
    def test_a_closed_callback_traps_in_every_thread(self, linker: dl.Linker) -> None:
        """Its pointer is null from then on, and the function is let go."""
        callback = linker.callback("(i32) -> i32", lambda x: x + 1)
        address, function = callback.address, weakref.ref(callback.function)
        assert in_thread(linker, lambda group: call(linker, address, 1, group)) == 2

        callback.close()
        callback.close()

        with pytest.raises(dl.TrapError, match="uninitialized"):
            call(linker, address, 1)
        with pytest.raises(dl.TrapError, match="uninitialized"):
            in_thread(linker, lambda group: call(linker, address, 1, group))
        with pytest.raises(dl.LinkerUsageError, match="closed"):
            call(linker, callback, 1)
        del callback
        gc.collect()
        assert function() is None

    def test_making_and_closing_callbacks_uses_nothing_up(self, linker: dl.Linker) -> None:
        """Three thousand callbacks of three signatures, one at a time, take one growth of the table."""
        before = linker.statistics().table_elements
        for n in range(3000):
            text = ("(i32) -> i32", "() -> ()", "(f64, i32) -> (i64, f32)")[n % 3]
            linker.callback(text, lambda x=0, _y=0: x).close()

        assert linker.statistics().table_elements - before == 100
        assert linker.parts.slots().pool.in_use() == 0
        slots = linker.main_group.own.instances._slots
        assert len(slots._placed) + sum(map(len, slots._idle.values())) == 3

    def test_a_callback_may_close_itself_and_finish(self, linker: dl.Linker) -> None:
        """A call that is under way goes on; the next one traps."""

        def once(x: int) -> int:
            callback.close()
            return x + 1

        callback = linker.callback("(i32) -> i32", once)
        address = callback.address

        assert call(linker, address, 1) == 2
        with pytest.raises(dl.TrapError, match="uninitialized"):
            call(linker, address, 1)

    def test_closing_after_the_program_has_ended_is_fine(self) -> None:
        """A `with` around a linker's whole life, in whatever order, does no harm."""
        linker = dl.Linker(None)
        with linker.callback("() -> ()", lambda: None) as callback:
            linker.close()
        callback.close()
        with pytest.raises(dl.LinkerClosedError):
            linker.callback("() -> ()", lambda: None)

    def test_what_cannot_be_a_callback_is_refused(self, linker: dl.Linker) -> None:
        """Bad signatures, values without a Python form, and things that are not functions; nothing is left behind."""
        for text in (
            "",
            "i32",
            "(i32)",
            "(i32) -> ",
            "(i32) -> i33",
            "(i32 i32) -> i32",
            "(i32,) -> i32",
            "((i32)) -> i32",
        ):
            with pytest.raises(dl.LinkerUsageError, match="signature"):
                linker.callback(text, lambda: None)
        with pytest.raises(dl.LinkerUsageError, match="function"):
            linker.callback("() -> ()", 5)  # type: ignore[call-overload]
        with pytest.raises(dl.ValueConversionError):
            linker.callback(FuncType(("externref",), ()), lambda _x: None)
        assert linker.parts.slots().pool.in_use() == 0

    def test_a_program_that_takes_no_functions_refuses_callbacks(self) -> None:
        """A table that the linker cannot reach or grow is said so."""
        with dl.Linker(static(table="(table 4 funcref)"), name="main.wasm") as linker:
            with pytest.raises(dl.NotDynamicError, match="table"):
                linker.callback("() -> ()", lambda: None)


class TestSignatures:
    @pytest.mark.parametrize(
        "kind",
        [FuncType((), ()), FuncType(("i32",), ("v128",)), FuncType(("i64", "f32"), ("f64", "i32", "i32"))],
    )
    def test_the_text_of_a_signature_reads_back(self, kind: dl.FuncType) -> None:
        """What an error or a listing prints can be given as a signature."""
        assert parse_signature(str(kind)) == kind

    def test_spaces_do_not_matter(self) -> None:
        """Between the parts there may be any number of them."""
        assert parse_signature(" ( i32,f64 )->( ) ") == FuncType(("i32", "f64"), ())
        assert parse_signature("()->i32") == FuncType((), ("i32",))


class TestThreads:
    def test_a_pointer_works_in_threads_from_before_and_after(self, linker: dl.Linker) -> None:
        """Threads that were there, and threads that come later; each call runs in the thread that makes it."""
        callers, ready, go = [], threading.Barrier(4), threading.Event()

        def note(x: int) -> int:
            callers.append(threading.current_thread().name)
            return x + 1

        def early(group: dl.InstanceGroup) -> int:
            ready.wait(30)
            go.wait(30)
            return call(linker, callback, 10, group)

        threads = [linker.spawn(early, name=f"early {n}") for n in range(3)]
        ready.wait(30)
        with linker.callback("(i32) -> i32", note) as callback:
            go.set()
            results = [thread.join(timeout=30) for thread in threads]
            late = linker.spawn(lambda group: call(linker, callback, 20, group), name="late").join(timeout=30)

        assert (results, late) == ([11] * 3, 21)
        assert sorted(callers) == ["early 0", "early 1", "early 2", "late"]

    def test_a_thread_without_a_group_can_make_and_close_callbacks(self, linker: dl.Linker) -> None:
        """Making one needs no place in the program."""
        made = []
        thread = threading.Thread(
            target=lambda: made.append(linker.callback("(i32) -> i32", lambda x: x + 1))
        )
        thread.start()
        thread.join(30)
        address = made[0].address
        assert call(linker, address, 1) == 2
        thread = threading.Thread(target=made[0].close)
        thread.start()
        thread.join(30)

        with pytest.raises(dl.TrapError, match="uninitialized"):
            call(linker, address, 1)

    def test_callbacks_are_made_while_other_threads_run_in_the_guest(self, linker: dl.Linker) -> None:
        """Threads that call without pause stop for a moment and go on; none sees a callback that is not there."""
        started, stop = threading.Barrier(3), threading.Event()
        handle = linker.modules[0].handle
        with linker.callback("(i32) -> i32", lambda _x: int(stop.is_set())) as running:

            def spin(group: dl.InstanceGroup) -> bool:
                started.wait(30)
                group.dlsym(handle, "spin")(running, 1)
                return True

            threads = [linker.spawn(spin) for _ in range(2)]
            started.wait(30)
            for n in range(50):
                with linker.callback("(i32) -> i32", lambda x, n=n: x + n) as callback:
                    assert call(linker, callback, 1) == n + 1
            stop.set()

            assert all(thread.join(timeout=60) for thread in threads)


def test_guest_cannot_free_a_callback_of_the_host() -> None:
    """`closure_free` of an index that the guest was not given changes nothing, as of an unknown one."""
    wat = """
      (import "wasix_32v1" "closure_free" (func $free (param i32) (result i32)))
      (func (export "free") (param i32) (result i32) (call $free (local.get 0)))
    """
    with dl.Linker(None, memory=dl.MemoryType(shared=True)) as linker:
        group = linker.main_group
        free = group.dlsym(group.dlopen(library(wat)), "free")
        callback = linker.callback("(i32) -> i32", lambda value: value + 1)

        assert free(callback) == 0
        assert callback.address in linker.parts.slots().pool
        again = linker.callback("(i32) -> i32", lambda value: value)
        assert again.address != callback.address


def test_signature_that_is_none_is_refused() -> None:
    """Something that is neither text nor a signature gets the usage error."""
    with dl.Linker(None) as linker, pytest.raises(dl.LinkerUsageError):
        linker.callback(5, print)  # type: ignore[call-overload]
