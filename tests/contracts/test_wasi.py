"""WASI preview 1 from the engine: what the program sees of the host, and what goes wrong."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from dl.engine import engine_named
from dl.engine.protocol import Engine, EngineInstance
from dl.engine.values import WasiOptions
from dl.errors import EngineError, ProgramExited
from dl.wasm.types import FuncType
from tests.support.engines import NoBoundary, compiled

PROGRAM = """
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $env_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $env (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (import "wasi_snapshot_preview1" "fd_prestat_dir_name" (func $prestat (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "hello")
  (func (export "write") (param $fd i32) (result i32)
    (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 5))
    (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)))
  (func (export "write_for_ever")
    (loop $again
      (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 5))
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
      (br $again)))
  (func (export "read") (result i32)
    (i32.store (i32.const 0) (i32.const 256)) (i32.store (i32.const 4) (i32.const 100))
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
    (i32.load (i32.const 8)))
  (func (export "arguments") (result i32)
    (drop (call $args_sizes (i32.const 0) (i32.const 4)))
    (drop (call $args (i32.const 1024) (i32.const 2048)))
    (i32.load (i32.const 4)))
  (func (export "environment") (result i32)
    (drop (call $env_sizes (i32.const 0) (i32.const 4)))
    (drop (call $env (i32.const 1024) (i32.const 2048)))
    (i32.load (i32.const 4)))
  (func (export "directory") (result i32) (call $prestat (i32.const 3) (i32.const 2048) (i32.const 5)))
  (func (export "exit") (param i32) (call $exit (local.get 0)))
)
"""
NUMBER = FuncType((), ("i32",))
UNARY = FuncType(("i32",), ("i32",))


class Stop(BaseException):
    """What an output callable raises."""


def program(engine: Engine, options: WasiOptions) -> EngineInstance:
    store = engine.new_store(engine.host_functions(NoBoundary()))
    store.enable_wasi(options)
    return store.instantiate(compiled(engine, PROGRAM), "wasi")


def text_at(instance: EngineInstance, address: int, size: int) -> bytes:
    import ctypes

    return ctypes.string_at(instance.memory("memory").data_address() + address, size)


def test_arguments_and_environment_arrive(engine: Engine) -> None:
    """Arguments and environment reach the program in order, in UTF-8, empty ones included."""
    instance = program(engine, WasiOptions(args=("prog", "", "grüße"), env=(("A", "1"), ("B", ""))))

    size = instance.function("arguments", NUMBER)()
    assert text_at(instance, 2048, size) == "prog\0\0grüße\0".encode()
    size = instance.function("environment", NUMBER)()
    assert text_at(instance, 2048, size) == b"A=1\0B=\0"


def test_no_arguments_are_none(engine: Engine) -> None:
    """Without options the program has no arguments and no environment, not the host's."""
    instance = program(engine, WasiOptions())

    assert instance.function("arguments", NUMBER)() == 0
    assert instance.function("environment", NUMBER)() == 0


def test_standard_input_from_bytes_and_files(engine: Engine, tmp_path: Path) -> None:
    """Standard input is the bytes given, or those of a file."""
    (tmp_path / "input").write_bytes(b"from a file")
    for given, expected in ((b"bytes\0here", b"bytes\0here"), (str(tmp_path / "input"), b"from a file")):
        instance = program(engine, WasiOptions(stdin=given))

        assert instance.function("read", NUMBER)() == len(expected)
        assert text_at(instance, 256, len(expected)) == expected


def test_output_goes_to_callables_and_files(engine: Engine, tmp_path: Path) -> None:
    """Standard output and error are written to a callable, chunk by chunk, or to a file."""
    chunks: list[bytes] = []
    instance = program(engine, WasiOptions(stdout=chunks.append, stderr=str(tmp_path / "errors")))
    write = instance.function("write", UNARY)

    assert [write(1), write(2), write(1)] == [0, 0, 0]
    assert b"".join(chunks) == b"hellohello"
    assert (tmp_path / "errors").read_bytes() == b"hello"


def test_preopened_directories_have_their_guest_names(engine: Engine, tmp_path: Path) -> None:
    """The first preopened directory is descriptor 3, under the name the guest knows."""
    instance = program(engine, WasiOptions(preopens=(("/data", str(tmp_path)),)))

    assert instance.function("directory", NUMBER)() == 0
    assert text_at(instance, 2048, 5) == b"/data"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            WasiOptions(preopens=(("/x", "/does/not/exist"),)),
            "cannot open directory /does/not/exist for the program's /x",
        ),
        (WasiOptions(preopens=(("/x", "/etc/passwd"),)), "cannot open directory /etc/passwd"),
        (WasiOptions(stdin="/does/not/exist"), "cannot read standard input from /does/not/exist"),
        (WasiOptions(stdout="/does/not/exist"), "cannot write stdout to /does/not/exist"),
        (WasiOptions(stderr="/"), "cannot write stderr to /"),
        (WasiOptions(args=("a\0b",)), "a NUL byte in 'a\\\\x00b' cannot be passed"),
        (WasiOptions(env=(("A", "b\0"),)), "a NUL byte"),
        (WasiOptions(preopens=(("/x\0", "/"),)), "a NUL byte"),
        (WasiOptions(args=("\udcff",)), "is not Unicode text"),
    ],
)
def test_bad_options_are_refused(engine: Engine, options: WasiOptions, text: str) -> None:
    """What cannot be passed or opened is an EngineError that names it; the store stays usable."""
    store = engine.new_store(engine.host_functions(NoBoundary()))
    with pytest.raises(EngineError, match=text):
        store.enable_wasi(options)

    store.enable_wasi(WasiOptions(args=("again",)))
    assert store.instantiate(compiled(engine, PROGRAM), "wasi").function("arguments", NUMBER)() == len(
        "again\0"
    )


