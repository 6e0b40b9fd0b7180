"""Exceptions of the guest and what is around them: uncaught ones, host functions, constructors, threads, the legacy encoding.

That C++ exceptions and longjmp cross modules in every direction is proved by the runs of `fixtures/exceptions` and
`fixtures/longjmp`, and what a tag's name means by `test_exception_tags.py`.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import wasmtime

import dl

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
MEMORY = dl.MemoryType(1, 64, shared=True)
INT = "i" if find_spec("pydemumble") is None else "int"
"""What the type `int` is called: by its mangled name, where nothing is installed that knows better."""
KINDS = pytest.mark.parametrize("memory", ["shared", "unshared"])


def cpp(memory: str = "shared", **more: Any) -> dl.Linker:
    """Link the C++ program, which carries the run-time library, without running it."""
    folder = FIXTURES / "exceptions" / memory
    return dl.Linker(folder / "main.wasm", library_path=[folder], **more)


def handlers(
    linker: dl.Linker, callback: Callable[[int], None]
) -> tuple[dl.InstanceGroup, Callable[[str], Any]]:
    """Open the library of handlers with a host function; return the group and what finds its functions."""
    group = linker.main_group
    library = group.dlopen("libhandler.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
    return group, lambda name: group.dlsym(library, name)


def wasm(text: str) -> bytes:
    """Assemble a library."""
    return bytes(wasmtime.wat2wasm(f"(module (@dylink.0 (mem-info (memory 0 0) (table 0 0))) {text})"))


GUEST = """
  (import "env" "__stack_pointer" (global $sp (mut i32)))
  (import "env" "__cpp_exception" (tag $cpp (param i32)))
  (import "env" "__c_longjmp" (tag $jump (param i32)))
  (import "env" "callback" (func $callback (param i32)))
  (tag $mine (export "my_error") (param i64))
  (tag $hidden (param f64 i32))
  (func (export "throw_cpp") (param i32)
    (global.set $sp (i32.sub (global.get $sp) (i32.const 4096)))
    (throw $cpp (local.get 0)))
  (func (export "throw_jump") (param i32) (throw $jump (local.get 0)))
  (func (export "throw_mine") (param i32) (throw $mine (i64.const 7)))
  (func (export "throw_hidden") (param i32) (throw $hidden (f64.const 1) (local.get 0)))
  (func (export "frame") (result i32) (global.get $sp))
  (func (export "framed") (param i32) (result i32) (local $below i32)
    (global.set $sp (i32.sub (global.get $sp) (i32.const 256)))
    (call $callback (local.get 0))
    (local.set $below (global.get $sp))
    (global.set $sp (i32.add (local.get $below) (i32.const 256)))
    (local.get $below))
  (func (export "frameless") (param i32) (result i32)
    (block $any (result exnref)
      (try_table (catch_all_ref $any) (call $callback (local.get 0)))
      (return (i32.const 0)))
    drop
    (i32.const -1))
"""
"""A guest without a C library.