def test_each_instance_is_answered_in_its_own_memory(engine: Engine) -> None:
    """Instances that export a memory each call one context, also in their start functions, and find the answers in theirs."""
    store = engine.new_store(engine.host_functions(NoBoundary()))
    store.enable_wasi(WasiOptions(args=("name", "an argument")))
    text = """(module (import "wasi_snapshot_preview1" "args_sizes_get" (func $sizes (param i32 i32) (result i32)))
      (memory (export "memory") 1) (start $begin)
      (func $begin (drop (call $sizes (i32.const {at}) (i32.const 100))))
      (func (export "again") (drop (call $sizes (i32.const 200) (i32.const 204)))))"""
    made = [store.instantiate(compiled(engine, text.format(at=at)), "caller") for at in (8, 16)]
    made[0].function("again", FuncType((), ()))()

    def numbers(instance: EngineInstance) -> list[int]:
        return [int.from_bytes(text_at(instance, at, 4), "little") for at in (8, 16, 100, 200, 204)]

    assert numbers(made[0]) == [2, 0, 17, 2, 17]
    assert numbers(made[1]) == [0, 2, 17, 0, 0]


def test_a_context_begins_anew(engine: Engine) -> None:
    """Instances that there are see other arguments, input and output from then on; a bad option leaves all as it was."""
    first: list[bytes] = []
    then: list[bytes] = []
    store = engine.new_store(engine.host_functions(NoBoundary()))
    store.enable_wasi(WasiOptions(args=("one",), stdin=b"1", stdout=first.append))
    instance = store.instantiate(compiled(engine, PROGRAM), "wasi")
    write, read = instance.function("write", UNARY), instance.function("read", NUMBER)
    assert (write(1), read()) == (0, 1)
    with pytest.raises(EngineError, match="cannot read standard input"):
        store.renew_wasi(WasiOptions(stdin="/does/not/exist"))
    assert write(1) == 0
    for count in range(1, 4):
        store.renew_wasi(WasiOptions(args=("other", "two"), stdin=b"22", stdout=then.append))
        assert (write(1), read()) == (0, 2)
        assert instance.function("arguments", NUMBER)() == len("other\0two\0")
        assert (b"".join(first), b"".join(then)) == (b"hellohello", b"hello" * count)


@pytest.mark.parametrize("code", [0, 1, 42, 125])
def test_exit_ends_the_call(engine: Engine, code: int) -> None:
    """`proc_exit` unwinds the guest and tells the code; it is not a trap."""
    instance = program(engine, WasiOptions())
    with pytest.raises(ProgramExited) as caught:
        instance.function("exit", FuncType(("i32",), ()))(code)

    assert caught.value.code == code
    assert instance.function("arguments", NUMBER)() == 0


def test_a_failed_write_is_an_errno_to_the_program(engine: Engine) -> None:
    """An OSError of an output callable is what the program's write returns, as from a full disk."""

    def full(_: bytes) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    assert program(engine, WasiOptions(stdout=full)).function("write", UNARY)(1) == 51  # WASI's errno nospc


@pytest.mark.parametrize("interrupts", [True, False])
@pytest.mark.parametrize("kind", [KeyError, Stop, KeyboardInterrupt])
def test_exceptions_of_output_callables_are_raised(
    engine: Engine, kind: type[BaseException], interrupts: bool
) -> None:
    """Any other exception of an output callable is raised by the guest call, the same object."""
    raised = kind("output")

    def fail(_: bytes) -> None:
        raise raised

    instance = program(engine_named(engine.name, interrupts=interrupts), WasiOptions(stdout=fail))
    with pytest.raises(kind) as caught:
        instance.function("write", UNARY)(1)

    assert caught.value is raised
    assert instance.function("arguments", NUMBER)() == 0


@pytest.mark.timeout(30)
def test_exceptions_of_output_callables_end_endless_programs(engine: Engine) -> None:
    """A program that writes for ever, and does not look at errors, is ended by its output's exception."""
    written: list[bytes] = []

    def fail_later(chunk: bytes) -> None:
        written.append(chunk)
        if len(written) == 1000:
            raise Stop

    ended: Callable[[], None] = program(engine, WasiOptions(stdout=fail_later)).function(
        "write_for_ever", FuncType((), ())
    )
    with pytest.raises(Stop):
        ended()

    assert 1000 <= len(written) < 1100