`frameless` catches whatever it can around the host function and has no frame; `framed` has one of 256 bytes.
"""


@pytest.fixture(name="bare")
def _bare() -> Iterator[Bare]:
    bare = Bare()
    with bare.linker:
        yield bare


class Bare:
    """The bare guest, whose host function a test sets.

    Attributes:
        callback: what the host function does.
        linker: the program.
    """

    def __init__(self) -> None:
        self.callback: Callable[[int], None] = lambda _value: None
        self.linker = dl.Linker(
            None,
            memory=MEMORY,
            libraries={"guest.so": wasm(GUEST)},
            imports={"env": {"callback": self._call_back}},
        )
        self.library = self.linker.main_group.dlopen("guest.so")

    def _call_back(self, value: int) -> None:
        self.callback(value)

    def function(self, name: str, group: dl.InstanceGroup | None = None) -> Any:
        """Find a function of the guest."""
        return (group or self.linker.main_group).dlsym(self.library, name)


class TestUncaught:
    @pytest.mark.parametrize(
        ("function", "tag", "value", "reason"),
        [
            (
                "throw_cpp",
                "__cpp_exception",
                0xFFFFFFF0,
                "with tag __cpp_exception (its first value is 0xfffffff0)",
            ),
            ("throw_jump", "__c_longjmp", 0xFFFFFFF0, "with tag __c_longjmp (its first value is 0xfffffff0)"),
            ("throw_mine", "my_error", None, "with tag my_error"),
        ],
    )
    def test_error_names_the_tag(
        self, bare: Bare, function: str, tag: str, value: int | None, reason: str
    ) -> None:
        """An exception that nobody catches is an error with its tag, its first value and the guest's frames."""
        with pytest.raises(dl.UncaughtExceptionError) as caught:
            bare.function(function)(-16)

        error = caught.value
        assert (error.tag, error.value) == (tag, value)
        assert error.reason == f"uncaught exception {reason}"
        assert str(error).startswith(f"guest trapped: {error.reason} (in guest.so!")

    def test_tag_that_no_module_exports_has_no_name(self, bare: Bare) -> None:
        """An exception with a module's private tag is told as such."""
        with pytest.raises(dl.UncaughtExceptionError) as caught:
            bare.function("throw_hidden")(1)

        assert (caught.value.tag, caught.value.value) == (None, None)
        assert caught.value.reason == "uncaught exception"

    def test_the_program_goes_on(self, bare: Bare) -> None:
        """After an uncaught exception the group works as before, its shadow stack included."""
        frame = bare.function("frame")()
        for number in range(1000):
            with pytest.raises(dl.UncaughtExceptionError, match=hex(number)):
                bare.function("throw_cpp")(number)

        assert bare.function("frame")() == frame

    def test_it_ends_its_thread_only(self, bare: Bare) -> None:
        """In a thread of the host the exception is raised by `join`; other threads do not notice."""

        def throw(group: dl.InstanceGroup) -> None:
            bare.function("throw_cpp", group)(3)

        thread = bare.linker.spawn(throw)
        with pytest.raises(dl.UncaughtExceptionError, match="with tag __cpp_exception"):
            thread.join()

        assert bare.linker.program.ended is None
        assert bare.function("frameless")(1) == 0

    def test_in_a_thread_of_the_guest_it_ends_the_program(self) -> None:
        """A pthread's uncaught exception ends the program, as it ends a process, with the thread's name and the type."""
        lines: list[bytes] = []
        with (
            cpp(args=["main", "thread-uncaught"], stdout=lines.append) as linker,
            pytest.raises(dl.DlError, match="thread 2: .*uncaught exception of type Detail"),
        ):
            linker.main_group.run()

        assert b"".join(lines) == b"before\n"

    @pytest.mark.parametrize(
        ("case", "argument", "what"),
        [
            ("exceptions", "uncaught", f"of type {INT}"),
            ("exceptions", "thread-uncaught", "of type Detail"),
            ("longjmp", "nowhere", "with tag __c_longjmp"),
        ],
    )
    def test_dlrun_exits_134_and_says_why(self, case: str, argument: str, what: str) -> None:
        """`dlrun` ends with the exit code of an aborted process and one line that names the type or the tag."""
        folder = FIXTURES / case / "shared"
        done = subprocess.run(
            [sys.executable, "-m", "dl", "-L", str(folder), str(folder / "main.wasm"), argument],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

        assert (done.returncode, done.stdout) == (134, "before\n")
        assert done.stderr.splitlines()[0].startswith("dlrun: error: ")
        assert f"uncaught exception {what}" in done.stderr.splitlines()[0]


class TestInitialization:
    @KINDS
    def test_constructor_that_throws_undoes_the_load(self, memory: str) -> None:
        """A library whose constructor throws is not loaded: nothing of it stays, and the next library is as ever."""
        with cpp(memory, stdout=lambda _: None) as linker:
            group = linker.main_group
            before = linker.statistics()
            for _ in range(3):
                with pytest.raises(dl.InitializationError) as caught:
                    group.dlopen("libctor.so")

                assert caught.value.function == "__wasm_call_ctors"
                assert isinstance(caught.value.__cause__, dl.UncaughtExceptionError)
                assert "uncaught exception of type Detail" in str(caught.value)

            after = linker.statistics()
            assert (after.modules, after.table_elements, after.side_bytes) == (
                before.modules,
                before.table_elements,
                before.side_bytes,
            )
            value: Any = group.dlsym(group.dlopen("libcaught.so"), "ctor_value")
            assert value() == 5

    def test_start_function_that_throws_undoes_the_load(self) -> None:
        """The same for a start function, which runs while the module is instantiated."""
        text = '(import "env" "__cpp_exception" (tag $t (param i32))) (start $go) (func $go (throw $t (i32.const 1)))'
        with dl.Linker(None, memory=MEMORY, libraries={"start.so": wasm(text)}) as linker:
            before = linker.statistics()
            with pytest.raises(dl.InitializationError, match="with tag __cpp_exception"):
                linker.main_group.dlopen("start.so")

            assert linker.statistics().modules == before.modules


class TestHostFunctions:
    def test_inner_exception_is_an_error_in_python(self, bare: Bare) -> None:
        """What the guest throws in a call that a host function makes is raised there; caught there, the guest goes on."""
        seen: list[dl.UncaughtExceptionError] = []

        def callback(value: int) -> None:
            try:
                bare.function("throw_cpp")(value)
            except dl.UncaughtExceptionError as error:
                seen.append(error)

        bare.callback = callback

        assert bare.function("frameless")(42) == 0
        assert [(error.tag, error.value) for error in seen] == [("__cpp_exception", 42)]

    def test_inner_exception_that_passes_python_is_not_caught_by_the_guest(self, bare: Bare) -> None:
        """Left alone it unwinds the outer guest like a trap, not even caught by all-catching code, and arrives as it was."""
        seen: list[BaseException] = []

        def callback(value: int) -> None:
            try:
                bare.function("throw_cpp")(value)
            except dl.UncaughtExceptionError as error:
                seen.append(error)
                raise

        bare.callback = callback
        with pytest.raises(dl.UncaughtExceptionError) as caught:
            bare.function("frameless")(43)

        assert [caught.value] == seen
        bare.callback = lambda _value: None
        assert bare.function("frameless")(44) == 0

    def test_python_exception_is_not_caught_by_the_guest(self, bare: Bare) -> None:
        """An exception of Python passes code that catches everything."""

        def callback(value: int) -> None:
            raise LookupError(value)

        bare.callback = callback
        with pytest.raises(LookupError, match="45"):
            bare.function("frameless")(45)

    def test_through_many_levels(self, bare: Bare) -> None:
        """Guest and host may alternate; each level of Python may catch, and the levels of the guest above it go on."""
        reached: list[int] = []

        def callback(value: int) -> None:
            if value == 0:
                bare.function("throw_cpp")(99)
            reached.append(value)
            if value == 3:
                with pytest.raises(dl.UncaughtExceptionError, match="0x63"):
                    bare.function("frameless")(value - 1)
                reached.append(-value)
            else:
                bare.function("frameless")(value - 1)

        bare.callback = callback

        assert bare.function("frameless")(6) == 0
        assert reached == [6, 5, 4, 3, 2, 1, -3]

    def test_inner_calls_that_throw_give_the_shadow_stack_back(self, bare: Bare) -> None:
        """Inner calls that end by exceptions use up no shadow stack, even if the guest around them has no frame."""
        frames: set[int] = set()

        def callback(value: int) -> None:
            frames.add(bare.function("frame")())
            for _ in range(value):
                with pytest.raises(dl.UncaughtExceptionError):
                    bare.function("throw_cpp")(1)
            frames.add(bare.function("frame")())

        bare.callback = callback
        before = bare.function("frame")()

        assert bare.function("frameless")(1000) == 0
        assert frames == {before}
        assert bare.function("framed")(1000) == before - 256
        assert frames == {before, before - 256}
        assert bare.function("frame")() == before

    @KINDS
    def test_cpp_handlers_around_a_host_function(self, memory: str) -> None:
        """C++ goes on after a host function that caught an inner exception, and its `catch (...)` lets Python's pass."""
        throw: list[Any] = []

        def host_callback(value: int) -> None:
            if value:
                throw[0](value)

        with cpp(memory, imports={"env": {"host_callback": host_callback}}) as linker:
            group, function = handlers(linker, host_callback)
            throw.append(function("handler_throw"))

            assert function("handler_around_host")(0) == 1
            with pytest.raises(dl.UncaughtExceptionError, match=f"uncaught exception of type {INT}"):
                function("handler_around_host")(5)
            pointer = group.linker.own.look_up(dl.RTLD_DEFAULT, "handler_throw").address
            assert function("handler_catch")(pointer, 6) == 6

    @KINDS
    def test_python_callback_inside_cpp_handlers(self, memory: str) -> None:
        """A Python function behind a C++ function pointer raises past the handler, which works the next time."""

        def fails(value: int) -> None:
            raise LookupError(value)

        with cpp(memory, imports={"env": {"host_callback": fails}}) as linker:
            _, function = handlers(linker, fails)
            with linker.callback("(i32) -> ()", fails) as callback, pytest.raises(LookupError, match="7"):
                function("handler_catch")(callback.address, 7)

            assert function("handler_many")(10) == 45


class TestThreads:
    def test_two_groups_throw_and_catch_at_once(self) -> None:
        """Threads throw and catch at the same time, while a third links libraries into them; none sees another's."""
        rounds = 3000
        started = threading.Barrier(3, timeout=60)

        def work(group: dl.InstanceGroup, library: int) -> int:
            many: Any = group.dlsym(library, "handler_many")
            started.wait()
            return sum(many(rounds) for _ in range(5))

        with cpp(imports={"env": {"host_callback": lambda _: None}}) as linker:
            group = linker.main_group
            library = group.dlopen("libhandler.so")
            threads = [linker.spawn(work, library) for _ in range(2)]
            started.wait()
            caught: Any = group.dlsym(group.dlopen("libcaught.so"), "ctor_value")

            assert caught() == 5
            assert [thread.join(60) for thread in threads] == [5 * rounds * (rounds - 1) // 2] * 2

    def test_uncaught_exceptions_reach_their_own_threads(self) -> None:
        """Exceptions that nobody catches, on several threads at once, are each raised in the thread that threw."""
        started = threading.Barrier(4, timeout=60)

        def work(group: dl.InstanceGroup, bare: Bare, number: int) -> set[int | None]:
            seen = set()
            started.wait()
            for _ in range(300):
                with pytest.raises(dl.UncaughtExceptionError) as caught:
                    bare.function("throw_cpp", group)(number)
                seen.add(caught.value.value)
            return seen

        bare = Bare()
        with bare.linker:
            threads = [bare.linker.spawn(work, bare, number) for number in range(4)]

            assert [thread.join(60) for thread in threads] == [{0}, {1}, {2}, {3}]

    def test_exceptions_are_collected(self) -> None:
        """A hundred thousand exceptions, each an object of the engine's, need no more memory than a few."""
        with cpp("unshared", imports={"env": {"host_callback": lambda _: None}}) as linker:
            _, function = handlers(linker, lambda _: None)
            function("handler_many")(10)
            before = linker.memory.size

            assert function("handler_many")(100_000) == 100_000 * 99_999 // 2 - (1 << 32)
            assert linker.memory.size == before


class TestLegacyEncoding:
    REMEDY = (
        r"legacy exception handling .*-wasm-use-legacy-eh=false.* -sWASM_LEGACY_EXCEPTIONS=0.*"
        r"wasm-opt --translate-to-exnref"
    )

    @KINDS
    def test_compiled_library_is_refused_with_the_remedy(self, memory: str) -> None:
        """A library that clang compiled to the legacy encoding is refused by name; the message says how to rebuild it."""
        with cpp(memory) as linker:
            before = linker.statistics()
            with pytest.raises(dl.UnsupportedModuleError, match=self.REMEDY) as caught:
                linker.main_group.dlopen("liblegacy.so")

            after = linker.statistics()
            assert caught.value.module.endswith("liblegacy.so")
            assert (after.modules, after.next_handle, after.table_elements, after.side_bytes) == (
                before.modules,
                before.next_handle,
                before.table_elements,
                before.side_bytes,
            )

    @pytest.mark.parametrize(
        "code",
        [
            b"\x06\x40\x0b",  # try end
            b"\x06\x40\x19\x09\x00\x0b",  # try catch_all rethrow 0 end
            b"\x06\x40\x07\x00\x1a\x0b",  # try catch 0 drop end
            b"\x06\x40\x18\x00",  # try delegate 0
        ],
        ids=["try", "catch_all", "catch", "delegate"],
    )
    def test_each_instruction_is_recognised(self, code: bytes) -> None:
        """A library of single instructions, written by hand, is refused the same way."""
        placeholder = b"\x41\xe7\x00\x1a"  # i32.const 103, drop
        text = '(import "env" "__cpp_exception" (tag (param i32))) (func (export "f") i32.const 103 drop)'
        data = bytearray(wasm(text))
        body = data.index(placeholder)
        data[body : body + len(placeholder)] = code
        grown = len(code) - len(placeholder)
        data[body - 2] += grown  # size of the function body
        data[body - 4] += grown  # size of the code section
        with (
            dl.Linker(None, memory=MEMORY, libraries={"old.so": bytes(data)}) as linker,
            pytest.raises(dl.UnsupportedModuleError, match=self.REMEDY),
        ):
            linker.main_group.dlopen("old.so")

    def test_main_module_is_refused_too(self) -> None:
        """The program itself may be the one to rebuild."""
        main = wasmtime.wat2wasm(
            '(module (memory (export "memory") 1) (func (export "_start") try nop catch_all end))'
        )
        with pytest.raises(dl.UnsupportedModuleError, match=self.REMEDY):
            dl.Linker(bytes(main), name="old.wasm")

    def test_other_refusals_keep_the_engine_s_words(self) -> None:
        """A module that is wrong for another reason is not said to be legacy."""
        text = '(import "env" "__cpp_exception" (tag $t (param i32))) (func (export "f") (result i32) (throw $t (i64.const 1)))'
        with (
            dl.Linker(None, memory=MEMORY, libraries={"wrong.so": wasm(text)}) as linker,
            pytest.raises(dl.InvalidModuleError, match="type mismatch"),
        ):
            linker.main_group.dlopen("wrong.so")
